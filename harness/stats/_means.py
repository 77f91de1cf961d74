"""Intervals of one mean, and of one proportion."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from harness.errors import UserError
from harness.stats._types import Array, Interval, check_confidence, finite, students_t

__all__ = ["interval", "wilson"]


def interval(values: Sequence[float] | Array, confidence: float = 0.95) -> Interval:
    """Mean of independent values with Student's t interval (Student 1908, "The probable error of a mean").

    Raises:
        UserError: no values, one not finite, or a confidence outside (0, 1).
    """
    check_confidence(confidence)
    array = finite(np.asarray(values, dtype=np.float64).reshape(-1), "values")
    mean = float(array.mean())
    if array.size < 2:
        return Interval(math.nan, mean, math.nan, 1, math.nan, confidence)
    stderr = float(array.std(ddof=1)) / math.sqrt(array.size)
    half = students_t(confidence, array.size - 1) * stderr
    return Interval(mean - half, mean, mean + half, int(array.size), stderr, confidence)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval: inside [0, 1], and honest at small n and near 0 and 1.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22.

    Raises:
        UserError: n < 1 or successes outside [0, n].
    """
    check_confidence(confidence)
    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"expected 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    scale = 1 + z * z / n
    centre = (p + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The bounds are exactly 0 and 1 at the ends; rounding must not put p outside its own interval.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Interval(low, p, high, n, math.sqrt(p * (1 - p) / n), confidence)
