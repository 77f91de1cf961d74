"""From samples to published figures: the one place that computes them, for `publish` and for `verify` alike."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report._compare import bounds_of, paired, subjects_of
from harness.report._direction import Direction
from harness.report._direction import direction as of_metric
from harness.stats import Scores, cluster_interval, crossed_interval, holm, rank_intervals, resolved

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "PROFILE",
    "STATISTICS",
    "Against",
    "Direction",
    "Figure",
    "against",
    "direction",
    "figure",
    "ranks",
    "scores",
]

PROFILE = "profile"
"""The task under which latency and memory stand."""

STATISTICS: dict[str, object] = {
    "version": 3,
    "confidence": 0.95,
    "resamples": 4000,
    "seed": 0,
    "mean": "harness.stats.crossed_interval: mean over documents and seeds, over the documents that every seed has; "
    "of a benchmark of five tasks or more harness.stats.cluster_interval, by task; the interval is cut at the ends of "
    "the metric's range where it has one",
    "stderr": "of the same: the documents' and the seeds' variance together",
    "median": "median, least and most over the repeats of one profile",
    "rank": "harness.stats.rank_intervals over all entries with the task and metric, Holm-corrected over their pairs",
    "difference": "harness.stats.paired_difference, or cluster_difference as for the mean, with the base model's entry "
    "over the documents that both have; Holm-corrected over the figures of the entry",
}
"""How the figures of an export of this version are computed; stands in its manifest."""


@dataclass(frozen=True)
class Figure:
    """A value with its standard error and 95 % interval, from `n` documents (of a profile: repeats); NaN is unknown."""

    value: float
    stderr: float
    low: float
    high: float
    n: int
    seeds: int


@dataclass(frozen=True)
class Against:
    """An entry minus its base model on one figure."""

    value: float
    low: float
    high: float
    p: float
    adjusted_p: float
    n: int
    verdict: str


def direction(task: str, metric: str) -> Direction:
    """Which way a figure is better; `none` where it only describes, and for a profile, which is not ranked."""
    return "none" if task == PROFILE else of_metric(metric)


def scores(samples: "pl.DataFrame") -> dict[str, list[float]]:
    """The samples of one entry, task and metric as document → scores over the seeds, where every seed has it."""
    seeds: dict[int, dict[str, float]] = {}
    for seed, document, score in samples.select("seed", "document", "score").iter_rows():
        seeds.setdefault(seed, {})[document] = score
    common = set.intersection(*(set(s) for s in seeds.values())) if seeds else set()
    return {d: [seeds[s][d] for s in sorted(seeds)] for d in sorted(common)}


def figure(task: str, metric: str, found: Scores) -> Figure | None:
    """The published figure of one entry; None where no document has every seed.

    Raises:
        UserError: a score that is not finite.
    """
    if not found:
        return None
    table = _table(found)
    seeds = len(next(iter(table.values())))
    if task == PROFILE:
        repeats = sorted(v for row in table.values() for v in row)
        middle = len(repeats) // 2
        median = repeats[middle] if len(repeats) % 2 else (repeats[middle - 1] + repeats[middle]) / 2
        return Figure(median, math.nan, repeats[0], repeats[-1], len(repeats), seeds)
    subjects = subjects_of(table)
    mean = cluster_interval(table, subjects) if subjects else crossed_interval(table)
    least, most = bounds_of(metric)
    low, high = (b if math.isnan(b) else min(max(b, least), most) for b in (mean.low, mean.high))
    return Figure(mean.value, mean.stderr, low, high, mean.n, seeds)


def _table(found: Scores) -> dict[str, list[float]]:
    return {d: [v] if isinstance(v, float | int) else list(v) for d, v in found.items()}


def ranks(task: str, metric: str, entries: Mapping[str, Scores]) -> dict[str, tuple[int, int, int]]:
    """Entry → rank, and the least and greatest that the data leave open; {} where nothing is better or worse."""
    way = direction(task, metric)
    if way == "none" or not entries:
        return {}
    found = rank_intervals(entries, minimize=way == "lower")
    return {name: (one.rank, one.low, one.high) for name, one in found.items()}


def against(
    entry: Mapping[tuple[str, str], Scores], base: Mapping[tuple[str, str], Scores]
) -> dict[tuple[str, str], Against]:
    """The differences of an entry from its base model, by task and metric, where they share documents."""
    names, found = [], []
    for name in sorted(entry.keys() & base.keys()):
        difference = None if name[0] == PROFILE else paired(_table(entry[name]), _table(base[name]))
        if difference is not None:
            names.append(name)
            found.append(difference)
    adjusted = holm([d.p for d in found])
    return {
        name: Against(d.value, d.low, d.high, d.p, p, d.n, resolved(d, p))
        for name, d, p in zip(names, found, adjusted, strict=True)
    }
