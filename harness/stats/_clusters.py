"""Means and paired differences over documents that come in groups: MMLU's subjects, TruthfulQA's categories, a prompt.

Documents of a group go right and wrong together, so that many of them tell less than as many independent ones, and an
interval that takes them for independent is too narrow (Miller 2024, "Adding error bars to evals", arXiv 2411.00640).
The variance here is the cluster-robust one of a mean (Liang & Zeger 1986, "Longitudinal data analysis using generalized
linear models", Biometrika 73): the squares of the groups' summed deviations, times C / (C - 1) for C groups, with
Student's t at C - 1 degrees of freedom (Cameron & Miller 2015, "A practitioner's guide to cluster-robust inference",
J. Human Resources 50). It asks nothing of what goes on within a group; groups must be independent of each other.

That is right for groups of equal size. Unequal ones make this variance too small on average, and less certain than
C - 1 degrees of freedom; the interval (not the standard error) is widened for both by the moments that the variance has
if groups differ as they are seen to do (Bell & McCaffrey 2002, Survey Methodology 28; with the intraclass correlation,
Imbens & Kolesár 2016, "Robust standard errors in small samples", Rev. Econ. Stat. 98). Near 0 and 1 proportions of
groups have a long tail, which makes their variance less certain again: it is worth the degrees of freedom that its own
variance leaves, by the kurtosis seen (O'Neill 2014, "Some useful moment results in sampling problems", The American
Statistician 68).

What it cannot mend: with 5 or 10 groups of which most are all right and a few are not, the groups seen tell too little
of those not seen, and the interval holds the truth less often than it says (`benchmarks/coverage.py`).

The variation over seeds is joined as in `crossed_interval`, by Cochran's weights. These are cautious where both parts
have few degrees of freedom, and Satterthwaite's common freedom (1946, Biometrics Bulletin 2) is bold where seeds
dominate. By integration over ten groups and three seeds a side, 95 % intervals of a difference hold the truth in up to
97.5 % by the first (98 % in simulation), in 94.7 to 96.2 % by the second; from three seeds on the half width here is
the mean of both: 95.7 to 96.7 %, and at the level 0.002, which corrected claims come down to, 99.8 % or more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.stats._parts import alike, is_proportion, least_level, proportion_bounds, reach, seed_part, unseen
from harness.stats._tables import paired_tables, score_table
from harness.stats._types import Array, Difference, Interval, Scores, check_confidence, students_t

__all__ = ["between_and_within", "cluster_difference", "cluster_interval", "group_numbers"]

_LEAST = 1e-12
"""The least p value: beyond it, one minus the level is no longer told from one with precision."""


def cluster_interval(values: Scores, groups: Mapping[str, str], confidence: float = 0.95) -> Interval:
    """Mean over documents and seeds, with an interval that covers other groups of documents and other seeds.

    Scores that are all 0 or 1 get Wilson's interval with t for z and, for the number of documents, the number of
    independent ones that would have the same variance (`harness.stats._parts.proportion_bounds` has the sources): but
    for two seeds it stays inside [0, 1]. Where every document scores the same, nothing tells how far a group's
    documents go together; the interval is then the one `crossed_interval` would give, with each group as one document:
    the widest of all explanations.

    Args:
        values: at least one document; the same number of seeds for each.
        groups: document → the group it belongs to; more documents than were scored do no harm.

    Returns:
        `n` counts documents. With one group, bounds and standard error are NaN: unknown, not zero.

    Raises:
        UserError: nothing to average, a document without group, a ragged number of seeds, a score that is not finite.
    """
    check_confidence(confidence)
    documents = sorted(values)
    table = score_table(values, documents, "scores")
    grouped = _Grouped.of(table, None, group_numbers(documents, groups))
    low, high = grouped.bounds(1 - confidence)
    return Interval(low, grouped.value, high, len(documents), grouped.stderr, confidence)


def cluster_difference(a: Scores, b: Scores, groups: Mapping[str, str], confidence: float = 0.95) -> Difference:
    """Mean of a minus mean of b over the same documents, paired by document, with an interval by group and a p value.

    The cluster-robust t interval of the differences by document; what both sides find hard in a group cancels. Where
    all differences are equal, the interval is as in `paired_difference` with each group as one document. p is the least
    level at which the interval excludes zero, no less than 1e-12, and 1 where the difference is exactly zero.

    Args:
        a: document → score, or scores over its seeds.
        b: the same documents; its seeds are others, and may be fewer.
        groups: document → the group it belongs to; more documents than were scored do no harm.

    Returns:
        `n` counts documents. With one group, bounds, standard error and p are NaN: unknown.

    Raises:
        UserError: the documents differ, one has no group, a ragged number of seeds, a score that is not finite.
    """
    check_confidence(confidence)
    documents, first, second = paired_tables(a, b)
    grouped = _Grouped.of(first, second, group_numbers(documents, groups))
    low, high = grouped.bounds(1 - confidence)
    seeds = (first.shape[1], second.shape[1])
    return Difference(grouped.value, low, high, grouped.p(), len(documents), seeds, grouped.stderr, confidence)


def group_numbers(documents: list[str], groups: Mapping[str, str]) -> NDArray[np.intp]:
    """The number of each document's group, from 0, shape (documents,).

    Raises:
        UserError: a document without group.
    """
    if missing := [d for d in documents if d not in groups]:
        raise UserError(f"groups: {len(missing)} of {len(documents)} documents have none, {missing[0]!r} the first")
    _, numbers = np.unique(np.array([groups[d] for d in documents]), return_inverse=True)
    return numbers.astype(np.intp)


@dataclass(frozen=True)
class _Grouped:
    """What is known of an estimate's error: the groups' variance and the seeds', with what bounds the scores.

    `seeds` are those of the side that varies over the fewest; 1 where none does. `proportion`: a mean of right and
    wrong answers.
    """

    value: float
    groups: int
    group_variance: float
    inflation: float
    freedom: float
    seed_variance: float
    seed_freedom: float
    reach: tuple[float, float]
    seeds: int
    proportion: bool

    @classmethod
    def of(cls, a: Array, b: Array | None, numbers: NDArray[np.intp]) -> "_Grouped":
        """`a` and `b` are documents × seeds; without `b`, the mean of `a`."""
        per_document = a.mean(axis=1) - (0.0 if b is None else b.mean(axis=1))
        seed_variance, seed_freedom = seed_part(a, b)
        groups, proportion = int(numbers.max()) + 1, b is None and is_proportion(a)
        inflation, freedom = _moments(per_document, numbers, proportion) if groups > 1 else (math.nan, math.nan)
        return cls(
            value=float(per_document.mean()),
            groups=groups,
            group_variance=_variance(per_document, numbers),
            inflation=inflation,
            freedom=freedom,
            seed_variance=seed_variance,
            seed_freedom=seed_freedom,
            reach=reach(a, b),
            seeds=min((s.shape[1] for s in (a, b) if s is not None and s.shape[1] > 1), default=1),
            proportion=proportion,
        )

    @property
    def stderr(self) -> float:
        if self.groups < 2:
            return math.nan
        if self.group_variance == 0:
            return math.hypot(max(unseen(self.value, self.reach, self.groups, 1.0)), math.sqrt(self.seed_variance))
        return math.sqrt(self.group_variance + self.seed_variance)

    def bounds(self, alpha: float) -> tuple[float, float]:
        """The interval of level 1 - alpha; it holds the estimate and narrows as alpha grows."""
        if self.groups < 2:
            return math.nan, math.nan
        seeds = students_t(1 - alpha, self.seed_freedom)
        if self.group_variance == 0:
            below, above = unseen(self.value, self.reach, self.groups, NormalDist().inv_cdf(1 - alpha / 2))
            half = seeds * math.sqrt(self.seed_variance)
            return self.value - math.hypot(below, half), self.value + math.hypot(above, half)
        t = students_t(1 - alpha, self.freedom) * math.sqrt(self.inflation)
        if self.proportion:
            groups = (self.group_variance, t)
            return proportion_bounds(self.value, groups, (self.seed_variance, seeds), self.seeds)
        # Cochran: each part's half width counts by its share of the standard error.
        total = math.sqrt(self.group_variance + self.seed_variance)
        half = (t * self.group_variance + seeds * self.seed_variance) / total
        if self.seeds > 2:
            parts = self.inflation * self.group_variance, self.seed_variance
            freedom = sum(parts) ** 2 / (parts[0] ** 2 / self.freedom + parts[1] ** 2 / self.seed_freedom)
            half = (half + students_t(1 - alpha, freedom) * math.sqrt(sum(parts))) / 2
        return self.value - half, self.value + half

    def p(self) -> float:
        if self.groups < 2:
            return math.nan
        return 1.0 if self.value == 0 else least_level(self.bounds, _LEAST)


def _variance(values: Array, numbers: NDArray[np.intp]) -> float:
    """The cluster-robust variance of the mean; 0 where all values are equal, NaN with one group."""
    sums = np.bincount(numbers, weights=values - values.mean())
    if sums.size < 2:
        return math.nan
    if alike(values):
        return 0.0
    found = sums.size / (sums.size - 1) * float(sums @ sums) / values.size**2
    if found > 1e-24 * max(1.0, float(np.abs(values).max())) ** 2:
        return found
    # Groups whose means are all equal, by chance: not proof of certainty. Documents count as independent then.
    return float(values.var(ddof=1)) / values.size


def _moments(values: Array, numbers: NDArray[np.intp], tailed: bool) -> tuple[float, float]:
    """What the groups' variance is to be multiplied with to be right on average, and its degrees of freedom.

    1 and C - 1 for groups of equal size. In general the variance is a quadratic form in the groups' means, whose own
    variances are in proportion to r + (1 - r) / size, r being the intraclass correlation. `tailed`: fewer where the
    groups' means have a longer tail than the normal distribution.
    """
    sizes = np.bincount(numbers).astype(np.float64)
    share, count = sizes / values.size, sizes.size
    r = _intraclass(values, numbers, sizes)
    each = r + (1 - r) / sizes
    # The deviations of the groups' means from their weighted mean, each weighted by its share.
    form = share[:, None] * (np.eye(count) - share) * np.sqrt(each)
    covariance = form @ form.T
    expected = count / (count - 1) * float(np.trace(covariance))
    freedom = float(np.trace(covariance)) ** 2 / float((covariance * covariance).sum())
    if tailed:
        freedom = 2 / (2 / freedom + _excess(values, numbers, sizes, each) / count)
    return float((share * share) @ each) / expected, freedom


def _excess(values: Array, numbers: NDArray[np.intp], sizes: Array, each: Array) -> float:
    """The excess kurtosis of the groups' means, given their variances up to a factor; not below zero."""
    squares = (np.bincount(numbers, weights=values) / sizes - values.mean()) ** 2 / each
    mean = float(squares.mean())
    return max(0.0, float((squares * squares).mean()) / mean**2 - 3) if mean > 1e-24 else 0.0


def _intraclass(values: Array, numbers: NDArray[np.intp], sizes: Array) -> float:
    """The intraclass correlation by the analysis of variance, in [0, 1]; 0 where no group has two documents."""
    if values.size == sizes.size:
        return 0.0
    excess, within = between_and_within(values, numbers)
    return excess / (excess + within) if excess > 0 else 0.0


def between_and_within(values: Array, numbers: NDArray[np.intp]) -> tuple[float, float]:
    """The variance of the groups' true means, not below zero, and that within a group, by the analysis of variance.

    Where no group has two documents, nothing tells the two apart: all of it counts as within.
    """
    sizes = np.bincount(numbers).astype(np.float64)
    count, total = sizes.size, values.size
    if total == count:
        return 0.0, float(values.var(ddof=1))
    means = np.bincount(numbers, weights=values) / sizes
    within = float(((values - means[numbers]) ** 2).sum()) / (total - count)
    between = float(sizes @ (means - values.mean()) ** 2) / (count - 1)
    usual = (total - float(sizes @ sizes) / total) / (count - 1)
    return max(0.0, between - within) / usual, within
