"""What tuning is worth at each budget: the best score one gets with n trials, or with so much compute.

Three curves, which mean different things:

- `expected_best`: random search with n trials, averaged over which trials those are. Recipes tuned with unequal numbers
  of trials compare at an equal n.
- `expected_best_within`: the same for a budget of compute (device seconds, tokens). A recipe with cheap trials has made
  more of them by then.
- `best_so_far`: what one search found, in the order it went. An adaptive sampler (TPE) chooses a trial by those before
  it, so its trials are no random draw, averaging over orders would describe no search, and one search shows no spread.

Settings are chosen by the tuning score. With `test`, the curve is the test score of what tuning chose: tuning scores of
the best of many are too good (`optimism`), test scores are not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import UserError
from harness.stats._means import interval
from harness.stats._trials import ROUNDING, Ints, Trials
from harness.stats._types import Array, Interval, check_confidence, finite

__all__ = ["BudgetCurve", "best_so_far", "expected_best", "expected_best_within", "optimism"]

_COUNTED_OUT = 12
"""Trials up to which every set of them is counted (2^12); beyond, orders are drawn."""
_AT_ONCE = 500_000
"""Places in orders that are looked at together."""


@dataclass(frozen=True)
class BudgetCurve:
    """The score at each budget, with a band for other trials of the same search.

    `budgets` are numbers of trials or amounts of compute, as the function says. `low` and `high` bound each point by
    itself, not the curve as a whole; NaN is unknown. `trials` is how many the curve was made of.
    """

    budgets: tuple[float, ...]
    low: tuple[float, ...]
    value: tuple[float, ...]
    high: tuple[float, ...]
    trials: int
    confidence: float


def expected_best(
    scores: Sequence[float],
    *,
    test: Sequence[float] | None = None,
    failed: float | None = None,
    minimize: bool = False,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> BudgetCurve:
    """The expected score of the best of n trials of random search, for n from 1 to the number of trials.

    Unbiased: the mean over all sets of n of the N trials, E = sum over i of C(i-1, n-1) / C(N, n) · x_(i), scores in
    ascending order (Dodge et al. 2019, "Show your work", arXiv 1909.03004, asked the question; Tang et al. 2020, arXiv
    2004.13705, and Dodge et al. 2021, arXiv 2110.00613, show that its estimator, which draws with replacement,
    promises too little). Trials must be independent draws of the same search.

    The band is a percentile bootstrap of the trials. It cannot know how much better trials come that were not seen: the
    best of N bounds even the median of the best of n only while 0.5^(N/n) is below half the level (Lourie et al. 2023,
    "Show your work with confidence", arXiv 2311.09480), at 95 % up to n = N / 5.3. Beyond, the bound on the better side
    is NaN, unknown. In simulation (8 to 32 trials, normal and skewed scores) a bootstrap's was wrong there in 6 to 66 %
    of the draws. Where it is given it was in up to 22 %, the bound on the worse side in up to 5 % from n = 2 on: take
    the band for a sketch.

    Args:
        scores: of each trial on the tuning documents; NaN for one that failed, which counts as a trial.
        test: of each trial on other documents: the curve shows those of the trial with the best tuning score, the mean
            where several are equally good.
        failed: what one has when all n trials failed (the score of the base model, on the curve's own documents).
        minimize: lower is better.
        resamples: bootstrap replicates.
        seed: of the resampling; equal input gives an equal curve.

    Raises:
        UserError: no trials, lengths that differ, infinite scores, test scores missing, `failed` needed and not given.
    """
    check_confidence(confidence)
    trials = Trials.of(scores, None, test, failed, minimize)
    n = trials.size
    value = trials.best_of(np.ones((1, n), dtype=np.int64))[0]
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_enough(resamples))
    low, high = _band(trials.best_of(drawn), np.arange(1, n + 1) / n, n, confidence, minimize)
    return BudgetCurve(tuple(map(float, range(1, n + 1))), low, tuple(value.tolist()), high, n, confidence)


def expected_best_within(
    scores: Sequence[float],
    costs: Sequence[float],
    budgets: Sequence[float],
    *,
    test: Sequence[float] | None = None,
    failed: float | None = None,
    minimize: bool = False,
    confidence: float = 0.95,
    resamples: int = 1000,
    orders: int = 2000,
    seed: int = 0,
) -> BudgetCurve:
    """The expected score of the best trial that random search finishes within each budget of compute.

    Trials are taken in random order without replacement and the search stops at the first that would overrun the
    budget: what it began is lost. The mean is over all orders: exact up to 12 trials, over drawn orders beyond. NaN
    where the data cannot say: more than all trials cost together, or so little that in some order no trial is finished
    (unless `failed` says what one has then).

    The band is a bootstrap of the trials with their costs, each resample averaged over 32 orders; as in
    `expected_best`, its better side is unknown (NaN) from 1 / 5.3 of the cost of all trials on.

    Args:
        scores: of each trial on the tuning documents; NaN for one that failed, which costs what it cost.
        costs: what each trial spent, in one unit (device seconds, tokens).
        budgets: where to look, in the unit of the costs.
        test: as in `expected_best`.
        failed: what one has when no trial has been finished, or all have failed (the base model's score).
        minimize: lower is better.
        resamples: bootstrap replicates.
        orders: drawn orders beyond 12 trials.
        seed: of the resampling and the orders; equal input gives an equal curve.

    Raises:
        UserError: as `expected_best`; a cost that is negative or not finite, no budgets.
    """
    check_confidence(confidence)
    trials = Trials.of(scores, costs, test, failed, minimize)
    limits = finite(np.asarray(budgets, dtype=np.float64).reshape(-1), "budgets")
    random = np.random.default_rng(seed)
    if trials.size <= _COUNTED_OUT:
        value = trials.over_sets(limits)
    else:
        value = trials.within(_orders(np.arange(trials.size), _enough(orders), random), limits)
    left, parts = _enough(resamples), []
    while left > 0:
        many = min(left, max(1, _AT_ONCE // (32 * trials.size)))
        drawn = [_orders(random.integers(trials.size, size=trials.size), 32, random) for _ in range(many)]
        parts.append(trials.within(np.stack(drawn), limits))
        left -= many
    draws = np.concatenate(parts)
    total = float(trials.costs.sum())
    unknown = limits > total * (1 + ROUNDING)
    if math.isnan(trials.failed):
        unknown |= limits * (1 + ROUNDING) < trials.costs.max()
    value[unknown], draws[:, unknown] = math.nan, math.nan
    share = limits / total if total > 0 else np.ones_like(limits)
    low, high = _band(draws, share, trials.size, confidence, minimize)
    return BudgetCurve(tuple(limits.tolist()), low, tuple(value.tolist()), high, trials.size, confidence)


def best_so_far(
    scores: Sequence[float],
    costs: Sequence[float] | None = None,
    *,
    test: Sequence[float] | None = None,
    failed: float | None = None,
    minimize: bool = False,
) -> BudgetCurve:
    """The best score after each trial of one search, in the order it went, of any sampler.

    What happened, not what to expect: another search of the same recipe would go otherwise, and how far is not known
    from one, so `low` and `high` are NaN. Its last point is the score of the chosen setting.

    Args:
        scores: of each trial on the tuning documents, in the order of the search; NaN for one that failed.
        costs: what each trial spent: `budgets` are then their running sums, else the numbers of trials.
        test: of each trial on other documents: the curve shows those of the first trial with the best tuning score.
        failed: what one has while all trials so far have failed.
        minimize: lower is better.

    Raises:
        UserError: as `expected_best_within`.
    """
    trials = Trials.of(scores, costs, test, failed, minimize)
    n = trials.size
    budgets = np.cumsum(trials.costs)
    value = trials.running(np.arange(n)[None])[0]
    unknown = (math.nan,) * n
    return BudgetCurve(tuple(budgets.tolist()), unknown, tuple(value.tolist()), unknown, n, math.nan)


def optimism(
    tuning: Mapping[str, float], test: Mapping[str, float], confidence: float = 0.95, *, minimize: bool = False
) -> Interval:
    """How much better the chosen settings look on the documents they were chosen by than on others: mean over searches.

    Tuning minus test score (test minus tuning with `minimize`), Student's t interval over the searches; above zero is
    the price of choosing by a noisy score. It holds the difference in difficulty of the two halves of the documents as
    well: subtract that of a model that was not tuned (the base model) from each where they differ. One search has NaN
    bounds.

    Args:
        tuning: search (recipe, model) → the tuning score of its chosen setting.
        test: the same searches → the chosen setting's score on other documents.
        minimize: lower is better.

    Raises:
        UserError: the searches differ, none is given, a score that is not finite.
    """
    if tuning.keys() != test.keys():
        raise UserError(f"expected the same searches on both sides, got {sorted(tuning)} and {sorted(test)}")
    sign = -1.0 if minimize else 1.0
    return interval([sign * (tuning[s] - test[s]) for s in sorted(tuning)], confidence)


def _orders(trials: Ints, count: int, random: np.random.Generator) -> Ints:
    """So many random orders of these trials, [count, trials]."""
    return random.permuted(np.broadcast_to(trials, (count, trials.size)), axis=1)


def _enough(replicates: int) -> int:
    if replicates < 100:
        raise UserError(f"expected at least 100 bootstrap resamples and orders, got {replicates}")
    return replicates


def _band(
    draws: Array, share: Array, trials: int, confidence: float, minimize: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The percentile bounds of each column of draws, where it is a share of all trials; one trial shows no spread."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    if trials < 2:
        low[:], high[:] = math.nan, math.nan
    better = low if minimize else high
    better[share * math.log(2 / (1 - confidence)) > math.log(2)] = math.nan
    return tuple(low.tolist()), tuple(high.tolist())
