"""How sure are we: intervals of means, differences paired by document, the correction for several comparisons.

A score varies for two reasons that must both be in its interval: which documents were asked, and which seed trained
the model. Documents are many and are bootstrapped. Seeds are two or three, where a bootstrap has no tails (two seeds
give two values) and its intervals too little coverage, so their part comes from Student's t. The two parts are joined
by Cochran's weights (Cochran 1964, "Approximate significance levels of the Behrens-Fisher test", Biometrics 20). In
simulation, nominal 95 % intervals held the truth in 92 % or more of the draws, whichever part dominated; the least
where two seeds dominated.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

from harness.errors import UserError

__all__ = [
    "Difference",
    "Interval",
    "Scores",
    "Verdict",
    "crossed_interval",
    "holm",
    "interval",
    "paired_difference",
    "resolved",
    "wilson",
]

Scores = Mapping[str, float | Sequence[float]]
"""Document → its score, or its scores over the seeds, in the same order of seeds for every document."""

Verdict = Literal["higher", "lower", "unresolved"]

_Array = NDArray[np.float64]
_BLOCK = 2_000_000
_KEPT = 8_000_000
"""Draws that are kept for the next estimate over as many documents, 8 bytes each: of 4,000 replicates of 2,000."""


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


def interval(values: Sequence[float] | _Array, confidence: float = 0.95) -> Interval:
    """Mean of independent values with Student's t interval (Student 1908, "The probable error of a mean").

    Raises:
        UserError: no values, one not finite, or a confidence outside (0, 1).
    """
    _check_confidence(confidence)
    array = _finite(np.asarray(values, dtype=np.float64).reshape(-1), "values")
    mean = float(array.mean())
    if array.size < 2:
        return Interval(math.nan, mean, math.nan, 1, math.nan, confidence)
    stderr = float(array.std(ddof=1)) / math.sqrt(array.size)
    half = _t(confidence, array.size - 1) * stderr
    return Interval(mean - half, mean, mean + half, int(array.size), stderr, confidence)


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A proportion with Wilson's score interval: inside [0, 1], and honest at small n and near 0 and 1.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference", JASA 22.

    Raises:
        UserError: n < 1 or successes outside [0, n].
    """
    _check_confidence(confidence)
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


def crossed_interval(scores: Scores, confidence: float = 0.95, *, resamples: int = 4000, seed: int = 0) -> Interval:
    """Mean over documents and seeds, with an interval that covers other documents and other seeds (see the module).

    Args:
        scores: at least one document; the same number of seeds for each.
        resamples: bootstrap replicates.
        seed: of the resampling; equal input gives an equal interval.

    Raises:
        UserError: nothing to average, a ragged number of seeds, a score that is not finite.
    """
    _check_confidence(confidence)
    table = _table(scores, sorted(scores), "scores")
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
    _check_confidence(confidence)
    if a.keys() != b.keys():
        only_a, only_b = len(a.keys() - b.keys()), len(b.keys() - a.keys())
        raise UserError(
            f"a paired comparison needs the same documents on both sides: {only_a} are only in the first, {only_b} "
            f"only in the second, {len(a.keys() & b.keys())} in both; measure both recipes with the same task settings"
        )
    # Sorted: the answer must not depend on the order in which rows were read.
    documents = sorted(a)
    first, second = _table(a, documents, "a"), _table(b, documents, "b")
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


def holm(pvalues: Sequence[float]) -> list[float]:
    """p values adjusted for being several, in the order given; compare each with the level of the whole family.

    Holm (1979), "A simple sequentially rejective multiple test procedure", Scand. J. Statistics 6: the chance of any
    false finding stays below the level, whatever the dependence between the tests. NaN (nothing to test) stays NaN and
    counts as no test.

    Raises:
        UserError: a p value outside [0, 1].
    """
    if bad := [p for p in pvalues if not (math.isnan(p) or 0 <= p <= 1)]:
        raise UserError(f"p values lie in [0, 1], got {bad[0]}")
    order = sorted((i for i, p in enumerate(pvalues) if not math.isnan(p)), key=lambda i: pvalues[i])
    adjusted = [math.nan] * len(pvalues)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * pvalues[index]))
        adjusted[index] = largest
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


