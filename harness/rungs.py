"""Rungs at which a hopeless tuning trial ends: what is compared, with whom, and the decision. Pure.

Training: successive halving with the promotion rule of ASHA (Li et al. 2020, "A system for massively parallel
hyperparameter tuning", MLSys), a trial's rivals being the trials of earlier closed batches, so that the order in which
workers finish decides nothing. Documents: the signed-rank test (`harness._signedrank`) against the best trial of those.

The same code decides in a worker, step by step, and from a stored curve or stored scores, so that a trial whose stage
or measurement was computed by another sweep ends as if it had been computed here.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from harness._measures import Direction
from harness._signedrank import signed_rank
from harness.errors import PrunedError

__all__ = [
    "Climb",
    "HopelessError",
    "MeasureRungs",
    "Point",
    "Reached",
    "StageJudge",
    "StageRungs",
    "judge_curve",
    "judge_documents",
    "judge_scores",
    "mean_score",
    "places",
    "rung_values",
    "split",
]

Scores = Mapping[str, Mapping[str, float]]
"""Key of a measurement → document → its score."""

_SLACK = 1e-9
"""0.1 of 30 is 3, not 3.0000000000000004 and so 4."""


class HopelessError(PrunedError):
    """The trial is not among those that go on from a rung. `reached`: number of a rung → the trial's value there."""

    def __init__(self, message: str, *, reached: Mapping[int, float], step: int | None = None) -> None:
        super().__init__(message, step=step)
        self.reached = dict(reached)


class _Rungs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    at: tuple[float, ...] = Field(description="fractions of the training steps or of the documents, rising")
    direction: Direction
    first: int = Field(default=1, description="number of the first of these rungs among all of the trial")


class StageRungs(_Rungs):
    """The rungs of one stage. Not part of its key: they decide whether it ends, not what it leaves."""

    metric: str
    keep: float = Field(description="share that goes on")
    after: int = Field(description="rivals that a rung must have before it stops anyone")
    rivals: tuple[tuple[float | None, ...], ...] = Field(
        description="for each rung, the values of the earlier trials that reached it; null: not finite"
    )


class MeasureRungs(_Rungs):
    """The rungs of one trial's measurements."""

    p: float = Field(description="one-sided level at which worse than the rival ends the trial")
    metrics: dict[str, str] = Field(description="key of each measurement that counts → the metric that counts")
    tasks: dict[str, str] = Field(description="key → task: the objective is the mean over these of their means")
    rival: dict[str, dict[str, float]] = Field(description="key → document → score of the best trial so far")
    against: int = Field(description="number of that trial")
    known: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="key → document → score, for measurements that are in the store already"
    )


@dataclass(frozen=True)
class Point:
    """One logged value of a training curve."""

    step: int
    total: int
    value: float


@dataclass(frozen=True)
class Reached:
    """A rung that a curve has reached: its place from 0, where, and the value that counts (None: not finite)."""

    rung: int
    step: int
    total: int
    value: float | None


class Climb:
    """A curve on its way past the rungs, point by point.

    A rung is reached at the first logged step at or beyond its fraction of the steps. Its value is the mean since the
    rung before; where one step reaches two rungs, both have the same.
    """

    def __init__(self, at: Sequence[float]) -> None:
        self._at, self._next = at, 0
        self._window: list[float] = []
        self._last: float | None = None

    def add(self, point: Point) -> list[Reached]:
        """The rungs that this point reaches."""
        self._window.append(point.value)
        reached = []
        while self._next < len(self._at) and point.step >= self._at[self._next] * point.total - _SLACK:
            if self._window:
                mean = sum(self._window) / len(self._window)
                self._last = mean if math.isfinite(mean) else None
                self._window = []
            reached.append(Reached(self._next, point.step, point.total, self._last))
            self._next += 1
        return reached


def rung_values(points: Iterable[Point], at: Sequence[float]) -> list[float | None]:
    """The values of a curve at the rungs it reached, in order; None where not finite."""
    climb = Climb(at)
    return [reached.value for point in points for reached in climb.add(point)]


def places(keep: float, rivals: int) -> int:
    """How many of a trial and its rivals go on from a rung: at least one."""
    return max(1, math.ceil(keep * (rivals + 1) - _SLACK))


