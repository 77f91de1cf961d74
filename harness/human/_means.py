"""Means of what people say, and differences of means, with intervals for other prompts and other raters.

A rater counts once for a prompt: of several answers that a recipe gave to it (with several seeds), with their mean. The
intervals are those of `harness.stats.rated_mean` and `rated_difference`, of marks that are brought to the range from 0
to 1: where all are alike, what prompts not seen may do is bounded by the ends of the scale.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from harness.human._criteria import SCALE
from harness.stats import Difference, Interval, RatedMean, Rating, Unknown, rated_difference, rated_mean
from harness.stats._parts import least_level

__all__ = ["MARKS", "SHARE", "Cells", "Scale", "Set", "cells_of", "mean_of", "preference_of", "set_against"]

Scale = tuple[float, float]
MARKS: Scale = (float(SCALE[0]), float(SCALE[-1]))
"""The ends of the scale of marks."""
SHARE: Scale = (0.0, 1.0)
"""Those of a share: how often an answer is preferred, ties half."""

Cells = Mapping[tuple[str, str], float]
"""(Prompt, rater) → what they say."""

_LEAST_P = 1e-6


@dataclass(frozen=True)
class Set:
    """One recipe set against another by the same raters on the same prompts.

    `values` are both means, `difference` theirs (`n` counts prompts), `changed` the share of pairs that differ.
    """

    values: tuple[float, float]
    difference: Difference
    changed: float
    raters: int


def cells_of(given: Iterable[tuple[str, str, float]]) -> dict[tuple[str, str], float]:
    """Prompt, rater and what they said, once or more often, as cells."""
    said: dict[tuple[str, str], list[float]] = {}
    for prompt, rater, value in given:
        said.setdefault((prompt, rater), []).append(value)
    return {place: math.fsum(values) / len(values) for place, values in said.items()}


def mean_of(cells: Cells, scale: Scale, confidence: float = 0.95) -> RatedMean:
    """The mean with its interval, which ends where the scale does; `n` counts cells.

    Raises:
        UserError: no cells.
    """
    found = rated_mean(_ratings(cells, "", scale), confidence)
    return replace(found, mean=_on(found.mean, scale))


def set_against(a: Cells, b: Cells, scale: Scale, seeds: tuple[int, int] = (1, 1)) -> Set | None:
    """How much higher a is marked than b by the same rater on the same prompt; None where nobody has rated both.

    p is the least level at which the interval excludes zero, no less than 1e-6; NaN where there is no interval.

    Args:
        a: marks of one recipe.
        b: marks of another one.
        scale: the ends of the scale of both.
        seeds: how many seeds the answers are of, to be told beside the difference.
    """
    width = scale[1] - scale[0]
    # Half of the way from -1 to 1 each: so that the difference is in the range from 0 to 1, 0.5 being none.
    halves = [replace(r, score=(r.score + 1) / 2) for r in _ratings(a, "a", scale)]
    halves += [replace(r, score=r.score / 2) for r in _ratings(b, "b", scale)]

    def found(confidence: float) -> RatedMean | Unknown:
        known = rated_difference(halves, "a", "b", confidence)
        return known if isinstance(known, Unknown) else replace(known, mean=_on(known.mean, (-width, width)))

    both = sorted(a.keys() & b.keys())
    whole = found(0.95) if both else Unknown("nobody has rated both")
    if isinstance(whole, Unknown):
        return None

    def bounds(level: float) -> tuple[float, float]:
        one = found(1 - level)
        return (math.nan, math.nan) if isinstance(one, Unknown) else (one.mean.low, one.mean.high)

    means = [math.fsum(side[place] for place in both) / len(both) for side in (a, b)]
    p = math.nan if math.isnan(whole.mean.low) else least_level(bounds, _LEAST_P)
    mean = whole.mean
    difference = Difference(mean.value, mean.low, mean.high, p, whole.prompts, seeds, mean.stderr, mean.confidence)
    changed = sum(a[place] != b[place] for place in both) / len(both)
    return Set((means[0], means[1]), difference, changed, whole.raters)


def preference_of(wins: Cells, seeds: tuple[int, int] = (1, 1)) -> Set | None:
    """The share that prefers a minus the share that prefers b, ties half each; None for no votes.

    Args:
        wins: 1 where a is preferred, 0 where b is, 0.5 for a tie.
        seeds: as for `set_against`.
    """
    return set_against(wins, {place: 1 - win for place, win in wins.items()}, SHARE, seeds)


def _ratings(cells: Cells, model: str, scale: Scale) -> list[Rating]:
    low, width = scale[0], scale[1] - scale[0]
    return [Rating(prompt, model, rater, (value - low) / width) for (prompt, rater), value in sorted(cells.items())]


def _on(found: Interval, scale: Scale) -> Interval:
    """From the range from 0 to 1 to the scale, and not beyond its ends."""
    low, width = scale[0], scale[1] - scale[0]
    bounds = (b if math.isnan(b) else low + width * min(max(b, 0.0), 1.0) for b in (found.low, found.high))
    least, most = bounds
    return Interval(least, low + width * found.value, most, found.n, width * found.stderr, found.confidence)