@dataclass(frozen=True)
class _Spread:
    """What is known of an estimate's error: the documents' bootstrap, and the two variances with their freedom."""

    value: float
    draws: _Array
    documents: int
    document_variance: float
    seed_variance: float
    seed_freedom: float

    @classmethod
    def of(cls, a: _Array, b: _Array | None, resamples: int, seed: int) -> "_Spread":
        """`a` and `b` are documents × seeds; without `b`, the mean of `a`."""
        if resamples < 100:
            raise UserError(f"expected at least 100 bootstrap resamples, got {resamples}")
        per_document = a.mean(axis=1) - (0.0 if b is None else b.mean(axis=1))
        seeds = [_variance_of_mean(side.mean(axis=0)) for side in (a, b) if side is not None]
        seed_variance = sum(v for v, _ in seeds)
        weight = sum(v * v / freedom for v, freedom in seeds)
        return cls(
            value=float(per_document.mean()),
            draws=_means(per_document, resamples, seed),
            documents=per_document.size,
            document_variance=_variance_of_mean(per_document)[0],
            seed_variance=seed_variance,
            seed_freedom=seed_variance * seed_variance / weight if weight > 0 else 1.0,
        )

    @property
    def stderr(self) -> float:
        return math.nan if self.documents < 2 else math.sqrt(self.document_variance + self.seed_variance)

    def bounds(self, alpha: float) -> tuple[float, float]:
        """The interval of level 1 - alpha; it holds the estimate and narrows as alpha grows."""
        if self.documents < 2:
            return math.nan, math.nan
        total = math.sqrt(self.document_variance + self.seed_variance)
        if total == 0:
            return self.value, self.value
        low, high = _quantile(self.draws, alpha / 2), _quantile(self.draws, 1 - alpha / 2)
        stretch = _t(1 - alpha, self.documents - 1) / NormalDist().inv_cdf(1 - alpha / 2)
        # Cochran: each part's half width counts by its share of the standard error.
        share = stretch * math.sqrt(self.document_variance) / total
        seeds = _t(1 - alpha, self.seed_freedom) * self.seed_variance / total
        below = share * max(0.0, self.value - low) + seeds
        above = share * max(0.0, high - self.value) + seeds
        return self.value - below, self.value + above

    def p(self) -> float:
        if self.documents < 2:
            return math.nan
        if self.value == 0:
            return 1.0
        low, high = -math.log(self.draws.size + 1), 0.0
        for _ in range(40):
            middle = (low + high) / 2
            bounds = self.bounds(math.exp(middle))
            if bounds[0] <= 0 <= bounds[1]:
                low = middle
            else:
                high = middle
        return math.exp(high)


def _variance_of_mean(values: _Array) -> tuple[float, float]:
    """The variance of the mean of these values, and its degrees of freedom; one value tells of none."""
    if values.size < 2:
        return 0.0, 1.0
    return float(values.var(ddof=1)) / values.size, float(values.size - 1)


def _means(values: _Array, resamples: int, seed: int) -> _Array:
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
def _weights(size: int, resamples: int, seed: int) -> _Array:
    """The share of each value in each replicate, shape (resamples, size)."""
    # Kept, since a report compares hundreds of pairs over as many documents: drawing takes longer than all the rest.
    random = np.random.default_rng(seed)
    drawn = [np.bincount(random.integers(size, size=size), minlength=size) for _ in range(resamples)]
    weights: _Array = np.stack(drawn) / size
    weights.flags.writeable = False
    return weights


def _quantile(ordered: _Array, share: float) -> float:
    """As `numpy.quantile` (linear), of values in ascending order."""
    place = share * (ordered.size - 1)
    before = min(int(place), ordered.size - 2)
    low, high = float(ordered[before]), float(ordered[before + 1])
    return low + (high - low) * (place - before)


def _table(scores: Scores, documents: Sequence[str], what: str) -> _Array:
    if not documents:
        raise UserError(f"{what}: no documents to compare")
    try:
        whole = np.array([scores[d] for d in documents], dtype=np.float64)
    except ValueError:
        rows = [np.atleast_1d(np.asarray(scores[d], dtype=np.float64)) for d in documents]
        if len({row.size for row in rows}) != 1:
            raise _ragged(rows, what) from None
        whole = np.stack(rows)
    if 0 in whole.shape:
        raise _ragged([whole[0]], what)
    return _finite(whole.reshape(len(documents), -1), what)


def _ragged(rows: Sequence[_Array], what: str) -> UserError:
    lengths = sorted({row.size for row in rows})
    return UserError(f"{what}: expected the same number of seeds for every document, got {lengths}")


def _finite(array: _Array, what: str) -> _Array:
    if not array.size:
        raise UserError(f"{what}: expected at least one value")
    if not np.isfinite(array).all():
        raise UserError(f"{what}: {int((~np.isfinite(array)).sum())} of {array.size} values are NaN or infinite")
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"a confidence lies between 0 and 1 (0.95 is usual), got {confidence}")


def _t(confidence: float, freedom: float) -> float:
    if math.isinf(freedom):
        return NormalDist().inv_cdf(0.5 + confidence / 2)
    return float(stdtrit(freedom, 0.5 + confidence / 2))