class StageJudge:
    """Looks at a stage's curve point by point, and ends it at a rung where it is hopeless."""

    def __init__(self, rungs: StageRungs) -> None:
        self.rungs = rungs
        self._climb = Climb(rungs.at)
        self._reached: dict[int, float] = {}

    def see(self, point: Point) -> None:
        """Take the next point.

        Raises:
            HopelessError: it reaches a rung from which the trial does not go on.
        """
        for reached in self._climb.add(point):
            # A value that is not finite is worse than any number, and no number that a sampler could learn from.
            if reached.value is not None:
                self._reached[self.rungs.first + reached.rung] = reached.value
            self._decide(reached)

    def _decide(self, reached: Reached) -> None:
        rungs = self.rungs
        rivals = sorted((_worth(v, rungs.direction) for v in rungs.rivals[reached.rung]), reverse=True)
        own = _worth(reached.value, rungs.direction)
        go_on = places(rungs.keep, len(rivals))
        if len(rivals) < rungs.after or sum(r > own for r in rivals) < go_on:
            return
        bar = rivals[go_on - 1] * (1 if rungs.direction == "maximize" else -1)
        value = "not finite" if reached.value is None else f"{reached.value:.4g}"
        raise HopelessError(
            f"rung {reached.rung + 1} of {len(rungs.at)} of the training, step {reached.step} of {reached.total}: "
            f"{rungs.metric} {value}, where {bar:.4g} was needed to be among the best {go_on} of {len(rivals) + 1} "
            "trials",
            reached=self._reached,
            step=reached.step,
        )


def _worth(value: float | None, direction: Direction) -> float:
    if value is None:
        return -math.inf
    return value if direction == "maximize" else -value


def judge_curve(rungs: StageRungs, points: Iterable[Point]) -> None:
    """Whether a whole curve passes every rung it reaches.

    Raises:
        HopelessError: it would have been stopped.
    """
    judge = StageJudge(rungs)
    for point in points:
        judge.see(point)


def split(identities: Sequence[str], at: Sequence[float]) -> list[list[int]]:
    """The places of the documents in the parts in which they are measured: one up to each rung, and the rest.

    The order is that of the documents' hashes; inside a part, places rise.
    """
    order = sorted(range(len(identities)), key=lambda i: identities[i])
    ends = [math.ceil(fraction * len(order) - _SLACK) for fraction in at]
    starts = [0, *ends]
    return [sorted(order[a:b]) for a, b in zip(starts, [*ends, len(order)], strict=True)]


def mean_score(scores: Scores, tasks: Mapping[str, str]) -> float:
    """The objective on these documents: the mean over tasks of the mean over each one's documents."""
    pooled: dict[str, list[float]] = {}
    for key, found in scores.items():
        pooled.setdefault(tasks[key], []).extend(found.values())
    means = [sum(values) / len(values) for values in pooled.values() if values]
    return sum(means) / len(means)


def judge_documents(rungs: MeasureRungs, rung: int, scores: Scores) -> float | None:
    """The value at a rung (its place from 0) of a trial that goes on; None where nothing was measured up to it.

    Args:
        scores: of the documents up to this rung.

    Raises:
        HopelessError: worse than the rival on the documents that both have, by the test and in the mean.
    """
    if not any(scores.values()):
        return None
    value = mean_score(scores, rungs.tasks)
    shared = {key: {d: s for d, s in found.items() if d in rungs.rival.get(key, {})} for key, found in scores.items()}
    other = {key: {d: rungs.rival[key][d] for d in found} for key, found in shared.items()}
    if not any(shared.values()):
        return value
    sign = 1.0 if rungs.direction == "maximize" else -1.0
    p = signed_rank([sign * (s - other[key][d]) for key, found in shared.items() for d, s in found.items()])
    mine, best = mean_score(shared, rungs.tasks), mean_score(other, rungs.tasks)
    if p >= rungs.p or sign * mine >= sign * best:
        return value
    count = sum(len(found) for found in shared.values())
    raise HopelessError(
        f"rung {rung + 1} of {len(rungs.at)} of the documents: {mine:.4g} on the first {count}, where trial "
        f"{rungs.against} has {best:.4g} (Wilcoxon signed-rank, one-sided p = {p:.2g} < {rungs.p:g})",
        reached={rungs.first + rung: value},
    )


def judge_scores(rungs: MeasureRungs, scores: Scores) -> None:
    """Whether whole measurements pass every rung.

    Raises:
        HopelessError: the trial would have been stopped.
    """
    for rung in range(len(rungs.at)):
        first = {}
        for key, found in scores.items():
            documents = list(found)
            parts = split(documents, rungs.at)[: rung + 1]
            first[key] = {documents[i]: found[documents[i]] for part in parts for i in part}
        judge_documents(rungs, rung, first)
