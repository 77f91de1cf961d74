"""Curves over budgets are the means that their definitions name, counted out, and unknown where nothing is known."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import UserError
from harness.stats._budget_curves import BudgetCurve, best_so_far, expected_best, expected_best_within, optimism
from harness.stats._means import interval

score = st.integers(0, 4).map(float)
"""Few values, so that ties are the rule."""
trial = st.tuples(st.one_of(score, st.just(math.nan)), score, st.integers(0, 3).map(float))


def _chosen(trials: Sequence[tuple[float, float, float]], minimize: bool, failed: float) -> float:
    """The test score of the trial with the best tuning score, the mean of those that share it."""
    known = [(t, shown) for t, shown, _ in trials if not math.isnan(t)]
    if not known:
        return failed
    best = (min if minimize else max)(t for t, _ in known)
    return float(np.mean([shown for t, shown in known if t == best]))


def _finished(order: Sequence[tuple[float, float, float]], budget: float) -> list[tuple[float, float, float]]:
    spent = list(itertools.accumulate(cost for *_, cost in order))
    return [t for t, total in zip(order, spent, strict=True) if total <= budget]


@settings(max_examples=60)
@given(st.lists(trial, min_size=1, max_size=6), st.booleans())
def test_expected_best_is_the_mean_over_all_sets_of_trials(
    trials: list[tuple[float, float, float]], minimize: bool
) -> None:
    scores, test, _ = zip(*trials, strict=True)
    found = expected_best(scores, test=test, failed=-1.0, minimize=minimize, resamples=100)
    for n, value in enumerate(found.value, start=1):
        sets = [_chosen(some, minimize, -1.0) for some in itertools.combinations(trials, n)]
        assert value == pytest.approx(np.mean(sets))
    assert found.budgets == tuple(range(1, len(trials) + 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(trial, min_size=1, max_size=5), st.booleans(), st.integers(0, 12))
def test_expected_best_within_is_the_mean_over_all_orders(
    trials: list[tuple[float, float, float]], minimize: bool, budget: int
) -> None:
    scores, test, costs = zip(*trials, strict=True)
    arguments = {"test": test, "failed": -1.0, "minimize": minimize, "resamples": 100}
    found = expected_best_within(scores, costs, [budget], **arguments).value[0]
    if budget > sum(costs):
        assert math.isnan(found)
        return
    orders = [_chosen(_finished(o, budget), minimize, -1.0) for o in itertools.permutations(trials)]
    assert found == pytest.approx(np.mean(orders))


def test_expected_best_worked_by_hand() -> None:
    # Of 3, 1, 2: pairs 31, 32, 12 have the best 3, 3, 2.
    found = expected_best([3.0, 1.0, 2.0])
    assert found.value == pytest.approx((2.0, 8 / 3, 3.0))
    assert expected_best([3.0, 1.0, 2.0], minimize=True).value == pytest.approx((2.0, 4 / 3, 1.0))


def test_within_worked_by_hand() -> None:
    # A budget of 3 and trials costing 3, 1, 2: alone 3; 1 then 2; 2 then 1; 1 and then 3 overruns; 2 and then 3 too.
    found = expected_best_within([9.0, 1.0, 5.0], [3.0, 1.0, 2.0], [3.0, 6.0, 7.0, 2.0])
    assert found.value[:2] == pytest.approx(((9 + 9 + 5 + 5 + 1 + 5) / 6, 9.0))
    # Nothing is known beyond all trials, nor where the dearest may come first and is not finished.
    assert math.isnan(found.value[2])
    assert math.isnan(found.value[3])
    assert expected_best_within([9.0, 1.0, 5.0], [3.0, 1.0, 2.0], [0.0], failed=4.0).value == (4.0,)


def test_equal_costs_make_both_curves_one() -> None:
    scores = list(np.random.default_rng(0).normal(size=20))
    by_trials = expected_best(scores)
    # Twenty trials are beyond counting out: orders are drawn.
    by_cost = expected_best_within(scores, [2.0] * 20, [2.0 * n for n in range(1, 21)], orders=8000)
    assert by_cost.value == pytest.approx(by_trials.value, abs=0.03)
    assert by_cost.value[-1] == pytest.approx(max(scores))
    assert np.allclose(by_cost.low, by_trials.low, atol=0.15)


def test_expected_best_is_unbiased_where_drawing_with_replacement_is_not() -> None:
    random = np.random.default_rng(3)
    truth = random.normal(size=(100_000, 6)).max(axis=1).mean()
    tables = [np.sort(random.normal(size=8)) for _ in range(400)]
    found = interval([expected_best(t, resamples=100).value[5] for t in tables], 0.999)
    assert found.low <= truth <= found.high
    shares = (np.arange(1, 9) / 8) ** 6 - (np.arange(8) / 8) ** 6
    assert interval([float(shares @ t) for t in tables], 0.999).high < truth


def test_the_band_knows_nothing_of_better_trials_that_were_not_seen() -> None:
    scores = list(np.random.default_rng(1).normal(size=32))
    found = expected_best(scores)
    known = [n for n, high in zip(found.budgets, found.high, strict=True) if not math.isnan(high)]
    assert known == [n for n in range(1, 33) if 0.5 ** (32 / n) < 0.025]
    assert all(low <= value for low, value in zip(found.low, found.value, strict=True))
    turned = expected_best([-s for s in scores], minimize=True)
    assert turned.value == pytest.approx([-v for v in found.value])
    assert [math.isnan(v) for v in turned.low] == [math.isnan(v) for v in found.high]
    one = expected_best([0.5])
    assert one.value == (0.5,)
    assert math.isnan(one.low[0])


def test_the_worse_side_of_the_band_holds() -> None:
    """Simulated with a known truth: the lower bound is above it in at most 6 % of 150 draws (2.5 % are nominal)."""
    random = np.random.default_rng(2)
    truth = np.maximum.accumulate(random.normal(size=(50_000, 16)), axis=1).mean(axis=0)
    lows = np.array([expected_best(random.normal(size=16), resamples=200, seed=i).low for i in range(150)])
    assert ((lows > truth).mean(axis=0)[1:] <= 0.06).all()


def test_best_so_far_goes_in_the_order_of_the_search() -> None:
    found = best_so_far([math.nan, 0.2, 0.1, 0.4, 0.4], [1, 2, 3, 4, 5], test=[9, 0.3, 0.9, 0.5, 0.1], failed=0.0)
    assert found.value == (0.0, 0.3, 0.3, 0.5, 0.5)
    assert found.budgets == (1, 3, 6, 10, 15)
    assert all(math.isnan(v) for v in (*found.low, *found.high))
    assert best_so_far([3.0, 1.0, 2.0], minimize=True).value == (3.0, 1.0, 1.0)


def test_a_curve_depends_on_its_input_alone() -> None:
    test = np.array([0.1, 0.2, 0.3])
    first, second = (expected_best([math.nan, 0.5, 0.5], test=test, failed=0.0) for _ in range(2))
    assert first == second or str(first) == str(second)
    assert test.tolist() == [0.1, 0.2, 0.3]

    def of(order: Sequence[int]) -> BudgetCurve:
        return expected_best([[0.5, 0.7, 0.7][i] for i in order], test=[[0.1, 0.9, 0.3][i] for i in order])

    assert of([0, 1, 2]).value == pytest.approx(of([2, 1, 0]).value)


def test_optimism_is_what_choosing_by_noise_costs() -> None:
    random = np.random.default_rng(4)
    tuning, test = {}, {}
    for search in range(40):
        looks = random.normal(0, 0.1, 8)
        tuning[str(search)], test[str(search)] = float(looks.max()), float(random.normal(0, 0.1))
    found = optimism(tuning, test)
    # The expected largest of eight standard normals is 1.4236.
    assert found.low <= 0.14236 <= found.high
    assert found.low > 0
    turned = optimism({k: -v for k, v in tuning.items()}, {k: -v for k, v in test.items()}, minimize=True)
    assert turned.value == pytest.approx(found.value)
    assert math.isnan(optimism({"a": 1.0}, {"a": 0.5}).low)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_best([]), "at least one, got 0, 0"),
        (lambda: expected_best([1.0], test=[1.0, 2.0]), "got 2, 1"),
        (lambda: expected_best([1.0, math.nan, math.nan]), "2 of 3 trials failed: say with `failed`"),
        (lambda: expected_best([1.0], failed=math.nan), "when all trials failed: 1 of 1 values are NaN"),
        (lambda: expected_best([math.inf]), "scores: 1 of 1 values are NaN or infinite"),
        (lambda: expected_best([1.0], test=[math.nan]), "test scores of trials that did not fail"),
        (lambda: expected_best([1.0, 2.0], resamples=5), "at least 100"),
        (lambda: expected_best_within([1.0, 2.0], [1.0], [1.0]), "a cost of zero or more for each of 2 trials"),
        (lambda: expected_best_within([1.0], [-1.0], [1.0]), "a cost of zero or more"),
        (lambda: expected_best_within([1.0], [1.0], []), "budgets: expected at least one value"),
        (lambda: best_so_far([1.0], [math.nan]), "costs: 1 of 1 values"),
        (lambda: optimism({"a": 1.0}, {"b": 1.0}), "same searches"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
