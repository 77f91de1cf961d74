"""What an estimate is: a value with its interval, a difference with its test; and the checks all of them share."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

from harness.errors import UserError

__all__ = ["Array", "Difference", "Interval", "Scores", "Verdict", "check_confidence", "finite", "students_t"]

Scores = Mapping[str, float | Sequence[float]]
"""Document → its score, or its scores over the seeds, in the same order of seeds for every document."""

Verdict = Literal["higher", "lower", "unresolved"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, from `n` values (documents, where there are any).

    Where one value alone says nothing of its spread, `low`, `high` and `stderr` are NaN: unknown, not zero.
    """

    low: float
    value: float
    high: float
    n: int
    stderr: float
    confidence: float


@dataclass(frozen=True)
class Difference:
    """The mean of a minus the mean of b, with its interval; `p` is two-sided, for no difference.

    `n` counts documents; `seeds` those of a and of b. A side with one seed contributes no variation over seeds: right
    for the base model, which was not trained here, and a limit to state for anything else.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    seeds: tuple[int, int]
    stderr: float
    confidence: float


def finite(array: Array, what: str) -> Array:
    """The same array.

    Raises:
        UserError: it is empty, or holds NaN or infinity.
    """
    if not array.size:
        raise UserError(f"{what}: expected at least one value")
    if not np.isfinite(array).all():
        raise UserError(f"{what}: {int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite")
    return array


def check_confidence(confidence: float) -> None:
    """Raises:
    UserError: a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise UserError(f"a confidence lies between 0 and 1 (0.95 is usual), got {confidence}")


def students_t(confidence: float, freedom: float) -> float:
    """The two-sided quantile of Student's t; of the normal distribution at infinite freedom."""
    if math.isinf(freedom):
        return NormalDist().inv_cdf(0.5 + confidence / 2)
    return float(stdtrit(freedom, 0.5 + confidence / 2))
