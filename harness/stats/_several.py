"""Several comparisons at once, and the verdict on one of them."""

import math
from collections.abc import Sequence

from harness.errors import UserError
from harness.stats._types import Difference, Verdict

__all__ = ["benjamini_hochberg", "holm", "resolved"]


def holm(pvalues: Sequence[float]) -> list[float]:
    """p values adjusted for being several, in the order given; compare each with the level of the whole family.

    Holm (1979), "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6: the chance of any
    false finding stays below the level, whatever the dependence between the tests. NaN (nothing to test) stays NaN and
    counts as no test.

    Raises:
        UserError: a p value outside [0, 1].
    """
    order = _ascending(pvalues)
    adjusted = [math.nan] * len(pvalues)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * pvalues[index]))
        adjusted[index] = largest
    return adjusted


def benjamini_hochberg(pvalues: Sequence[float]) -> list[float]:
    """p values adjusted for the false discovery rate, in the order given: for screening many comparisons.

    Benjamini & Hochberg (1995), "Controlling the false discovery rate", J. R. Statist. Soc. B 57: of those below the
    level, the expected share of false ones stays below it, where the tests are independent or depend positively
    (Benjamini & Yekutieli 2001, Annals of Statistics 29). That is less than `holm` promises: with many findings some
    are false. NaN (nothing to test) stays NaN and counts as no test.

    Raises:
        UserError: a p value outside [0, 1].
    """
    order = _ascending(pvalues)
    adjusted = [math.nan] * len(pvalues)
    least = 1.0
    for rank, index in reversed(list(enumerate(order, start=1))):
        least = min(least, pvalues[index] * len(order) / rank)
        adjusted[index] = least
    return adjusted


def resolved(difference: Difference, adjusted_p: float | None = None, alpha: float = 0.05) -> Verdict:
    """Whether the data tell a from b: `higher` or `lower` (a against b), or `unresolved`.

    Args:
        difference: a against b.
        adjusted_p: its p value after `holm`, where it is one of several comparisons; its own p otherwise.
        alpha: the level of the test.
    """
    p = difference.p if adjusted_p is None else adjusted_p
    # Written so that a NaN p is unresolved.
    if not p < alpha or difference.value == 0:
        return "unresolved"
    return "higher" if difference.value > 0 else "lower"


def _ascending(pvalues: Sequence[float]) -> list[int]:
    """The places of the p values that are tests, the least first."""
    if bad := [p for p in pvalues if not (math.isnan(p) or 0 <= p <= 1)]:
        raise UserError(f"p values lie in [0, 1], got {bad[0]}")
    return sorted((i for i, p in enumerate(pvalues) if not math.isnan(p)), key=lambda i: pvalues[i])
