"""What data of a given size can resolve: the least effect they find, and the documents and seeds that an effect needs.

Of planning, not of testing: the power to find the effect that was just measured is the p value in other words (Hoenig &
Heisey 2001, "The abuse of power", The American Statistician 55). Name the effect that would matter, then ask.

Assumed throughout: the estimate divided by its standard error follows Student's t, noncentral where there is an effect
(Cohen 1988, "Statistical power analysis for the behavioral sciences", chapter 2), so documents and seeds are
independent draws and their means near normal; the variances of the data to come are those named; the test is two-sided.
For one of several comparisons name the level that the correction leaves it, at worst `alpha / comparisons`
(Bonferroni).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq  # type: ignore[import-untyped]  # scipy ships no types
from scipy.special import gammaincinv, ndtr, stdtrit  # type: ignore[import-untyped]  # the same

from harness.errors import UserError
from harness.stats._clusters import between_and_within, group_numbers
from harness.stats._parts import alike, reach
from harness.stats._tables import paired_tables
from harness.stats._types import Array, Difference, Scores, students_t

__all__ = ["Variances", "detectable", "minimum_detectable_effect", "needed", "needed_groups", "variances"]

_MOST = 2**20
"""Documents beyond which nobody measures: an effect that needs more is out of reach."""
_DRAWS = 2048
_Z = NormalDist().inv_cdf(0.975)
"""Of the bound for what was not seen."""


@dataclass(frozen=True)
class Variances:
    """What a difference's error is made of.

    `document` is the variance over documents of the difference between a and b, in score². `seeds` are the variances
    over trainings of the mean score of a and of b; 0 for a model that is not trained (the base model), NaN where one
    seed tells nothing of it. With `groups` of documents, `document` is the variance within a group and `group` that of
    the groups' true means. `unseen`: all documents differed by the same, and these are what may have been missed.
    """

    document: float
    seeds: tuple[float, float]
    group: float = 0.0
    groups: int = 0
    unseen: bool = False


def minimum_detectable_effect(stderr: float, freedom: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """The least true effect that a two-sided t test finds with this probability; in the unit of `stderr`.

    Args:
        stderr: the standard error of the estimate; NaN gives NaN.
        freedom: its degrees of freedom, infinite for a known one.
        alpha: the level of the test.
        power: the wanted chance to find the effect, above `alpha`.

    Raises:
        UserError: a negative stderr, freedom that is not above zero, not 0 < alpha < power < 1.
    """
    _check(alpha, power)
    if stderr < 0 or not freedom > 0:
        raise UserError(f"expected a stderr of zero or more and freedom above zero, got {stderr} and {freedom}")
    return stderr * _noncentrality(freedom, alpha, power)


def detectable(difference: Difference, alpha: float = 0.05, power: float = 0.8) -> float:
    """The least true effect that a comparison like this one would have found with this probability.

    The freedom is the one whose t interval is as wide as the difference's own, so that few seeds count as they do
    there. NaN where the difference has no interval.

    Args:
        difference: gives the standard error and the width of the interval; its value does not matter.
        alpha: the level of the test.
        power: the wanted chance to find the effect.

    Raises:
        UserError: not 0 < alpha < power < 1.
    """
    _check(alpha, power)
    if math.isnan(difference.stderr) or math.isnan(difference.low):
        return math.nan
    if difference.stderr == 0:
        return 0.0
    wide = (difference.high - difference.low) / 2 / difference.stderr
    return minimum_detectable_effect(difference.stderr, _freedom(wide, difference.confidence), alpha, power)


def variances(a: Scores, b: Scores, groups: Mapping[str, str] | None = None) -> Variances:
    """The parts of the error of `paired_difference(a, b)`, or with groups of `cluster_difference`, for `needed`.

    The part of the documents holds what is left of the noise of a training on a document after its seeds are averaged,
    so it is a little too large for plans with more seeds; that of the seeds holds the same averaged over documents.
    Of two or three seeds it is very uncertain: plan with the parts of several comparisons.

    Where all documents differ by the same, the variance is not 0 but unseen: by Wilson's bound (1927, JASA 22) a share
    of z² / (n + z²) of the others may differ by as much as the scores allow. n counts groups where there are any, as in
    the intervals. Where nothing tells how far scores reach (all of both sides are equal, and not in [0, 1]), it is NaN.

    Args:
        a: document → score, or scores over its seeds.
        b: the same documents; at least two.
        groups: document → the group it belongs to, two or more.

    Raises:
        UserError: as `paired_difference` and `cluster_difference`, or fewer than two documents or groups.
    """
    documents, first, second = paired_tables(a, b)
    if len(documents) < 2:
        raise UserError("one document tells nothing of the variance over documents: measure two or more")
    apart = first.mean(axis=1) - second.mean(axis=1)
    seeds = [math.nan if side.shape[1] < 2 else float(side.mean(axis=0).var(ddof=1)) for side in (first, second)]
    of_seeds = seeds[0], seeds[1]
    numbers = None if groups is None else group_numbers(documents, groups)
    count = 0 if numbers is None else int(numbers.max()) + 1
    if count == 1:
        raise UserError("one group tells nothing of the variance over groups: measure two or more")
    if alike(apart):
        least, most = reach(first, second)
        far = max(float(apart.mean()) - least, most - float(apart.mean()))
        missed = _Z**2 / ((count or len(documents)) + _Z**2) * far**2
        parts = (0.0, missed) if count else (missed, 0.0)
        return Variances(parts[0], of_seeds, parts[1], count, unseen=True)
    if numbers is None:
        return Variances(float(apart.var(ddof=1)), of_seeds)
    between, within = between_and_within(apart, numbers)
    return Variances(within, of_seeds, between, count)


def needed(
    effect: float,
    parts: Variances,
    seeds: Sequence[int] = (2, 3, 4, 5, 8),
    alpha: float = 0.05,
    power: float = 0.8,
) -> Mapping[int, int | None]:
    """How many documents resolve an effect with this probability, for each number of seeds (trainings of a and of b).

    The standard error is sqrt(document / documents + (seeds_a + seeds_b) / seeds); with groups, whose number stays and
    which share the documents equally, group / groups is added below the root. The test is that of
    `paired_difference`: its variances are estimates, chi-squared about the true ones, and each part has a Student's t
    of its own, weighted by its share (Cochran 1964, Biometrics 20); without variation over seeds that is the t test. In
    simulation such plans resolved the effect in 77 to 86 % of the draws where 80 % were asked for. None where no number
    of documents (up to 2^20) does: documents do not help against the variance over seeds or groups, and two seeds have
    a large t.

    Args:
        effect: the true difference to find, in the unit of the scores; its sign does not matter.
        parts: from `variances`, or assumed.
        seeds: the numbers of seeds to ask for; 1 only where neither side varies over them.
        alpha: the level of the test.
        power: the wanted chance to find the effect.

    Raises:
        UserError: an effect of zero, a variance that is unknown or negative, one seed for a model that varies over
            seeds, not 0 < alpha < power < 1.
    """
    _check_plan(effect, parts, seeds, alpha, power)
    return {s: _documents(effect, parts, s, alpha, power) for s in seeds}


def needed_groups(
    effect: float,
    parts: Variances,
    per_group: float,
    seeds: Sequence[int] = (2, 3, 4, 5, 8),
    alpha: float = 0.05,
    power: float = 0.8,
) -> Mapping[int, int | None]:
    """How many groups of documents resolve an effect, as `needed` says how many documents do.

    The variance of the mean is (group + document / per_group) / groups, the cluster-robust one of equal groups, with
    Student's t at groups - 1 degrees of freedom (`harness.stats._clusters` has the sources).

    Args:
        effect: as in `needed`.
        parts: from `variances` with groups, or assumed.
        per_group: documents of each group.
        seeds: as in `needed`.
        alpha: the level of the test.
        power: the wanted chance to find the effect.

    Raises:
        UserError: as `needed`, or less than one document in a group.
    """
    _check_plan(effect, parts, seeds, alpha, power)
    if not per_group >= 1:
        raise UserError(f"expected one document or more in a group, got {per_group}")
    variance = parts.group + parts.document / per_group

    def least(count: int) -> int | None:
        return _least(lambda n: _chance(effect, variance / n, n - 1, parts.seeds, count, alpha) >= power, 2)

    return {count: least(count) for count in seeds}


def _check_plan(effect: float, parts: Variances, seeds: Sequence[int], alpha: float, power: float) -> None:
    _check(alpha, power)
    if effect == 0 or not math.isfinite(effect):
        raise UserError(f"expected an effect other than zero, got {effect}: no data resolve nothing")
    if any(math.isnan(v) for v in parts.seeds):
        raise UserError(
            "the variance over seeds is unknown from one seed: measure two, or say 0 for a model that is not trained"
        )
    if not all(0 <= v < math.inf for v in (parts.document, parts.group, *parts.seeds)):
        raise UserError(f"variances are finite and not negative, got {parts}")
    if any(s < (2 if any(parts.seeds) else 1) for s in seeds):
        raise UserError(f"a model that varies over seeds needs two or more to show it, got {list(seeds)}")


def _documents(effect: float, parts: Variances, seeds: int, alpha: float, power: float) -> int | None:
    if not parts.groups:
        return _least(lambda n: _chance(effect, parts.document / n, n - 1, parts.seeds, seeds, alpha) >= power, 2)
    of_groups, freedom = parts.group / parts.groups, parts.groups - 1
    return _least(
        lambda n: _chance(effect, of_groups + parts.document / n, freedom, parts.seeds, seeds, alpha) >= power,
        parts.groups,
    )


def _least(found: Callable[[int], bool], first: int) -> int | None:
    """The least number from `first` on that does; None where none up to `_MOST` does."""
    few, many = first - 1, first
    while not found(many):
        if many >= _MOST:
            return None
        # Small steps: with few seeds the chance may fall again with more documents, the seeds' large t weighing more.
        few, many = many, max(many + 1, many * 5 // 4)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if found(middle) else (middle, many)
    return many


def _chance(
    effect: float, of_sample: float, freedom: int, of_seeds: tuple[float, float], seeds: int, alpha: float
) -> float:
    """The chance that the difference is found, over what its variances may be estimated as.

    Args:
        effect: the true one.
        of_sample: the variance of the mean that is the documents' or groups'.
        freedom: the degrees of freedom it is estimated with.
        of_seeds: of a training of a and of b.
        seeds: trainings of each.
        alpha: the level.
    """
    true = math.sqrt(of_sample + sum(of_seeds) / seeds)
    if true == 0:
        return 1.0
    estimated, half_of_seeds = _of_seeds(of_seeds, seeds, alpha)
    sample = of_sample * _chi_squares(freedom, 0)
    half = (students_t(1 - alpha, freedom) * sample + half_of_seeds) / np.sqrt(sample + estimated)
    return float((ndtr((effect - half) / true) + ndtr((-effect - half) / true)).mean())


@functools.lru_cache(maxsize=64)
def _of_seeds(parts: tuple[float, float], seeds: int, alpha: float) -> tuple[Array, Array]:
    """What the seeds' variance may be estimated as, and the same times its t; the same for any number of documents."""
    freedom = max(1, seeds - 1)
    first, second = (v / seeds * _chi_squares(freedom, place) for place, v in enumerate(parts, 1))
    if sum(parts) == 0:
        return first, first
    welch = (first + second) ** 2 * (seeds - 1) / (first**2 + second**2)
    return first + second, stdtrit(welch, 1 - alpha / 2) * (first + second)


