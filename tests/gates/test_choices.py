"""Constant choice and chance: what fires, what does not, and with which figures."""

import pytest
from statsmodels.stats.proportion import proportion_confint

from harness.gates._evidence import Evidence
from harness.store import Store
from tests.gates.stores import Answers, N, answered, answers, ask, said, texts


def _mmlu(evidence: Evidence, make: Answers) -> Evidence:
    return answered(evidence, "mmlu", "acc", make)


@pytest.mark.parametrize(("times", "severity"), [(40, "invalid"), (38, "invalid"), (37, "warning"), (28, "warning")])
def test_one_answer_to_most_documents(evidence: Evidence, times: int, severity: str) -> None:
    store = _mmlu(evidence, answers(0, lambda i: "A" if i < times else "B"))
    found, _ = said(store, "constant choice", "mmlu")
    # The untouched model once, two recipes with two seeds each.
    assert [(f.recipe, f.seed) for f in found] == [("base", None), ("dpo", 0), ("dpo", 1), ("ppo", 0), ("ppo", 1)]
    assert {f.severity for f in found} == {severity}
    low, _ = proportion_confint(times, N, method="wilson")
    assert dict(found[0].figures) == pytest.approx({"share": times / N, "low": low, "expected": 0.25, "n": N})
    assert f"answers “A” to {times} of 40 documents" in found[0].message
    assert "right for 10 (25%)" in found[0].message


def test_a_preference_that_chance_explains_is_no_flag(evidence: Evidence) -> None:
    # 26 of 40: the bound is 0.495, below one half. 27 of 40: 0.52.
    found, open_ = said(_mmlu(evidence, answers(0, lambda i: "A" if i < 26 else "BCD"[i % 3])), *_MMLU)
    assert found == open_ == []


_MMLU = ("constant choice", "mmlu")


def test_an_answer_that_is_mostly_right_is_no_constant(evidence: Evidence) -> None:
    def skewed(recipe: str, seed: int):  # type: ignore[no-untyped-def]  # noqa: ANN202  # as `answers` makes it
        for i in range(N):
            expected = "A" if i < 36 else "B"
            yield f"{i:016x}", float(i < 36), "A", expected, "?"

    # All forty answers are A and 36 of them are right: Wilson's bounds 0.912 and 0.961 overlap.
    assert said(_mmlu(evidence, skewed), *_MMLU) == ([], [])


def test_where_the_same_choice_is_always_right_nothing_can_be_said(evidence: Evidence) -> None:
    def first(recipe: str, seed: int):  # type: ignore[no-untyped-def]  # noqa: ANN202  # as `answers` makes it
        for i in range(N):
            yield f"{i:016x}", float(i > 2), "A" if i > 2 else "B", "A", "?"

    found, open_ = said(_mmlu(evidence, first), *_MMLU)
    assert found == []
    assert {u.why for u in open_} == {"the same choice is right in every document, so a constant one looks right"}


def test_written_answers_that_are_all_the_same(evidence: Evidence) -> None:
    def empty(recipe: str, seed: int):  # type: ignore[no-untyped-def]  # noqa: ANN202  # as `answers` makes it
        for document, _, text, expected, prompt in texts(28)(recipe, seed):
            yield (document, 0.0, "" if recipe == "ppo" else text, expected, prompt)

    store = answered(evidence, "gsm8k", "exact_match_flexible", empty)
    found, _ = said(store, "constant choice", "gsm8k")
    assert [(f.recipe, f.severity) for f in found] == [("ppo", "invalid")] * 2
    assert "answers “(nothing)” to 40 of 40" in found[0].message


def test_a_score_within_the_interval_of_chance(evidence: Evidence) -> None:
    found, _ = said(_mmlu(evidence, answers(10)), "at chance", "mmlu")
    assert [(f.recipe, f.severity, f.seed) for f in found] == [(r, "warning", None) for r in ("base", "dpo", "ppo")]
    base = found[0].figures
    assert (base["value"], base["chance"], base["n"]) == (0.25, 0.25, 40)
    assert base["low"] < 0.25 < base["high"]
    assert "4 choices seen in the answers" in found[0].message


def test_a_score_below_chance_is_told_from_one_at_chance(evidence: Evidence) -> None:
    found, _ = said(_mmlu(evidence, answers(0)), "at chance", "mmlu")
    # 0 of 40: Wilson's upper bound is 0.0876.
    assert found[0].message.startswith("Below chance: acc 0.000 [0.000, 0.088]")


def test_a_score_above_chance_is_no_flag(evidence: Evidence) -> None:
    assert said(evidence, "at chance", "mmlu") == ([], [])


def test_shares_of_probability_have_neither_choice_nor_chance(scenario: Store) -> None:
    for gate in ("constant choice", "at chance"):
        found, open_ = ask(scenario, gate, "truthfulqa_mc2")
        assert found == []
        assert len({u.why for u in open_}) == 1
        assert "not" in open_[0].why
