"""AI feedback: a judge asked by principles, what becomes a pair, and what is left out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness.errors import InfeasibleError, UserError
from harness.method import Inputs, Judge, Made, Turns
from harness.models import load_model
from methods._constitution import read_constitution
from methods.ai_preferences import AIPreferences, AIPreferencesParams
from tests.methods.helpers import WORDS, Log, make_context, turn
from tests.methods.making_contract import MakingContract, scripted

QUICK: Mapping[str, object] = {"prompts": 8, "batch_size": 8, "max_new_tokens": 6, "unfinished": "keep"}


class TestAIPreferences(MakingContract):
    """The judge is the policy itself, with the real templates."""

    name = "ai_preferences"
    quick: ClassVar = {**QUICK, "prompts": 8}
    logged = frozenset({"confidence"})
    recorded = frozenset({"sample", "label"})
    columns = frozenset({"probability", "principle"})


class ByLength:
    """Prefers the longer answer, the more the longer; keeps what it was asked."""

    name = "by length"

    def __init__(self, most: float = 0.5) -> None:
        self.asked: list[tuple[Turns, str, str]] = []
        self.principles: list[str] = []
        self.most = most

    def rate(self, asked: Sequence[tuple[Turns, str]]) -> list[float]:
        return [min(10.0, 1.0 + len(response)) for _, response in asked]

    def prefer(self, asked: Sequence[tuple[Turns, str, str]], principles: Sequence[str] | None = None) -> list[float]:
        self.asked += asked
        self.principles += principles or []
        return [0.5 + self.most * max(-1.0, min(1.0, (len(a) - len(b)) / 20)) for _, a, b in asked]


def run(folder: Path, scratch: Path, judge: Judge, **settings: object) -> Made:
    import datasets

    rows: list[dict[str, Any]] = [{"prompt": [turn("user", f"say {WORDS[n]}")]} for n in range(8)]
    inputs = Inputs({"policy": folder}, lambda _role, path: load_model(path), datasets.Dataset.from_list(rows))
    inputs.judging = lambda: judge
    params = AIPreferencesParams.model_validate({**QUICK, **settings})
    return AIPreferences().run(inputs, params, make_context(scratch, Log()))


def test_the_judge_decides_which_is_chosen_by_a_principle_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    judge = ByLength()
    made = run(tiny_model, tmp_path, judge)
    for row in made.rows:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]  # type: ignore[index]  # turns
        assert len(chosen) > len(rejected)
        assert row["probability"] == pytest.approx(judge.prefer([([], chosen, rejected)])[0])
    known = {p.preference for p in read_constitution("default").principles}
    labels = {r.row: r for r in made.records if r.kind == "label"}
    assert len({r.principle for r in labels.values()} & known) > 2
    by_row = {str(row["prompt"][-1]["content"]): row for row in made.rows}  # type: ignore[index]  # turns
    for label in labels.values():
        first, second = (r for r in made.records if r.row == label.row and r.kind == "sample")
        assert label.by == "by length"
        assert label.text == (
            "first" if (label.score or 0) > 0.5 else "second" if (label.score or 0) < 0.5 else "neither"
        )
        assert label.kept == first.kept == second.kept == (label.score != 0.5)
        if label.kept:
            row = by_row[label.prompt]
            wanted = first if label.text == "first" else second
            assert row["chosen"] == [turn("assistant", wanted.text)]
            assert row["principle"] == label.principle in known
    assert len(made.rows) + made.metrics["undecided"] == len(labels)


def test_pairs_within_the_margin_are_left_out_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    every, sure = run(tiny_model, tmp_path, ByLength()), run(tiny_model, tmp_path, ByLength(), margin=0.1)
    expected = [row for row in every.rows if float(str(row["probability"])) - 0.5 > 0.1]
    assert 0 < len(expected) < len(every.rows)
    assert list(sure.rows) == expected
    assert sure.metrics["undecided"] == every.metrics["undecided"] + len(every.rows) - len(expected)


def test_equal_and_unusable_samples_are_not_judged(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = ByLength()
    odd = ["same", "same", "", "text", "a <|im_end|> b", "text", "short", "a longer one"]
    # A batch of eight texts is four prompts.
    scripted(monkeypatch, odd, ["same"] * 8)
    made = run(tiny_model, tmp_path, judge)
    assert [(first, second) for _, first, second in judge.asked] == [("short", "a longer one")]
    assert [row["chosen"] for row in made.rows] == [[turn("assistant", "a longer one")]]
    counted = {"empty": 1, "special": 1, "equal": 5, "undecided": 0, "unfinished": 0}
    assert {name: made.metrics[name] for name in counted} == counted
    scripted(monkeypatch, ["same"] * 8, ["same"] * 8)
    with pytest.raises(UserError, match=r"ai_preferences made no row of 8 prompts \(.*equal 8.*; lower margin"):
        run(tiny_model, tmp_path, judge)


def test_a_probability_that_is_none_ends_the_stage(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="the judge by length gave a probability of"):
        run(tiny_model, tmp_path, ByLength(most=50.0))


def test_a_judge_is_needed_and_the_constitution_is_part_of_what_is_read() -> None:
    assert AIPreferences.needs_with({"judge": "self"}) == {"policy", "judge"}
    assert AIPreferences.reads({"constitution": "default"}) == {
        "constitution": read_constitution("default").fingerprint
    }
    with pytest.raises(UserError, match="no such file or folder"):
        AIPreferences.reads({"constitution": "nowhere.yaml"})
