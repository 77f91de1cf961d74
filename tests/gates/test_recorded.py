"""Gates that are told what a measurement recorded: no source, no artifacts, and no guess."""

from pathlib import Path

import polars as pl
import pytest

from harness.gates._evidence import read_evidence
from harness.measure._requests import Requests
from harness.store import Store
from tests.gates.stores import N, answers, ask, change, said
from tests.report.stores import derive
from tests.store.scenario import SWEEP


def _recorded(store: Store, folder: Path, task: str, asked: Requests, *, only: int | None = None) -> Store:
    """The store in which the measurements of a task (or the first few of them) have recorded this."""
    found = derive(store, folder / "results", {})
    keys = store.query("SELECT measurement FROM raw.measurements WHERE task = ? ORDER BY ALL", [task])["measurement"]
    found.append("requests", [{"measurement": key, **asked.row()} for key in keys[:only]])
    found.ingest()
    return found


@pytest.mark.parametrize(("cut", "severity"), [(8, "warning"), (9, "invalid")])
def test_cut_requests_are_known(healthy: Store, tmp_path: Path, cut: int, severity: str) -> None:
    store = _recorded(healthy, tmp_path, "mmlu", Requests(requests=160, truncated=cut, most_cut=37))
    (flag,), open_ = ask(store, "truncated prompts", "mmlu")
    assert open_ == []
    assert (flag.severity, flag.recipe, dict(flag.figures)) == (severity, "", {"cut": cut, "n": 160, "most_cut": 37})
    assert f"{cut} of 160 requests" in flag.message
    assert "by 37 tokens at most" in flag.message


def test_where_nothing_was_cut_nothing_is_left_open(healthy: Store, tmp_path: Path) -> None:
    store = _recorded(healthy, tmp_path, "gsm8k", Requests(requests=40, generated=40))
    assert ask(store, "truncated prompts", "gsm8k") == ([], [])
    # The others are as they were: counted from files, and there are none.
    assert {u.task for u in ask(store, "truncated prompts")[1]} == {"mmlu", "hellaswag", "truthfulqa_mc2"}


def test_a_row_for_some_of_the_measurements_only_is_not_taken_for_all(healthy: Store, tmp_path: Path) -> None:
    store = _recorded(healthy, tmp_path, "mmlu", Requests(requests=160), only=1)
    evidence = read_evidence(store, SWEEP)
    assert sorted(len(a.recorded) for a in evidence.asked if a.task == "mmlu")[-1] <= 1
    assert sum(bool(a.recorded) for a in evidence.asked) <= 1


def _shots(shots: int, pool: int, **more: object) -> Requests:
    asked = Requests(requests=160, num_fewshot=shots, fewshot_pool=pool, fewshot_split="dev")
    asked.fewshot_fixed, asked.fewshot_measured = bool(more.get("fixed")), bool(more.get("measured"))
    return asked


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (_shots(5, 8), "draws 5 examples from 8: every two prompts share at least 2"),
        (_shots(5, 5, fixed=True), None),
        (_shots(5, 100, measured=True), "takes its 5 examples from dev, the split that is measured"),
        (_shots(5, 100), None),
        (_shots(0, 1), None),
        (_shots(9, 8), "shows 9 examples, its few-shot split has 8"),
    ],
)
def test_the_examples_are_known_without_a_source(
    healthy: Store, tmp_path: Path, asked: Requests, said: str | None
) -> None:
    # The suite leaves the number to the task here, as far as its settings say.
    store = _recorded(healthy, tmp_path, "hellaswag", asked)
    flags, open_ = ask(store, "few-shot split", "hellaswag")
    assert open_ == []
    assert [said in f.message for f in flags if said] == ([True] if said else [])
    assert bool(flags) == bool(said)


def test_chance_is_exact_where_the_choices_were_recorded(healthy: Store, tmp_path: Path) -> None:
    # Half of the documents have two choices and half five, and the letters seen in the answers are four.
    two = {f"{i:016x}": 2 for i in range(0, N, 2)}
    asked = Requests(requests=140, choices=5, other_choices=two)
    low = change(healthy, tmp_path / "low", {"hellaswag": ("acc_norm", answers(14))})
    store = _recorded(low, tmp_path, "hellaswag", asked)
    flags, open_ = ask(store, "at chance", "hellaswag")
    assert open_ == []
    # (20 / 2 + 20 / 5) / 40.
    assert [f.figures["chance"] for f in flags] == pytest.approx([0.35] * len(flags))
    assert [f.figures["value"] for f in flags] == pytest.approx([0.35] * len(flags))
    assert flags
    assert "(2 to 5 choices)" in flags[0].message
    guessed, _ = ask(low, "at chance", "hellaswag")
    assert {f.figures["chance"] for f in guessed} == {0.25} or guessed == []


def test_answers_in_more_forms_than_choices_are_no_labels(healthy: Store, tmp_path: Path) -> None:
    asked = Requests(requests=80, choices=2, other_choices={})
    store = _recorded(healthy, tmp_path, "mmlu", asked)
    flags, open_ = said(read_evidence(store, SWEEP), "constant choice", "mmlu")
    assert flags == []
    assert {u.why.partition(":")[0] for u in open_} == {"its choices are not known"}


def test_what_earlier_versions_stored_is_read_as_before(healthy: Store) -> None:
    evidence = read_evidence(healthy, SWEEP)
    assert not any(a.recorded for a in evidence.asked)
    assert evidence.asked[0].seeds[None].height > 0
    assert isinstance(evidence.runs, pl.DataFrame)
