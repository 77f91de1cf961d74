"""A slope within groups, with the interval that goes with what belongs together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr  # type: ignore[import-untyped]  # scipy ships no types

from harness.stats._types import Array, check_confidence, students_t
from harness.stats._votes import Unknown, numbered

__all__ = ["Slope", "slope_within"]


@dataclass(frozen=True)
class Slope:
    """How much y grows for one of x, with its interval; `p` is two-sided, for no slope; `n` counts clusters."""

    low: float
    value: float
    high: float
    p: float
    n: int
    stderr: float
    confidence: float


def slope_within(
    x: Sequence[float], y: Sequence[float], within: Sequence[str], clusters: Sequence[str], confidence: float
) -> Slope | Unknown:
    """The least-squares slope of y on x, each group about its own mean, with standard errors by cluster.

    The variance is the cluster-robust one with the factor C / (C - 1), and Student's t at C - 1 degrees of freedom for
    C clusters (Cameron & Miller 2015, J. Human Resources 50).

    Args:
        x: of each observation.
        y: of each observation.
        within: the group of each observation, whose mean is taken out.
        clusters: what each observation belongs to; those of one cluster are not independent.
        confidence: of the interval.
    """
    check_confidence(confidence)
    _, groups = numbered(within)
    names, members = numbered(clusters)
    own, other = _centred(np.array(x, dtype=np.float64), groups), _centred(np.array(y, dtype=np.float64), groups)
    squares, count = float(own @ own), len(names)
    if count < 3:
        return Unknown(f"three prompts are the least for a slope, here are {count}")
    if squares <= 1e-12 * len(x):
        return Unknown("there is no difference that could have an effect")
    if float(other @ other) <= 1e-12 * len(y):
        return Unknown("all votes are alike, so nothing tells what would move them")
    value = float(own @ other) / squares
    scores = np.bincount(members, weights=own * (other - value * own))
    stderr = math.sqrt(count / (count - 1) * float(scores @ scores)) / squares
    half = students_t(confidence, count - 1) * stderr
    p = 2 * float(stdtr(count - 1, -abs(value) / stderr)) if stderr > 0 else float(value == 0)
    return Slope(value - half, value, value + half, p, count, stderr, confidence)


def _centred(values: Array, groups: np.ndarray[tuple[int], np.dtype[np.intp]]) -> Array:
    means = np.bincount(groups, weights=values) / np.bincount(groups)
    centred: Array = values - means[groups]
    return centred
