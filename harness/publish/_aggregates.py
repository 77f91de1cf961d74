"""From samples to published figures: the one place that computes them, for `publish` and for `verify` alike."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.human import CRITERIA, MARKS, SHARE, cells_of, mean_of, set_against
from harness.report._compare import bounds_of, paired, subjects_of
from harness.report._direction import Direction
from harness.report._direction import direction as of_metric
from harness.stats import Difference, Scores, cluster_interval, crossed_interval, holm, rank_intervals, resolved

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "PEOPLE",
    "PREFERRED",
    "PROFILE",
    "STATISTICS",
    "Against",
    "Direction",
    "Figure",
    "against",
    "direction",
    "figure",
    "range_of",
    "ranks",
    "scores",
]

PROFILE = "profile"
"""The task under which latency and memory stand."""

PEOPLE = "people"
"""The task under which stands what people say: a metric for each criterion, and for each recipe that theirs was
preferred to (`PREFERRED` and its name). A sample's document is `document/number of the rater`."""

PREFERRED = "preferred to "

STATISTICS: dict[str, object] = {
    "version": 4,
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
    "people": "of what people say harness.stats.rated_mean and rated_difference of marks brought to the range from 0 "
    "to 1, a rater once a document: intervals for other documents and other raters; no ranks",
}
"""How the figures of an export of this version are computed; stands in its manifest."""


@dataclass(frozen=True)
class Figure:
    """A value with its standard error and 95 % interval, from `n` documents (of a profile: repeats); NaN is unknown.

    `raters` is how many people said it, None for what no people say.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    seeds: int
    raters: int | None = None


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
    if task == PEOPLE:
        # Of a criterion of somebody's own nobody else knows which end is the better one.
        return "higher" if metric in CRITERIA or metric.startswith(PREFERRED) else "none"
    return "none" if task == PROFILE else of_metric(metric)


def range_of(task: str, metric: str) -> tuple[float, float]:
    """The least and the most that a figure can be."""
    if task == PEOPLE:
        return SHARE if metric.startswith(PREFERRED) else MARKS
    return bounds_of(metric)


def scores(task: str, samples: "pl.DataFrame") -> dict[str, list[float]]:
    """The samples of one entry, task and metric as document → scores over the seeds, where every seed has it.

    Of people as `document/rater/seed` → what they said: few documents are rated with every seed.
    """
    if task == PEOPLE:
        rows = samples.select("document", "seed", "score").iter_rows()
        return {f"{document}/{seed}": [score] for document, seed, score in sorted(rows)}
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
    if task == PEOPLE:
        said = mean_of(_cells(table), range_of(task, metric))
        one, seeds = said.mean, len({place.rpartition("/")[2] for place in table})
        return Figure(one.value, one.stderr, one.low, one.high, said.prompts, seeds, said.raters)
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
    # Ranks go by documents, as if all of one were said by nobody in particular.
    if way == "none" or task == PEOPLE or not entries:
        return {}
    found = rank_intervals(entries, minimize=way == "lower")
    return {name: (one.rank, one.low, one.high) for name, one in found.items()}


def against(
    entry: Mapping[tuple[str, str], Scores], base: Mapping[tuple[str, str], Scores]
) -> dict[tuple[str, str], Against]:
    """The differences of an entry from its base model, by task and metric, where they share documents."""
    names, found = [], []
    for name in sorted(entry.keys() & base.keys()):
        difference = _difference(*name, _table(entry[name]), _table(base[name]))
        if difference is not None:
            names.append(name)
            found.append(difference)
    adjusted = holm([d.p for d in found])
    return {
        name: Against(d.value, d.low, d.high, d.p, p, d.n, resolved(d, p))
        for name, d, p in zip(names, found, adjusted, strict=True)
    }


def _difference(
    task: str, metric: str, entry: Mapping[str, list[float]], base: Mapping[str, list[float]]
) -> Difference | None:
    if task == PEOPLE:
        # Whom both are preferred to is another's merit too.
        found = None if metric.startswith(PREFERRED) else set_against(_cells(entry), _cells(base), MARKS)
        return None if found is None else found.difference
    return None if task == PROFILE else paired(dict(entry), dict(base))


def _cells(table: Mapping[str, list[float]]) -> dict[tuple[str, str], float]:
    """(Document, rater) → what they said of the answers of all seeds."""

    def parted() -> Iterable[tuple[str, str, float]]:
        for place, (score,) in table.items():
            document, _, rater = place.rpartition("/")[0].rpartition("/")
            yield document, rater, score

    return cells_of(parted())
