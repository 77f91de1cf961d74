"""The section of validity flags: order, what is folded away, escaping, and its empty states."""

import re

import pytest

from harness.gates import Checked, Flag, Unchecked
from harness.report._flags import flags
from harness.report._queries import Facts, read_facts
from harness.store import Store
from tests.store.scenario import MODEL, SCRIPT, SWEEP


@pytest.fixture(scope="module")
def facts(store: Store) -> Facts:
    return read_facts(store, SWEEP)


def _flag(
    severity: str, recipe: str = "dpo", seed: int | None = 0, message: str = "Found.", task: str = "mmlu"
) -> Flag:
    return Flag("at chance", severity, recipe, MODEL, task, seed, message)  # type: ignore[arg-type]  # one of the two


def _cells(markup: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", markup, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", c) for c in re.findall(r"<td[^>]*>(.*?)</td>", r, re.DOTALL)] for r in rows]


def test_the_most_severe_comes_first(store: Store, facts: Facts) -> None:
    found = Checked([_flag("warning", "ppo", message="Doubtful."), _flag("invalid", message="Worthless.")], [])
    page = flags(store, facts, found)
    rows = [r for r in _cells(page) if r]
    assert rows == [
        ["invalid", "at chance", "dpo", "mmlu", "0", "Seed 0: Worthless."],
        ["warning", "at chance", "ppo", "mmlu", "0", "Seed 0: Doubtful."],
    ]
    assert "They found: 1 invalid, 1 warning. Figures marked invalid are not to be used." in page
    assert "Every gate could check everything." in page


def test_the_same_of_other_seeds_folds_away(store: Store, facts: Facts) -> None:
    found = Checked([_flag("warning", seed=s, message=f"Case {s}.") for s in (0, 1)], [])
    page = flags(store, facts, found)
    (row,) = (r for r in _cells(page) if r)
    assert row[4] == "0, 1"
    assert row[5] == "Seed 0: Case 0.and 1 more like itSeed 1: Case 1."
    assert "2 warnings" in page


def test_what_is_of_all_recipes_says_so(store: Store, facts: Facts) -> None:
    page = flags(store, facts, Checked([_flag("warning", recipe="", seed=None, task="")], []))
    assert next(r for r in _cells(page) if r)[2:5] == ["all", "all", "–"]


def test_what_was_not_checked_stands_with_its_reason(store: Store, facts: Facts) -> None:
    open_ = [Unchecked("digest", r, MODEL, t, "it is gone") for r in ("dpo", "ppo") for t in ("mmlu", "gsm8k")]
    page = flags(store, facts, Checked([], [*open_, Unchecked("contamination", "", "", "", "no source")]))
    assert [r for r in _cells(page) if r] == [
        ["digest", "dpo, ppo", "mmlu, gsm8k", "it is gone"],
        ["contamination", "all", "all", "no source"],
    ]
    assert "They found nothing wrong in what they could check." in page
    assert "Not checked: 2 reasons" in page


def test_nothing_found_and_everything_checked_is_said_in_words(store: Store, facts: Facts) -> None:
    page = flags(store, facts, Checked([], []))
    assert "They found nothing wrong." in page
    assert "<table>" not in page


def test_texts_of_models_are_escaped(store: Store, facts: Facts) -> None:
    found = Checked(
        [_flag("warning", message=SCRIPT, task=SCRIPT), _flag("warning", recipe=SCRIPT)],
        [Unchecked("digest", SCRIPT, MODEL, SCRIPT, SCRIPT)],
    )
    page = flags(store, facts, found)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 6


def test_without_findings_the_gates_are_asked(store: Store, facts: Facts) -> None:
    page = flags(store, facts)
    assert "constant choice" in page
    assert "no data source was given" in page
