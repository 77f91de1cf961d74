"""The parts of an estimate's error: what the seeds add, and what is known where every document scores the same."""

import math
from collections.abc import Callable

import numpy as np

from harness.stats._types import Array

__all__ = [
    "alike",
    "is_proportion",
    "least_level",
    "proportion_bounds",
    "reach",
    "seed_part",
    "unseen",
    "variance_of_mean",
]

_TAKEN = 0.75
"""How much of what documents and seeds vary together is taken out of a mean's seed part (`seed_part`)."""


def least_level(bounds: Callable[[float], tuple[float, float]], least: float) -> float:
    """The p value that goes with an interval: the least level, from `least` on, at which it excludes zero.

    Args:
        bounds: level → interval of confidence 1 - level, which narrows as the level grows.
    """
    low, high = math.log(least), 0.0
    for _ in range(40):
        middle = (low + high) / 2
        below, above = bounds(math.exp(middle))
        if below <= 0 <= above:
            low = middle
        else:
            high = middle
    return math.exp(high)


def seed_part(a: Array, b: Array | None) -> tuple[float, float]:
    """The variance of the mean that is the seeds', and its degrees of freedom (Welch's, with two sides).

    What documents and seeds vary together is in the documents' variance already; from three seeds on it is taken out of
    this one (the two-way variance of Owen 2007, Annals of Applied Statistics 1), never below zero. Two seeds tell their
    variance too badly for that. By integration over the chi-squared of their variance, with a third of the documents'
    variance shared, intervals of two seeds would hold the truth in 90.5 % where seeds dominate (now 93.9 %), to hold it
    in 96.5 % where seeds do not vary (now 98.8 %).

    Where only one side has seeds, as in a mean, three quarters are taken out: with three seeds, and a third to a half
    of the variance shared, that holds the truth in 93.5 to 97 % whichever part dominates; all of it would in 92.5 to
    96.5 %, none in 95 to 99 %. Two sides have Welch's degrees of freedom, which are cautious enough for all of it.

    Args:
        a: documents × seeds.
        b: documents × other seeds; without it, the mean of `a` is meant.
    """
    sides = [side for side in (a, b) if side is not None]
    alone = sum(side.shape[1] > 1 for side in sides) < 2
    seeds = [_seed_variance(side, alone) for side in sides]
    variance = sum(v for v, _ in seeds)
    weight = sum(v * v / freedom for v, freedom in seeds)
    return variance, variance * variance / weight if weight > 0 else 1.0


def _seed_variance(side: Array, alone: bool) -> tuple[float, float]:
    variance, freedom = variance_of_mean(side.mean(axis=0))
    documents, seeds = side.shape
    if seeds > 2 and documents > 1:
        rest = side - side.mean(axis=1, keepdims=True) - side.mean(axis=0) + side.mean()
        shared = float((rest * rest).sum()) / ((documents - 1) * (seeds - 1) * side.size)
        variance = max(0.0, variance - shared * (_TAKEN if alone else 1.0))
    return variance, freedom


def reach(a: Array, b: Array | None) -> tuple[float, float]:
    """The least and the most that a document not seen may score, or differ by; NaN where nothing tells (the module)."""
    sides = [a] if b is None else [a, b]
    least, most = min(float(s.min()) for s in sides), max(float(s.max()) for s in sides)
    if least >= 0 and most <= 1:
        least, most = 0.0, 1.0
    elif least == most:
        return math.nan, math.nan
    return (least, most) if b is None else (least - most, most - least)


def unseen(value: float, reach: tuple[float, float], units: int, z: float) -> tuple[float, float]:
    """How far below and above `value` the mean may lie when all of `units` seen documents (or groups) have it."""
    if math.isnan(reach[0]):
        return math.nan, math.nan
    share = z * z / (units + z * z)
    return share * max(0.0, value - reach[0]), share * max(0.0, reach[1] - value)


def is_proportion(side: Array) -> bool:
    """Whether all scores are 0 or 1."""
    return bool(((side == 0) | (side == 1)).all())


def proportion_bounds(
    p: float, documents: tuple[float, float], seeds: tuple[float, float], count: int
) -> tuple[float, float]:
    """Wilson's score interval (Wilson 1927, JASA 22) of a proportion whose variance has two parts.

    In place of the number of answers stands that of independent ones with the same variance (Korn & Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts", Survey Methodology 24; Dean &
    Pagano 2015, "Evaluating confidence interval methods for binomial proportions in clustered surveys", J. Survey
    Statistics and Methodology 3), in place of the normal quantile the two parts' own, weighted by variance (Cochran
    1964, Biometrics 20). The quantile of two seeds, 12.7, would draw this to one half whatever was seen: with them only
    the documents' part is Wilson's, and the seeds' is added to both sides.

    Args:
        p: the proportion, neither 0 nor 1.
        documents: the variance that is the documents' (or groups'), and the quantile that goes with it.
        seeds: the variance that is the seeds', and its quantile.
        count: of seeds.
    """
    (variance, t), (seed_variance, seed_t) = documents, seeds
    total = variance + seed_variance
    if count == 2:
        below, above = _score_halves(p, p * (1 - p) / variance, t)
        share, half = math.sqrt(variance / total), seed_t * seed_variance / math.sqrt(total)
        return p - share * below - half, p + share * above + half
    below, above = _score_halves(p, p * (1 - p) / total, (t * variance + seed_t * seed_variance) / total)
    return p - below, p + above


def _score_halves(p: float, answers: float, t: float) -> tuple[float, float]:
    """How far Wilson's interval goes below and above `p`."""
    scale = 1 + t * t / answers
    shift = (p + t * t / (2 * answers)) / scale - p
    half = t / scale * math.sqrt(p * (1 - p) / answers + (t / (2 * answers)) ** 2)
    return half - shift, half + shift


def alike(values: Array) -> bool:
    """Whether the values differ by no more than rounding."""
    return float(np.ptp(values)) <= 1e-12 * max(1.0, float(np.abs(values).max()))


def variance_of_mean(values: Array) -> tuple[float, float]:
    """The variance of the mean of these values, and its degrees of freedom; one value tells of none."""
    if values.size < 2:
        return 0.0, 1.0
    return float(values.var(ddof=1)) / values.size, float(values.size - 1)
