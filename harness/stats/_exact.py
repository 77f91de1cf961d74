"""Tests that hold at any number of documents: McNemar's for right or wrong answers, sign flips for any paired scores.

Both ask whether a and b could be exchanged on every document. They take the trainings as they are: only the p of
`paired_difference` and `cluster_difference` also says whether other seeds would agree.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr  # type: ignore[import-untyped]  # scipy ships no types

from harness.errors import UserError
from harness.stats._clusters import group_numbers
from harness.stats._tables import paired_tables
from harness.stats._types import Array, Scores

__all__ = ["McNemar", "mcnemar_exact", "permutation_p"]

_ALL = 12
"""So many units with a difference, at most, are flipped in all 2^12 ways instead of at random."""
_BLOCK = 2_000_000


@dataclass(frozen=True)
class McNemar:
    """How many documents only b has right (`n01`), how many only a (`n10`), and the exact two-sided p."""

    n01: int
    n10: int
    p: float


def mcnemar_exact(a: Scores, b: Scores) -> McNemar:
    """Whether a and b are right equally often, from the documents on which they disagree.

    If they are, each of these documents is as likely one way as the other: a binomial test at 1/2 (McNemar 1947, "Note
    on the sampling error of the difference between correlated proportions", Psychometrika 12). p is 1 where they never
    disagree.

    Args:
        a: document → 0 or 1, of one seed.
        b: the same documents.

    Raises:
        UserError: the documents differ, more than one seed, a score other than 0 and 1.
    """
    _, first, second = paired_tables(a, b)
    for side, what in ((first, "a"), (second, "b")):
        if side.shape[1] != 1:
            raise UserError(f"{what}: McNemar's test takes the answers of one seed, got {side.shape[1]} seeds")
        if other := side[(side != 0) & (side != 1)].tolist():
            raise UserError(f"{what}: McNemar's test takes scores of 0 and 1, got {other[0]}")
    n01, n10 = int((second > first).sum()), int((first > second).sum())
    return McNemar(n01, n10, min(1.0, 2 * float(bdtr(min(n01, n10), n01 + n10, 0.5))) if n01 + n10 else 1.0)


def permutation_p(
    a: Scores, b: Scores, *, groups: Mapping[str, str] | None = None, resamples: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p of the mean difference by document, by exchanging a and b document by document.

    The share of all exchanges that give a difference at least as large, either way (Fisher 1935, "The design of
    experiments", section 21). Beyond 12 documents (or groups)
    that differ they are drawn at random, and what was observed counts as one of them: p is (k + 1) / (resamples + 1),
    never 0 (Phipson & Smyth 2010, "Permutation p-values should never be zero", Stat. Appl. Genet. Mol. Biol. 9).

    Args:
        a: document → score, or scores over its seeds, of which the mean is taken.
        b: the same documents.
        groups: document → group; a group's documents are then exchanged together, as they are not independent.
        resamples: random exchanges.
        seed: of the exchanges; equal input gives an equal answer.

    Raises:
        UserError: the documents differ, one has no group, fewer than 100 resamples, a score that is not finite.
    """
    if resamples < 100:
        raise UserError(f"expected at least 100 random exchanges, got {resamples}")
    documents, first, second = paired_tables(a, b)
    units = first.mean(axis=1) - second.mean(axis=1)
    if groups is not None:
        units = np.bincount(group_numbers(documents, groups), weights=units)
    # Equally large but for the order of summing must count as equally large.
    slack = 1e-12 * max(1.0, float(np.abs(units).sum()))
    units = units[np.abs(units) > slack]
    if not units.size:
        return 1.0
    least = abs(math.fsum(units)) - slack
    if units.size <= _ALL:
        every = (np.arange(2**units.size)[:, None] >> np.arange(units.size)) & 1
        return _reached(every, units, least) / len(every)
    random, block, reached = np.random.default_rng(seed), max(1, _BLOCK // units.size), 0
    for start in range(0, resamples, block):
        shape = (min(block, resamples - start), units.size)
        reached += _reached(random.integers(2, size=shape), units, least)
    return (reached + 1) / (resamples + 1)


def _reached(exchanged: NDArray[np.int64], units: Array, least: float) -> int:
    """How many exchanges, shape (exchanges, units) of 0 and 1, leave a difference of at least `least`."""
    differences = math.fsum(units) - 2 * (exchanged.astype(np.float64) @ units)
    return int((np.abs(differences) >= least).sum())
