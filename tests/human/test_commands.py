"""`harness human create` and `report` from the command line."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.errors import UserError
from harness.human import import_ratings
from harness.human._keys import known_forms
from harness.store import Store
from tests.human.conftest import written
from tests.report.stores import derive, nothing
from tests.store.scenario import SWEEP, build_scenario

Command = Callable[[Sequence[object]], int]


@pytest.fixture
def create(human: Command, store: Store, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The forms that `harness human create` makes with these options, as JSON."""

    def made(*options: object) -> list[dict[str, Any]]:
        folder = tmp_path / "made"
        common = ["--results", store.results, "--format", "json", "-o", folder]
        assert human(["create", SWEEP, *common, *options]) == 0
        return [json.loads(file.read_text()) for file in sorted(folder.iterdir())]

    return made


def _answers(store: Store, form: dict[str, Any]) -> list[list[dict[str, Any]]]:
    items = known_forms(store.results)[form["digest"]].items.values()
    return [item["answers"] for item in items if item["kind"] == "answers"]


def test_options_decide_what_is_asked(create: Callable[..., list[dict[str, Any]]], store: Store) -> None:
    forms = create(
        "--prompts", 6, "--raters", 3, "--overlap", 0.5, "--checks", 2, "--criteria", "clarity,tone=cold|warm"
    )
    assert len(forms) == 3
    for form in forms:
        assert [c["name"] for c in form["criteria"]] == ["clarity", "tone"]
        # Three that everybody gets, one of the other three, two checks.
        assert len(form["items"]) == 6
        assert form["pairs"] == [[0, 1], [1, 2]]
    documents = [{a[0]["measurement"]: None for a in _answers(store, form)} for form in forms]
    assert all(documents)


def test_recipes_pairs_and_how_many_stand_together(create: Callable[..., list[dict[str, Any]]], store: Store) -> None:
    (form,) = create("--recipes", "dpo,ppo", "--no-pairs", "--raters", 1, "--checks", 0, "--prompts", 4)
    assert form["pairs"] == []
    assert {a["recipe"] for answers in _answers(store, form) for a in answers} == {"dpo", "ppo"}
    forms = create("--together", 2, "--raters", 1, "--checks", 0, "--prompts", 6)
    shown = [tuple(sorted(a["recipe"] for a in answers)) for answers in _answers(store, forms[0])]
    # Every two of three recipes meet equally often.
    assert sorted(shown) == sorted([("base", "dpo"), ("base", "ppo"), ("dpo", "ppo")] * 2)


def test_the_same_options_make_the_same_files_and_another_seed_others(
    create: Callable[..., list[dict[str, Any]]],
) -> None:
    first = create("--prompts", 5)
    assert create("--prompts", 5) == first
    assert create("--prompts", 5, "--seed", 1) != first


def test_answers_of_the_gold_reward(create: Callable[..., list[dict[str, Any]]], store: Store) -> None:
    (form,) = create("--answers-from", "gold", "--prompts", 3, "--raters", 1, "--checks", 0)
    keys = {a["measurement"] for answers in _answers(store, form) for a in answers}
    kinds = store.query(
        "SELECT DISTINCT kind FROM raw.measurements WHERE list_contains($keys, measurement)", {"keys": sorted(keys)}
    )
    assert kinds["kind"].to_list() == ["gold"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--recipes", "dpp"], "recipes: dpp has no final answers"),
        (["--prompts", 0], "--prompts: expected 1 to 1000"),
        (["--raters", 0], "--raters: expected 1 to 100"),
        (["--overlap", 1.5], "--overlap: expected the share"),
        (["--checks", 21], "--checks: expected 0 to 20"),
        (["--together", 5], "--together: expected 1 to 4"),
        (["--seed", -1], "--seed: expected a number from 0 on"),
        (["--criteria", "nice"], "criteria: 'nice' is unknown"),
        (["--format", "pdf"], "--format: 'pdf' is unknown"),
        (["--model", "gpt2"], "no final answers of gpt2"),
        (["--overlap", 0, "--prompts", 2, "--raters", 3], "cannot be dealt out to 3 raters"),
    ],
)
def test_options_that_make_no_study_are_refused(
    human: Command, store: Store, tmp_path: Path, options: list[object], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        human(["create", SWEEP, "--results", store.results, "-o", tmp_path / "made", *options])
    assert said in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_the_report_shows_means_raters_and_judges_beside_people(
    human: Command, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert human(["report", SWEEP, "--results", store.results]) == 0
    shown = capsys.readouterr().out
    mean = store.query(
        "SELECT avg(score) FROM ratings WHERE sweep = ? AND recipe = 'ppo' AND criterion = 'helpfulness' "
        "AND checks_failed = 0",
        [SWEEP],
    ).item()
    (line,) = (one for one in shown.splitlines() if one.split()[:2] == ["helpfulness", "ppo"])
    assert f"{mean:.2f}" in line
    for part in ("base over dpo", "Krippendorff's alpha", "Judges beside people", "1 of 3 raters are in no figure"):
        assert part in shown
    assert any(one.startswith("cy") and "left out: failed a check" in one for one in shown.splitlines())
    assert human(["report", SWEEP, "--results", store.results, "--failed-checks"]) == 0
    everyone = capsys.readouterr().out
    assert "in no figure" not in everyone
    assert any(one.startswith("cy") and "failed a check" in one for one in everyone.splitlines())


def test_one_rater_is_said_to_be_one(
    human: Command, tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    only = derive(store, tmp_path / "only", {"human_ratings": lambda f: f.filter(pl.col("rater") == "ann")})
    assert human(["report", SWEEP, "--results", only.results]) == 0
    assert "One rater: the intervals hold for this one alone" in capsys.readouterr().out


def test_names_of_raters_cannot_drive_the_terminal(
    human: Command,
    store: Store,
    forms: list[dict[str, Any]],
    fill: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import_ratings(store, [written(tmp_path / "a.json", fill(forms[0], "[red]eve[/red]"))])
    assert human(["report", SWEEP, "--results", store.results]) == 0
    assert "[red]eve[/red]" in capsys.readouterr().out


def test_a_sweep_that_nobody_has_rated(human: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = derive(build_scenario(tmp_path / "whole"), tmp_path / "bare", {"human_ratings": nothing})
    assert human(["report", SWEEP, "--results", bare.results]) == 0
    assert "nobody has rated it yet" in capsys.readouterr().out
