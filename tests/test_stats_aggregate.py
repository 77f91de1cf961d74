"""Figures over tasks and seeds are those of their papers, and claim nothing that the seeds cannot show."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from harness.errors import UserError
from harness.stats._aggregate import interquartile_mean, probability_of_improvement
from harness.stats._crossed import paired_difference
from harness.stats._ranks import RankInterval, rank_intervals
from harness.stats._several import benjamini_hochberg, holm

score = st.floats(0, 1, allow_subnormal=False)
tables = st.integers(1, 5).flatmap(
    lambda seeds: st.dictionaries(
        st.text(max_size=3), st.lists(score, min_size=seeds, max_size=seeds), min_size=1, max_size=6
    )
)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_benjamini_hochberg_is_scipys_and_asks_less_than_holm(pvalues: list[float]) -> None:
    adjusted = benjamini_hochberg(pvalues)
    if pvalues:
        assert adjusted == pytest.approx(reference.false_discovery_control(pvalues), abs=1e-12)
    assert all(p <= a + 1e-12 for p, a in zip(pvalues, adjusted, strict=True))
    assert all(a <= h + 1e-12 for a, h in zip(adjusted, holm(pvalues), strict=True))


def test_benjamini_hochberg_worked_by_hand() -> None:
    # The third and fourth: min(0.03 · 4 / 3, 0.04 · 4 / 4) = 0.04; NaN is no test.
    found = benjamini_hochberg([0.01, 0.04, math.nan, 0.03, 0.005])
    assert [found[i] for i in (0, 1, 3, 4)] == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert math.isnan(found[2])
    with pytest.raises(UserError, match="p values lie in"):
        benjamini_hochberg([-0.1])


@settings(max_examples=40)
@given(tables)
def test_the_interquartile_mean_is_scipys_trimmed_mean_and_ignores_order(table: dict[str, list[float]]) -> None:
    found = interquartile_mean(table, resamples=100)
    everything = [v for row in table.values() for v in row]
    assert found.value == pytest.approx(reference.trim_mean(everything, 0.25), abs=1e-12)
    assert found.n == len(everything)
    turned = interquartile_mean(dict(reversed(table.items())), resamples=100)
    assert turned == found or (math.isnan(found.low) and math.isnan(turned.low))
    assert math.isnan(found.low) or found.low <= found.value <= found.high


def test_one_hopeless_task_moves_the_interquartile_mean_less_than_the_mean() -> None:
    table = {str(i): [0.5 + 0.01 * i, 0.5 - 0.01 * i] for i in range(7)} | {"broken": [0.0, 0.0]}
    found = interquartile_mean(table)
    # 16 scores, of which the 4 lowest (two zeros, 0.44, 0.45) and the 4 highest go.
    assert found.value == pytest.approx(np.mean([0.46, 0.47, 0.48, 0.49, 0.5, 0.5, 0.51, 0.52]))
    assert found.low > 0.46


def test_the_interquartile_mean_of_one_task_is_about_students_interval() -> None:
    # Two scores: nothing is trimmed, and what is resampled is their mean: 0.4, 0.5 or 0.6.
    found = interquartile_mean({"t": [0.4, 0.6]})
    assert found.value == pytest.approx(0.5)
    half = 0.1 * math.sqrt(2) * reference.t.ppf(0.975, 1) / reference.norm.ppf(0.975)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))
    assert found.stderr == pytest.approx(reference.sem([0.4, 0.6]), rel=0.05)


@pytest.mark.parametrize("table", [{"a": [0.1], "b": [0.9], "c": [0.4]}, {"a": [0.3, 0.3], "b": [0.7, 0.7]}])
def test_seeds_that_show_no_spread_give_no_interval(table: dict[str, list[float]]) -> None:
    found = interquartile_mean(table)
    assert found.value == pytest.approx(np.mean([v[0] for v in table.values()]))
    assert all(math.isnan(v) for v in (found.low, found.high, found.stderr))


def _improvement(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """By the statistic of Mann and Whitney."""
    return float(np.mean([reference.mannwhitneyu(a[t], b[t]).statistic / (len(a[t]) * len(b[t])) for t in a]))


@settings(max_examples=40)
@given(tables, st.integers(0, 3))
def test_the_probability_of_improvement_is_mann_whitneys_and_turns_with_its_sides(
    a: dict[str, list[float]], shift: int
) -> None:
    b = {t: [*row[shift % len(row) :], 0.5] for t, row in reversed(a.items())}
    found, turned = (probability_of_improvement(*sides, resamples=100) for sides in ((a, b), (b, a)))
    assert found.value == pytest.approx(_improvement(a, b), abs=1e-12)
    assert turned.value == pytest.approx(1 - found.value, abs=1e-12)
    assert found.n == len(a)
    if min(len(row) for row in [*a.values(), *b.values()]) < 2:
        assert math.isnan(found.low)
        assert math.isnan(found.stderr)
    else:
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low < found.high


def test_seeds_that_always_win_leave_the_doubt_of_their_number() -> None:
    a, b = {"x": [0.8, 0.9], "y": [0.7, 0.8, 0.9]}, {"x": [0.1, 0.2], "y": [0.3, 0.2]}
    found = probability_of_improvement(a, b)
    # Four independent pairs, all won: with a chance of 0.025^(1/4) that happens in 2.5 %.
    assert (found.low, found.value, found.high) == pytest.approx((0.025**0.25, 1.0, 1.0))
    expected = reference.binomtest(2, 4).proportion_ci(method="exact")
    split = probability_of_improvement({"x": a["x"], "y": b["y"]}, {"x": b["x"], "y": a["y"]})
    assert (split.low, split.value, split.high) == pytest.approx((expected.low, 0.5, expected.high))


@pytest.mark.parametrize(("tasks", "seeds"), [(1, 5), (3, 2), (8, 3)])
def test_intervals_cover_the_truth(tasks: int, seeds: int) -> None:
    """Simulated with a known truth: 95 % intervals hold it in at least 87 % of 200 draws."""
    random = np.random.default_rng(tasks)
    levels = np.linspace(0.2, 0.8, tasks)[:, None]
    many = np.sort(random.normal(levels, 0.05, (20_000, tasks, seeds)).reshape(20_000, -1), axis=1)
    cut = many.shape[1] // 4
    middle, ahead = many[:, cut : many.shape[1] - cut].mean(), reference.norm.cdf(0.03 / (0.05 * math.sqrt(2)))
    held = [0, 0]
    for number in range(200):
        a, b = (
            {str(t): list(row) for t, row in enumerate(random.normal(levels + shift, 0.05, (tasks, seeds)))}
            for shift in (0.0, -0.03)
        )
        whole = interquartile_mean(a, resamples=300, seed=number)
        held[0] += whole.low <= middle <= whole.high
        better = probability_of_improvement(a, b, resamples=300, seed=number)
        held[1] += better.low <= ahead <= better.high
    assert min(held) >= 0.87 * 200


def _entries(levels: dict[str, float], documents: int, random: np.random.Generator) -> dict[str, dict[str, float]]:
    hardness = random.normal(0, 0.3, documents)
    return {
        name: {str(d): float(v) for d, v in enumerate(level + hardness + random.normal(0, 0.05, documents))}
        for name, level in levels.items()
    }


def test_ranks_are_as_sure_as_the_differences() -> None:
    table = _entries({"worst": 0.0, "one": 0.5, "best": 1.0, "other": 0.5}, 60, np.random.default_rng(5))
    found = rank_intervals(table)
    assert list(found) == list(table)
    assert {n: (r.low, r.high) for n, r in found.items()} == {
        "worst": (4, 4), "one": (2, 3), "best": (1, 1), "other": (2, 3)
    }  # fmt: skip
    assert sorted(r.rank for r in found.values()) == [1, 2, 3, 4]
    assert all(r.compared == 3 for r in found.values())
    turned = rank_intervals(table, minimize=True)
    assert (turned["best"].low, turned["worst"].rank, turned["one"].high) == (4, 1, 3)
    assert rank_intervals(dict(reversed(table.items()))) == found


def test_ranks_follow_the_correction_for_several() -> None:
    table = _entries({str(i): 0.0 for i in range(5)} | {"a": 0.018}, 60, np.random.default_rng(8))
    pairs = [(n, paired_difference(table["a"], table[n]).p) for n in table if n != "a"]
    assert min(p for _, p in pairs) < 0.05
    assert rank_intervals(table)["a"].high > 6 - sum(p < 0.05 for _, p in pairs)


def test_entries_that_share_nothing_leave_each_others_ranks_open() -> None:
    long, short = {str(i): 0.9 + 0.001 * i for i in range(30)}, {str(i): 0.1 for i in range(20)}
    found = rank_intervals({"a": long, "b": short, "c": {"elsewhere": 1.0}, "d": {"3": 0.0}})
    assert found["a"] == RankInterval(1, 1, 3, 1, 0.95)
    assert found["b"] == RankInterval(2, 2, 4, 1, 0.95)
    assert found["c"] == RankInterval(1, 1, 4, 0, 0.95)
    # One shared document says nothing of others: a rank by it, no bound.
    assert found["d"] == RankInterval(1, 3, 4, 0, 0.95)


def test_rank_intervals_hold_the_true_ranks_at_once() -> None:
    """Simulated with a known truth: all intervals hold in at least 93 % of 150 draws."""
    random = np.random.default_rng(6)
    levels = {"a": 0.03, "b": 0.02, "c": 0.0, "d": 0.0}
    # Equal entries share the ranks 3 and 4; neither may be ruled out for them.
    truth = {"a": (1, 1), "b": (2, 2), "c": (3, 4), "d": (3, 4)}
    held = 0
    for _ in range(150):
        found = rank_intervals(_entries(levels, 40, random), resamples=300)
        held += all(found[n].low <= low and found[n].high >= high for n, (low, high) in truth.items())
    assert held >= 0.93 * 150


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean({}), "no tasks"),
        (lambda: interquartile_mean({"a": [1.0], "b": [1.0, 2.0]}), "same number of seeds"),
        (lambda: interquartile_mean({"a": [1.0], "b": []}), "task 'b': expected at least one value"),
        (lambda: interquartile_mean({"a": [math.nan]}), "task 'a': 1 of 1 values are NaN"),
        (lambda: interquartile_mean({"a": [1.0]}, resamples=5), "at least 100"),
        (lambda: rank_intervals({}), "at least one entry"),
        (lambda: rank_intervals({"a": {}, "b": {"x": 1.0}}), "nothing to rank 'a' by"),
        (lambda: probability_of_improvement({"a": [1.0]}, {"b": [1.0]}), "same tasks"),
        (lambda: probability_of_improvement({"a": [1.0]}, {"a": [1.0]}, confidence=95), "confidence lies between"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
