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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.optimize import brentq  # type: ignore[import-untyped]  # scipy ships no types
from scipy.special import gammaincinv, ndtr, stdtrit  # type: ignore[import-untyped]  # the same

from harness.errors import UserError
from harness.stats._tables import paired_tables
from harness.stats._types import Array, Difference, Scores, students_t

__all__ = ["Variances", "detectable", "minimum_detectable_effect", "needed", "variances"]

_MOST = 2**20
"""Documents beyond which nobody measures: an effect that needs more is out of reach."""
_DRAWS = 2048


@dataclass(frozen=True)
class Variances:
    """What a difference's error is made of.

    `document` is the variance over documents of the difference between a and b, in score². `seeds` are the variances
    over trainings of the mean score of a and of b; 0 for a model that is not trained (the base model), NaN where one
    seed tells nothing of it.
    """

    document: float
    seeds: tuple[float, float]


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


def variances(a: Scores, b: Scores) -> Variances:
    """The parts of the error of `paired_difference(a, b)`, from a pilot, for `needed`.

    The part of the documents holds what is left of the noise of a training on a document after its seeds are averaged,
    so it is a little too large for plans with more seeds; that of the seeds holds the same averaged over documents.
    Of two or three seeds it is very uncertain: plan with the parts of several comparisons.

    Args:
        a: document → score, or scores over its seeds.
        b: the same documents; at least two.

    Raises:
        UserError: as `paired_difference`, or fewer than two documents.
    """
    documents, first, second = paired_tables(a, b)
    if len(documents) < 2:
        raise UserError("one document tells nothing of the variance over documents: measure two or more")
    apart = first.mean(axis=1) - second.mean(axis=1)
    seeds = [math.nan if side.shape[1] < 2 else float(side.mean(axis=0).var(ddof=1)) for side in (first, second)]
    return Variances(float(apart.var(ddof=1)), (seeds[0], seeds[1]))


def needed(
    effect: float,
    parts: Variances,
    seeds: Sequence[int] = (2, 3, 4, 5, 8),
    alpha: float = 0.05,
    power: float = 0.8,
) -> Mapping[int, int | None]:
    """How many documents resolve an effect with this probability, for each number of seeds (trainings of a and of b).

    The standard error is sqrt(document / documents + (seeds_a + seeds_b) / seeds). The test is that of
    `paired_difference`: its variances are estimates, chi-squared about the true ones, and each part has a Student's t
    of its own, weighted by its share (Cochran 1964, Biometrics 20); without variation over seeds that is the t test. In
    simulation such plans resolved the effect in 77 to 86 % of the draws where 80 % were asked for. None where no number
    of documents (up to 2^20) does: documents do not help against the variance over seeds, and two seeds have a large t.

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
    _check(alpha, power)
    if effect == 0 or not math.isfinite(effect):
        raise UserError(f"expected an effect other than zero, got {effect}: no data resolve nothing")
    if any(math.isnan(v) for v in parts.seeds):
        raise UserError(
            "the variance over seeds is unknown from one seed: measure two, or say 0 for a model that is not trained"
        )
    if not all(0 <= v < math.inf for v in (parts.document, *parts.seeds)):
        raise UserError(f"variances are finite and not negative, got {parts}")
    if any(s < (2 if any(parts.seeds) else 1) for s in seeds):
        raise UserError(f"a model that varies over seeds needs two or more to show it, got {list(seeds)}")
    return {s: _documents(abs(effect), parts, s, alpha, power) for s in seeds}


def _documents(effect: float, parts: Variances, seeds: int, alpha: float, power: float) -> int | None:
    def found(documents: int) -> bool:
        return _chance(effect, parts, documents, seeds, alpha) >= power

    few, many = 1, 2
    while not found(many):
        if many >= _MOST:
            return None
        # Small steps: with few seeds the chance may fall again with more documents, the seeds' large t weighing more.
        few, many = many, max(many + 1, many * 5 // 4)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if found(middle) else (middle, many)
    return many


def _chance(effect: float, parts: Variances, documents: int, seeds: int, alpha: float) -> float:
    """The chance that `paired_difference` finds an effect, over what its variances may be estimated as."""
    true = math.sqrt(parts.document / documents + sum(parts.seeds) / seeds)
    if true == 0:
        return 1.0
    square = _chi_squares(documents - 1, max(1, seeds - 1))
    of_documents = parts.document / documents * square[0]
    first, second = (v / seeds * estimated for v, estimated in zip(parts.seeds, square[1:], strict=True))
    of_seeds = first + second
    half = students_t(1 - alpha, documents - 1) * of_documents
    if sum(parts.seeds) > 0:
        freedom = of_seeds**2 * (seeds - 1) / (first**2 + second**2)
        half = half + stdtrit(freedom, 1 - alpha / 2) * of_seeds
    half = half / np.sqrt(of_documents + of_seeds)
    return float((ndtr((effect - half) / true) + ndtr((-effect - half) / true)).mean())


@functools.lru_cache(maxsize=64)
def _chi_squares(of_documents: int, of_seeds: int) -> Array:
    """Estimates of the three variances as shares of the true ones, shape (3, draws), a Latin hypercube of them."""
    random = np.random.default_rng(0)
    grid = (np.arange(_DRAWS) + 0.5) / _DRAWS
    rows = [gammaincinv(f / 2, random.permutation(grid)) * 2 / f for f in (of_documents, of_seeds, of_seeds)]
    return np.stack(rows)


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
