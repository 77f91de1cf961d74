"""Means over documents and seeds, and their differences paired by document.

A score varies for two reasons that must both be in its interval: which documents were asked, and which seed trained
the model. Documents are many and are bootstrapped. Seeds are two or three, where a bootstrap has no tails (two seeds
give two values) and its intervals too little coverage, so their part comes from Student's t. The two parts are joined
by Cochran's weights (Cochran 1964, "Approximate significance levels of the Behrens-Fisher test", Biometrics 20).
Nominal 95 % intervals hold the truth in 93 % or more, whichever part dominates; with two seeds in up to 99 %, since one
degree of freedom cannot tell a small variance from a large one (`benchmarks/coverage.py`).

A mean of right and wrong answers needs no bootstrap, which near 0 and 1 has few values to draw from: it has Wilson's
score interval (`harness.stats._parts.proportion_bounds` has the sources), over seeds with as many answers as
independent ones would have the variance seen, but no more than there are. With one seed it is Wilson's own.

Where every document scores the same, no interval is of zero width: it says what documents that were not seen may do.
None of n documents differed, so by Wilson's bound (Wilson 1927, JASA 22; the exact counterpart of the rule of three,
Hanley & Lippman-Hand 1983, JAMA 249) at most z² / (n + z²) of all documents do, and each by no more than the range of
scores lets it. That range is [0, 1] where all scores lie in it, which makes the interval of a proportion Wilson's own;
otherwise it is what was seen, of both sides in a difference; where all scores are one number outside [0, 1] it is
unknown, and so are the bounds (NaN). The standard error is then this distance at z = 1. The seeds' part is joined by
square-and-add (Newcombe 1998, Statistics in Medicine 17).
"""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from harness.errors import UserError
from harness.stats._parts import (
    alike,
    is_proportion,
    least_level,
    proportion_bounds,
    reach,
    seed_part,
    unseen,
    variance_of_mean,
)
from harness.stats._tables import paired_tables, score_table
from harness.stats._types import Array, Difference, Interval, Scores, check_confidence, students_t

__all__ = ["crossed_interval", "paired_difference"]

_BLOCK = 2_000_000
_KEPT = 8_000_000
"""Draws that are kept for the next estimate over as many documents, 8 bytes each: of 4,000 replicates of 2,000."""


def crossed_interval(scores: Scores, confidence: float = 0.95, *, resamples: int = 4000, seed: int = 0) -> Interval:
    """Mean over documents and seeds, with an interval that covers other documents and other seeds (see the module).

    Args:
        scores: at least one document; the same number of seeds for each.
        resamples: bootstrap replicates; scores that are all 0 or 1 need none.
        seed: of the resampling; equal input gives an equal interval.

    Raises:
        UserError: nothing to average, a ragged number of seeds, a score that is not finite.
    """
    check_confidence(confidence)
    table = score_table(scores, sorted(scores), "scores")
    spread = _Spread.of(table, None, resamples, seed)
    low, high = spread.bounds(1 - confidence)
    return Interval(low, spread.value, high, len(scores), spread.stderr, confidence)


def paired_difference(
    a: Scores, b: Scores, confidence: float = 0.95, *, resamples: int = 4000, seed: int = 0
) -> Difference:
    """Mean of a minus mean of b over the same documents, paired by document, with interval and p value.

    The documents' part is a percentile bootstrap of the differences by document, stretched by t/z for its narrowness
    (Hesterberg 2015, "What teachers should know about the bootstrap", The American Statistician 69). The seeds' part is
    Welch's t over the means by seed (Welch 1947, Biometrika 34): the seeds of a and b are different trainings and are
    not paired. The module says how the two are joined. p is the least level at which the interval excludes zero, no
    less than 1 / (resamples + 1).

    Args:
        a: document → score, or scores over its seeds.
        b: the same documents; its seeds are others, and may be fewer.
        resamples: bootstrap replicates.
        seed: of the resampling; equal input gives an equal answer.

    Raises:
        UserError: the documents differ, a ragged number of seeds, a score that is not finite.
    """
    check_confidence(confidence)
    documents, first, second = paired_tables(a, b)
    spread = _Spread.of(first, second, resamples, seed)
    low, high = spread.bounds(1 - confidence)
    return Difference(
        spread.value,
        low,
        high,
        spread.p(),
        len(documents),
        (first.shape[1], second.shape[1]),
        spread.stderr,
        confidence,
    )


