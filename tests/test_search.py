"""Suggestions are a pure function of the history, whatever was killed and in whatever order trials ended."""

import math
import random

import pytest

from harness.search import Past, best_trial, suggest
from harness.suite import Space

SPACE = {
    "dpo.beta": Space(low=0.01, high=0.5, log=True),
    "dpo.loss_type": Space(values=("sigmoid", "ipo")),
    "dpo.steps": Space(low=4, high=32, integer=True),
}


def _value(settings: dict[str, object]) -> float:
    return -abs(math.log(float(settings["dpo.beta"])) - math.log(0.1)) - 0.1 * (settings["dpo.loss_type"] == "ipo")


def _sweep(sampler: str, trials: int, batch: int, shuffle: random.Random | None = None) -> list[Past]:
    done: list[Past] = []
    for start in range(0, trials, batch):
        seen = list(done)
        if shuffle is not None:
            shuffle.shuffle(seen)
        now: list[Past] = []
        for number in range(start, min(start + batch, trials)):
            settings = suggest(
                SPACE, [*seen, *now], number, seed="suite/cell", sampler=sampler, directions=["maximize"]
            )
            now.append(Past(number, settings, "running"))
        done += [Past(p.number, p.settings, "complete", (_value(dict(p.settings)),)) for p in now]
    return done


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_rebuilt_histories_give_the_same_trials(sampler: str) -> None:
    first = _sweep(sampler, 14, 2)
    again = _sweep(sampler, 14, 2, random.Random(3))
    assert [p.settings for p in first] == [p.settings for p in again]
    assert len({p.settings["dpo.beta"] for p in first}) == 14


def test_cells_draw_differently() -> None:
    one, other = (suggest(SPACE, [], 0, seed=s, sampler="tpe", directions=["maximize"]) for s in ("a", "b"))
    assert one != other


def test_settings_keep_their_space() -> None:
    for past in _sweep("tpe", 12, 3):
        assert 0.01 <= float(past.settings["dpo.beta"] or 0) <= 0.5
        assert isinstance(past.settings["dpo.steps"], int)
        assert past.settings["dpo.loss_type"] in ("sigmoid", "ipo")


def test_failed_trials_are_passed_over_and_nothing_to_search_is_nothing() -> None:
    history = [Past(0, {"dpo.beta": 0.1, "dpo.loss_type": "ipo", "dpo.steps": 4}, "infeasible")]
    assert suggest(SPACE, history, 1, seed="s", sampler="tpe", directions=["maximize"])
    assert suggest({}, [], 0, seed="s", sampler="tpe", directions=["maximize"]) == {}


def test_the_best_trial_is_feasible_first_then_best_then_earliest() -> None:
    def past(number: int, value: float, broken: float = 0.0) -> Past:
        return Past(number, {"n": number}, "complete", (value,), {"kl": broken})

    trials = [past(0, 0.5), past(1, 0.9, broken=2.0), past(2, 0.7), past(3, 0.7)]
    best = best_trial(trials, ["maximize"])
    assert best is not None
    assert best.number == 2
    assert (best_trial(trials, ["minimize"]) or best).number == 0
    assert best_trial([Past(0, {}, "failed")], ["maximize"]) is None
    only_broken = best_trial([past(0, 0.9, broken=3.0), past(1, 0.1, broken=1.0)], ["maximize"])
    assert only_broken is not None
    assert only_broken.number == 1
