"""Ratings by several people: their mean with both kinds of chance in it, and raters who drift or stand apart.

An answer's rating depends on the prompt and on who rates. The variance of a mean is clustered both ways: by prompt plus
by rater minus by both together (Cameron, Gelbach & Miller 2011, "Robust inference with multiway clustering", J.
Business & Economic Statistics 29), each with its factor C / (C - 1). That can come out smaller than one way alone, even
negative; it is never taken to be less than the larger of the two. Few raters say little of others: the raters' part has
Student's t with one degree of freedom fewer than raters, the prompts' part that of the prompts, and both are joined by
Cochran's weights as in `crossed_interval`.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from harness.stats._crossed import crossed_interval
from harness.stats._several import holm
from harness.stats._slopes import Slope, slope_within
from harness.stats._types import Array, Interval, check_confidence, students_t
from harness.stats._votes import Rating, Unknown, check_ratings, numbered

__all__ = ["RatedMean", "RaterCheck", "check_raters", "rated_difference", "rated_mean"]


@dataclass(frozen=True)
class RatedMean:
    """A mean rating (`n` counts ratings), its prompts and raters. With one rater it holds for that one only."""

    mean: Interval
    prompts: int
    raters: int


@dataclass(frozen=True)
class RaterCheck:
    """One rater beside the others.

    `drift` is how far the rater's ratings move, from the first to the last one, against the median of the others on
    the same answers; `drift_p` is its p value, corrected for asking it of every rater (Holm). `deviation` is the mean
    distance from the median of the others, `excess` how much larger it is than theirs on the same answers,
    `excess_p` its corrected p value. `drifts` and `outlier` say whether the data hold that.
    """

    rater: str
    ratings: int
    drift: Slope | Unknown
    drift_p: float | None
    drifts: bool
    deviation: float | None
    excess: Interval | Unknown
    excess_p: float | None
    outlier: bool


def rated_mean(ratings: Sequence[Rating], confidence: float = 0.95) -> RatedMean:
    """The mean of ratings with an interval for other prompts and other raters (see the module).

    Every rating counts once. With one prompt, bounds and standard error are NaN: unknown.

    Raises:
        UserError: no ratings, a score that is not finite, an answer rated twice by one rater.
    """
    check_ratings(ratings)
    check_confidence(confidence)
    scores = np.array([r.score for r in ratings], dtype=np.float64)
    return _two_way(scores, [r.prompt for r in ratings], [r.rater for r in ratings], confidence)


def rated_difference(ratings: Sequence[Rating], a: str, b: str, confidence: float = 0.95) -> RatedMean | Unknown:
    """How much higher a's answers are rated than b's, by the same rater on the same prompt: leniency cancels.

    Raises:
        UserError: no ratings, a score that is not finite, an answer rated twice by one rater.
    """
    check_ratings(ratings)
    check_confidence(confidence)
    cells = {(r.prompt, r.rater, r.model): r.score for r in ratings}
    both = sorted((p, who) for p, who, model in cells if model == a and (p, who, b) in cells)
    if not both:
        return Unknown(f"nobody has rated both {a} and {b} on one prompt")
    scores = np.array([cells[p, who, a] - cells[p, who, b] for p, who in both], dtype=np.float64)
    return _two_way(scores, [p for p, _ in both], [who for _, who in both], confidence)


def check_raters(ratings: Sequence[Rating], confidence: float = 0.95) -> list[RaterCheck]:
    """Every rater beside the others, by name: drift, and distance from the others.

    Drift needs `place` and another rater on the same answers. Distance needs three raters on an answer: of two that
    differ, nothing tells which stands apart.

    Raises:
        UserError: no ratings, a score that is not finite, an answer rated twice by one rater.
    """
    check_ratings(ratings)
    check_confidence(confidence)
    answers: dict[tuple[str, str], list[Rating]] = defaultdict(list)
    for r in ratings:
        answers[r.prompt, r.model].append(r)
    raters = sorted({r.rater for r in ratings})
    drifts = {who: _drift(who, answers, confidence) for who in raters}
    far = {who: _distances(who, answers) for who in raters}
    excesses = {who: _excess(own, confidence) for who, own in far.items()}
    drift_p = _corrected({who: s.p for who, s in drifts.items() if isinstance(s, Slope)})
    excess_p = _corrected({who: s.p for who, s in excesses.items() if isinstance(s, Slope)})
    found = []
    for who in raters:
        slope, excess, level = drifts[who], excesses[who], 1 - confidence
        shown = (
            Interval(excess.low, excess.value, excess.high, excess.n, excess.stderr, confidence)
            if isinstance(excess, Slope)
            else excess
        )
        found.append(
            RaterCheck(
                rater=who,
                ratings=sum(r.rater == who for r in ratings),
                drift=slope,
                drift_p=drift_p.get(who),
                drifts=drift_p.get(who, 1.0) < level,
                deviation=float(np.mean([own for _, own, _ in far[who]])) if far[who] else None,
                excess=shown,
                excess_p=excess_p.get(who),
                outlier=isinstance(excess, Slope) and excess.value > 0 and excess_p.get(who, 1.0) < level,
            )
        )
    return found


def _two_way(scores: Array, prompts: Sequence[str], raters: Sequence[str], confidence: float) -> RatedMean:
    (names, by_prompt), (people, by_rater) = numbered(prompts), numbered(raters)
    _, by_both = numbered(f"{p}\0{who}" for p, who in zip(prompts, raters, strict=True))
    value, counts = float(scores.mean()), (len(names), len(people))
    if len(names) < 2:
        return RatedMean(Interval(math.nan, value, math.nan, scores.size, math.nan, confidence), *counts)
    if float(np.ptp(scores)) == 0:
        # What prompts not seen may do is said as for any mean; no spread tells anything of raters.
        own = crossed_interval(dict.fromkeys(names, value), confidence)
        return RatedMean(Interval(own.low, value, own.high, scores.size, own.stderr, confidence), *counts)
    residuals = scores - value
    first, second, both = (_variance(residuals, c) for c in (by_prompt, by_rater, by_both))
    total = max(first + second - both, first, second) if len(people) > 1 else first
    if total < 1e-24 * max(1.0, float(np.abs(residuals).max())) ** 2:
        # Effects that cancel by chance are not proof of certainty. Ratings count as independent then.
        total = first = both
    others = total - first
    t, few = students_t(confidence, len(names) - 1), students_t(confidence, max(1, len(people) - 1))
    half = (t * first + few * others) / math.sqrt(total)
    mean = Interval(value - half, value, value + half, scores.size, math.sqrt(total), confidence)
    return RatedMean(mean, *counts)


def _variance(residuals: Array, clusters: np.ndarray[tuple[int], np.dtype[np.intp]]) -> float:
    """The cluster-robust variance of the mean; 0 with one cluster, which tells of none."""
    sums = np.bincount(clusters, weights=residuals)
    return sums.size / (sums.size - 1) * float(sums @ sums) / residuals.size**2 if sums.size > 1 else 0.0


def _drift(who: str, answers: dict[tuple[str, str], list[Rating]], confidence: float) -> Slope | Unknown:
    points = []
    for (prompt, _), given in sorted(answers.items()):
        own = [r for r in given if r.rater == who and r.place is not None]
        others = [r.score for r in given if r.rater != who]
        if own and others:
            points.append((float(own[0].place or 0), own[0].score - median(others), prompt))
    if not points:
        return Unknown(f"no other rater has rated what {who} has, or the order is not known")
    places = np.array([place for place, _, _ in points])
    reach = float(np.ptp(places)) or 1.0
    return slope_within(
        (places / reach).tolist(), [d for _, d, _ in points], [""] * len(points), [p for *_, p in points], confidence
    )


def _distances(who: str, answers: dict[tuple[str, str], list[Rating]]) -> list[tuple[str, float, float]]:
    """(prompt, distance from the median of the others, mean distance of the others from theirs), by answer."""
    found = []
    for (prompt, _), given in sorted(answers.items()):
        if len(given) > 2 and any(r.rater == who for r in given):
            far = {r.rater: abs(r.score - median(o.score for o in given if o is not r)) for r in given}
            rest = [d for rater, d in far.items() if rater != who]
            found.append((prompt, far[who], math.fsum(sorted(rest)) / len(rest)))
    return found


def _excess(distances: Sequence[tuple[str, float, float]], confidence: float) -> Slope | Unknown:
    """The mean of own minus others' distance, by prompt: the slope through the origin of a constant one."""
    if not distances:
        return Unknown("no answer has three raters")
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for prompt, own, others in distances:
        by_prompt[prompt].append(own - others)
    means = [math.fsum(d) / len(d) for _, d in sorted(by_prompt.items())]
    # A balanced contrast: the slope of (mean, -mean) on (1/2, -1/2) is the mean, and its clusters are the prompts.
    x, y = [0.5, -0.5] * len(means), [side for m in means for side in (m / 2, -m / 2)]
    clusters = [str(i) for i in range(len(means)) for _ in range(2)]
    return slope_within(x, y, clusters, clusters, confidence)


def _corrected(pvalues: dict[str, float]) -> dict[str, float]:
    return dict(zip(pvalues, holm(list(pvalues.values())), strict=True))
