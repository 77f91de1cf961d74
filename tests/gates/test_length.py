"""Output length drift: the ratio to the base model with its interval, worked by hand where it can be."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from harness.gates._evidence import Asked, Evidence
from harness.gates._length import ALIKE
from tests.gates.stores import said

GATE = "output length drift"


def _gold(evidence: Evidence, base: list[float], ppo: list[float]) -> Evidence:
    """The gold answers of base and ppo have these lengths, document by document."""

    def lengths(one: Asked) -> Asked:
        if one.task != "gold" or one.recipe == "dpo":
            return one
        mine = pl.Series("score", base if one.recipe == "base" else ppo)
        rows = {seed: part.filter(pl.col("metric") == "length").with_columns(mine) for seed, part in one.seeds.items()}
        return replace(one, seeds=rows)

    return replace(evidence, asked=[lengths(one) for one in evidence.asked])


def test_answers_three_times_as_long(evidence: Evidence) -> None:
    random = np.random.default_rng(1)
    base = random.integers(10, 31, 40).astype(float)
    ppo = 3 * base + random.integers(-6, 7, 40)
    store = _gold(evidence, base.tolist(), ppo.tolist())
    found, _ = said(store, GATE, "gold")
    assert [(f.recipe, f.severity, f.seed) for f in found] == [("ppo", "warning", None)]
    figures = found[0].figures
    ratio = ppo.mean() / base.mean()
    assert figures["ratio"] == pytest.approx(ratio)
    # Both seeds answered alike: what is left is the ratio estimator's error over documents, by the textbook.
    error = (ppo - ratio * base).std(ddof=1) / np.sqrt(40) / base.mean()
    assert (figures["high"] - figures["low"]) / 2 == pytest.approx(2.02 * error, rel=0.1)
    assert f"{ratio:.2f} times" in found[0].message
    assert "tokens" in found[0].message


@pytest.mark.parametrize(("factor", "fires"), [(0.5, True), (0.9, False), (1.0, False), (1.2, False), (2.0, True)])
def test_only_what_lies_wholly_outside_the_limits(evidence: Evidence, factor: float, fires: bool) -> None:
    base = [20.0 + i % 7 for i in range(40)]
    ppo = [factor * b + (-1) ** i for i, b in enumerate(base)]
    found, _ = said(_gold(evidence, base, ppo), GATE, "gold")
    assert [f.recipe for f in found] == (["ppo"] if fires else [])
    if fires:
        assert found[0].figures["low"] > ALIKE[1] or found[0].figures["high"] < ALIKE[0]
        assert ("longer" in found[0].message) == (factor > 1)


def test_a_ratio_that_the_documents_do_not_hold_is_no_flag(evidence: Evidence) -> None:
    # Twice as long on average, by one answer of forty.
    base, ppo = [20.0] * 40, [20.0] * 39 + [820.0]
    assert said(_gold(evidence, base, ppo), GATE, "gold")[0] == []


def test_lengths_that_do_not_vary_have_no_interval(evidence: Evidence) -> None:
    found, open_ = said(_gold(evidence, [20.0] * 40, [64.0] * 40), GATE, "gold")
    assert found == []
    assert [u.recipe for u in open_] == ["ppo"]
    assert "3.20 times" in open_[0].why


def test_empty_answers_of_the_base_model_give_no_ratio(evidence: Evidence) -> None:
    found, open_ = said(_gold(evidence, [0.0] * 40, [64.0] * 40), GATE, "gold")
    assert found == []
    assert {u.why for u in open_} == {"all answers of the base model are empty"}


def test_without_a_base_model_there_is_nothing_to_compare(evidence: Evidence) -> None:
    alone = replace(evidence, asked=[one for one in evidence.asked if one.recipe != "base"])
    found, open_ = said(alone, GATE, "gold")
    assert found == []
    assert {u.why for u in open_} == {"the base model was not measured on it"}
