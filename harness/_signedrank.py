"""Wilcoxon's signed-rank test of paired differences (Wilcoxon 1945, "Individual comparisons by ranking methods")."""

from collections.abc import Sequence
from statistics import NormalDist

__all__ = ["signed_rank"]

_EXACT = 60
"""Differences up to which the distribution is counted out: beyond, the normal law is within 0.001 of it."""
_DIGITS = 12


def signed_rank(differences: Sequence[float]) -> float:
    """The one-sided p of the differences being negative, in (0, 1]; 1 where none differs from zero.

    Zeros are left out. Scores of documents are mostly 0 or 1, so ties are the rule: equal sizes share their mean
    rank, and the distribution is that of the ranks as they are, over all ways to give them signs.
    """
    sizes = [float(f"{abs(d):.{_DIGITS}g}") for d in differences if d != 0]
    if not sizes:
        return 1.0
    ranks = _doubled_ranks(sizes)
    positive = sum(r for r, d in zip(ranks, (d for d in differences if d != 0), strict=True) if d > 0)
    if len(ranks) > _EXACT:
        mean, spread = sum(ranks) / 2, (sum(r * r for r in ranks) / 4) ** 0.5
        # Doubled ranks step by two where there are no ties: half a step is one.
        return max(NormalDist().cdf((positive + 1 - mean) / spread), 1e-300)
    ways = [0] * (sum(ranks) + 1)
    ways[0] = 1
    top = 0
    for rank in ranks:
        for total in range(top, -1, -1):
            if ways[total]:
                ways[total + rank] += ways[total]
        top += rank
    return float(sum(ways[: positive + 1]) / 2 ** len(ranks))


def _doubled_ranks(sizes: Sequence[float]) -> list[int]:
    """Twice the ranks, whole numbers also where ties share a mean rank."""
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    ranks = [0] * len(sizes)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and sizes[order[end]] == sizes[order[start]]:
            end += 1
        for place in order[start:end]:
            # Ranks start + 1 to end, twice their mean.
            ranks[place] = start + 1 + end
        start = end
    return ranks
