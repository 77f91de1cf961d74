"""Means of ratings that go together by prompt and by rater, and what each rater does otherwise than the others.

Two ratings of one prompt are alike, and so are two by one rater. The variance of a mean here is the two-way
cluster-robust one (Cameron, Gelbach & Miller 2011, "Robust inference with multiway clustering", J. Business & Economic
Statistics 29): that by prompts, plus that by raters, minus that of single ratings, with Student's t at one degree of
freedom fewer than there are clusters of the scarcer kind. With one rater nothing tells how others would rate: the
bounds are unknown.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats import Interval, cluster_interval, holm
from harness.stats._types import Array, students_t

__all__ = ["Mark", "RaterFigures", "alpha", "raters_of", "two_way_interval"]

_LEVEL = 0.05
_LEAST = 4
"""Items that a rater needs in a half for anything to be said of their drift."""


@dataclass(frozen=True)
class Mark:
    """One rating: of which unit (an answer and criterion), prompt and rater, and how early."""

    unit: Hashable
    prompt: str
    rater: str
    value: float
    shown: int = 0


@dataclass(frozen=True)
class RaterFigures:
    """One rater beside the others.

    `severity` is the mean of their marks minus the others' on the same answers, `severity_p` for none, `drift` how much
    higher they mark in the second half of a form than in the first, beside what those recipes get on average. None
    where there is nothing to compare. p values are two-sided, corrected by Holm over the raters.
    """

    rater: str
    marks: int
    severity: float | None
    severity_p: float | None
    drift: float | None
    drift_p: float | None

    @property
    def outlying(self) -> bool:
        """Whether their marks are resolved to differ from the others' by half a mark or more."""
        return self.severity_p is not None and self.severity_p < _LEVEL and abs(self.severity or 0) >= 0.5

    @property
    def drifting(self) -> bool:
        """Whether they are resolved to mark otherwise late than early."""
        return self.drift_p is not None and self.drift_p < _LEVEL


def two_way_interval(marks: Sequence[Mark], bounds: tuple[float, float], confidence: float = 0.95) -> Interval:
    """Their mean, with an interval for other prompts and other raters; `n` counts ratings.

    Args:
        marks: one at least.
        bounds: the ends of the scale, beyond which no interval goes.
    """
    values = np.array([m.value for m in marks])
    mean = float(values.mean())
    prompts, raters = [m.prompt for m in marks], [m.rater for m in marks]
    clusters = min(len(set(prompts)), len(set(raters)))
    if clusters < 2:
        return Interval(math.nan, mean, math.nan, len(marks), math.nan, confidence)
    both = list(zip(prompts, raters, strict=True))
    by_prompt, by_rater = _variance(values, prompts), _variance(values, raters)
    # The difference may come out below either part, even below zero, in small samples.
    variance = max(by_prompt, by_rater, by_prompt + by_rater - _variance(values, both))
    if variance <= 1e-18:
        scaled = {str(i): (m.value - bounds[0]) / (bounds[1] - bounds[0]) for i, m in enumerate(marks)}
        unseen = cluster_interval(scaled, {str(i): m.prompt for i, m in enumerate(marks)}, confidence)
        low, high = (bounds[0] + b * (bounds[1] - bounds[0]) for b in (unseen.low, unseen.high))
        return Interval(low, mean, high, len(marks), unseen.stderr * (bounds[1] - bounds[0]), confidence)
    error = math.sqrt(variance)
    half = students_t(confidence, clusters - 1) * error
    return Interval(max(bounds[0], mean - half), mean, min(bounds[1], mean + half), len(marks), error, confidence)


def _variance(values: Array, groups: Sequence[Hashable]) -> float:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    sums = np.bincount([numbers[g] for g in groups], weights=values - values.mean())
    return float(sums.size / max(1, sums.size - 1) * (sums @ sums)) / values.size**2


def alpha(marks: Sequence[Mark], domain: Sequence[float]) -> float | None:
    """Krippendorff's alpha, ordinal, over units that two raters or more have marked; None where it is not defined.

    (Krippendorff 2018, Content Analysis, 4th ed., ch. 12.) 1 is perfect agreement, 0 what chance would give.
    """
    import krippendorff

    by_unit = _by_unit(marks)
    units = [unit for unit, given in by_unit.items() if len(given) > 1]
    raters = sorted({rater for unit in units for rater in by_unit[unit]})
    table = np.array([[by_unit[unit].get(rater, math.nan) for unit in units] for rater in raters])
    # Where all marks are one and the same, nothing tells agreement from a scale that nobody used.
    if not units or len(set(table[~np.isnan(table)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=table, value_domain=list(domain), level_of_measurement="ordinal"))


def _by_unit(marks: Sequence[Mark]) -> dict[Hashable, dict[str, float]]:
    by_unit: dict[Hashable, dict[str, float]] = {}
    for mark in marks:
        by_unit.setdefault(mark.unit, {})[mark.rater] = mark.value
    return by_unit


def raters_of(marks: Sequence[Mark], expected: Mapping[Hashable, float]) -> list[RaterFigures]:
    """What each rater does otherwise than the others, sorted by rater.

    Args:
        marks: of all criteria.
        expected: unit → what is usual for it (the mean of its recipe and criterion), which drift is measured from.
    """
    by_unit = _by_unit(marks)
    severity, drift = dict[str, tuple[float, float]](), dict[str, tuple[float, float]]()
    names = sorted({m.rater for m in marks})
    for rater in names:
        mine = [m for m in marks if m.rater == rater]
        apart: dict[str, list[float]] = {}
        late: dict[int, list[float]] = {}
        for mark in mine:
            others = [value for who, value in by_unit[mark.unit].items() if who != rater]
            if others:
                apart.setdefault(mark.prompt, []).append(mark.value - sum(others) / len(others))
            late.setdefault(mark.shown, []).append(mark.value - expected[mark.unit])
        # One value for each prompt: marks of one item are no independent ones.
        if (found := _one_sample([sum(v) / len(v) for v in apart.values()])) is not None:
            severity[rater] = found
        items = [sum(v) / len(v) for _, v in sorted(late.items())]
        if (found := _two_samples(items[: len(items) // 2], items[len(items) // 2 :])) is not None:
            drift[rater] = found
    severe, drifted = _corrected(severity), _corrected(drift)
    return [
        RaterFigures(
            rater,
            sum(m.rater == rater for m in marks),
            severity[rater][0] if rater in severity else None,
            severe.get(rater),
            drift[rater][0] if rater in drift else None,
            drifted.get(rater),
        )
        for rater in names
    ]


def _corrected(found: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    tested = {rater: p for rater, (_, p) in found.items() if not math.isnan(p)}
    return dict(zip(tested, holm(list(tested.values())), strict=True)) if tested else {}


def _one_sample(values: Sequence[float]) -> tuple[float, float] | None:
    from scipy.stats import ttest_1samp  # type: ignore[import-untyped]  # scipy ships no types

    if not values:
        return None
    return float(np.mean(values)), float(ttest_1samp(values, 0.0).pvalue) if np.ptp(values) > 0 else math.nan


def _two_samples(early: Sequence[float], late: Sequence[float]) -> tuple[float, float] | None:
    from scipy.stats import ttest_ind

    if min(len(early), len(late)) < _LEAST:
        return None
    moved = float(np.mean(late) - np.mean(early))
    varied = np.ptp(early) > 0 or np.ptp(late) > 0
    # Welch's: how much a rater's marks vary may change too.
    return moved, float(ttest_ind(late, early, equal_var=False).pvalue) if varied else math.nan