@dataclass(frozen=True)
class _Spread:
    """What is known of an estimate's error: the documents' bootstrap, and the two variances with their freedom.

    `answers` is how many right or wrong ones a proportion is made of; 0 for any other mean, and for a difference.
    """

    value: float
    draws: Array
    documents: int
    answers: int
    document_variance: float
    seed_variance: float
    seed_freedom: float
    reach: tuple[float, float]

    @classmethod
    def of(cls, a: Array, b: Array | None, resamples: int, seed: int) -> "_Spread":
        """`a` and `b` are documents × seeds; without `b`, the mean of `a`."""
        if resamples < 100:
            raise UserError(f"expected at least 100 bootstrap resamples, got {resamples}")
        per_document = a.mean(axis=1) - (0.0 if b is None else b.mean(axis=1))
        seed_variance, seed_freedom = seed_part(a, b)
        answers = a.size if b is None and is_proportion(a) else 0
        return cls(
            value=float(per_document.mean()),
            draws=np.empty(0) if answers else _means(per_document, resamples, seed),
            documents=per_document.size,
            answers=answers,
            document_variance=_document_variance(per_document, answers),
            seed_variance=seed_variance,
            seed_freedom=seed_freedom,
            reach=reach(a, b),
        )

    @property
    def stderr(self) -> float:
        if self.documents < 2:
            return math.nan
        if self.document_variance == 0:
            return math.hypot(max(unseen(self.value, self.reach, self.documents, 1.0)), math.sqrt(self.seed_variance))
        return math.sqrt(self.document_variance + self.seed_variance)

    def bounds(self, alpha: float) -> tuple[float, float]:
        """The interval of level 1 - alpha; it holds the estimate and narrows as alpha grows."""
        if self.documents < 2:
            return math.nan, math.nan
        if self.document_variance == 0:
            z = NormalDist().inv_cdf(1 - alpha / 2)
            below, above = unseen(self.value, self.reach, self.documents, z)
            seeds = students_t(1 - alpha, self.seed_freedom) * math.sqrt(self.seed_variance)
            return self.value - math.hypot(below, seeds), self.value + math.hypot(above, seeds)
        t, z = students_t(1 - alpha, self.documents - 1), NormalDist().inv_cdf(1 - alpha / 2)
        seed_t = students_t(1 - alpha, self.seed_freedom)
        if self.answers:
            # Over the documents, not one fewer, and the normal quantile: so one seed gives exactly Wilson's interval.
            seeds, variance = self.answers // self.documents, self.document_variance * (1 - 1 / self.documents)
            of_documents = (variance, z if seeds == 1 else t)
            return proportion_bounds(self.value, of_documents, (self.seed_variance, seed_t), seeds)
        total = math.sqrt(self.document_variance + self.seed_variance)
        low, high = _quantile(self.draws, alpha / 2), _quantile(self.draws, 1 - alpha / 2)
        # Cochran: each part's half width counts by its share of the standard error.
        share = t / z * math.sqrt(self.document_variance) / total
        half = seed_t * self.seed_variance / total
        below = share * max(0.0, self.value - low) + half
        above = share * max(0.0, high - self.value) + half
        return self.value - below, self.value + above

    def p(self) -> float:
        if self.documents < 2:
            return math.nan
        if self.value == 0:
            return 1.0
        return least_level(self.bounds, 1 / (self.draws.size + 1))


def _document_variance(per_document: Array, answers: int) -> float:
    """The variance of their mean; of a proportion no less than as many independent answers would have."""
    variance = 0.0 if alike(per_document) else variance_of_mean(per_document)[0]
    if answers == 0 or per_document.size < 2:
        return variance
    value, documents = float(per_document.mean()), per_document.size
    return max(variance, value * (1 - value) / answers * documents / (documents - 1))


def _means(values: Array, resamples: int, seed: int) -> Array:
    """Bootstrap replicates of the mean, shape (resamples,), in ascending order."""
    size = values.size
    if size * resamples <= _KEPT:
        return np.sort(_weights(size, resamples, seed) @ values)
    random, block = np.random.default_rng(seed), max(1, _BLOCK // size)
    parts = [
        values[random.integers(size, size=(min(block, resamples - start), size))].mean(axis=1)
        for start in range(0, resamples, block)
    ]
    return np.sort(np.concatenate(parts))


@functools.lru_cache(maxsize=2)
def _weights(size: int, resamples: int, seed: int) -> Array:
    """The share of each value in each replicate, shape (resamples, size)."""
    # Kept, since a report compares hundreds of pairs over as many documents: drawing takes longer than all the rest.
    random = np.random.default_rng(seed)
    drawn = [np.bincount(random.integers(size, size=size), minlength=size) for _ in range(resamples)]
    weights: Array = np.stack(drawn) / size
    weights.flags.writeable = False
    return weights


def _quantile(ordered: Array, share: float) -> float:
    """As `numpy.quantile` (linear), of values in ascending order."""
    place = share * (ordered.size - 1)
    before = min(int(place), ordered.size - 2)
    low, high = float(ordered[before]), float(ordered[before + 1])
    return low + (high - low) * (place - before)