@functools.lru_cache(maxsize=512)
def _chi_squares(freedom: int, place: int) -> Array:
    """Estimates of a variance as shares of the true one, shape (draws,): side `place` of a Latin hypercube of three."""
    random = np.random.default_rng(0)
    grid = (np.arange(_DRAWS) + 0.5) / _DRAWS
    orders = [random.permutation(grid) for _ in range(place + 1)]
    found: Array = gammaincinv(freedom / 2, orders[place]) * 2 / freedom
    return found


def _check(alpha: float, power: float) -> None:
    if not 0 < alpha < power < 1:
        raise UserError(f"expected 0 < alpha < power < 1, got alpha {alpha} and power {power}")


def _freedom(critical: float, confidence: float) -> float:
    """The degrees of freedom of which `critical` is the two-sided quantile; infinite where it is the normal one's."""
    if critical <= NormalDist().inv_cdf(0.5 + confidence / 2) * (1 + 1e-6):
        return math.inf

    def over(logarithm: float) -> float:
        return students_t(confidence, math.exp(logarithm)) - critical

    low, high = math.log(0.1), math.log(1e9)
    if over(low) <= 0 or over(high) >= 0:
        return math.exp(low if over(low) <= 0 else high)
    return math.exp(float(brentq(over, low, high, xtol=1e-12)))


def _noncentrality(freedom: float, alpha: float, power: float) -> float:
    """The effect in standard errors that the test finds with this power."""
    critical = students_t(1 - alpha, freedom)
    scale, weight = _scales(freedom)

    def chance(shift: float) -> float:
        """Beyond either end: the wrong one matters where power is hardly above alpha."""
        return float(weight @ (ndtr(shift - critical * scale) + ndtr(-shift - critical * scale)))

    low, high = 0.0, 1.0
    while chance(high) < power:
        low, high = high, high * 2
    # At no effect the chance is alpha, which is below the power.
    return float(brentq(lambda shift: chance(shift) - power, low, high, xtol=1e-12))


def _scales(freedom: float) -> tuple[Array, Array]:
    """Values of an estimated standard error, as shares of the true one, and their weights: chi over its root freedom.

    Integrated here: `scipy.special.nctdtr` is NaN where few degrees of freedom make the effect large.
    """
    if math.isinf(freedom):
        return np.ones(1), np.ones(1)
    nodes, weights = _legendre()
    scale: Array = np.sqrt(gammaincinv(freedom / 2, (nodes + 1) / 2) * 2 / freedom)
    return scale, weights / 2


@functools.lru_cache(maxsize=1)
def _legendre() -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(400)
