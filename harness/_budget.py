"""What a suite's cells may spend, and when a tuning trial is given up before its end."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from harness._measures import Direction, Strict

__all__ = ["Budget", "DocumentRungs", "EarlyStopping", "TrainingRungs"]

_CHECKPOINT_MINUTES = 10.0

Fraction = Annotated[float, Field(gt=0, lt=1)]


def _rising(rungs: list[float]) -> list[float]:
    if rungs != sorted(set(rungs)):
        raise ValueError(f"expected rising fractions, got {rungs}")
    return rungs


Fractions = Annotated[list[Fraction], Field(min_length=1), AfterValidator(_rising)]


class Budget(Strict):
    """What each cell may spend; every cell has the same, or the comparison would not be fair.

    A cell stops tuning at the first bound it reaches. Its chosen settings are measured all the same.
    """

    trials_per_cell: int = Field(ge=1, description="trials of each cell (recipe × model)")
    batch: int = Field(
        default=1, ge=1, description="trials suggested together; a batch sees the results of earlier ones only"
    )
    device_hours: float | None = Field(
        default=None, gt=0, description="hours of workers that a cell's tuning may take; null: no limit"
    )
    tokens: int | None = Field(
        default=None, ge=1, description="tokens that a cell's tuning may train on and sample; null: no limit"
    )
    judge_cost: float | None = Field(
        default=None,
        gt=0,
        description="what a cell's tuning may spend on judge votes, in the unit of measure.judge.cost_per_vote; "
        "null: no limit",
    )
    stage_minutes: float | None = Field(
        default=None, gt=0, description="a stage that runs longer is stopped and its trial pruned; null: no limit"
    )
    measure_minutes: float | None = Field(
        default=None, gt=0, description="a measurement that runs longer is stopped and its trial pruned; null: no limit"
    )
    checkpoint_minutes: float | None = Field(
        default=_CHECKPOINT_MINUTES,
        gt=0,
        description="minutes between two checkpoints of a stage that trains, from which it goes on where its worker or "
        "the sweep was killed; null: it begins anew",
        exclude_if=lambda minutes: bool(minutes == _CHECKPOINT_MINUTES),
    )
    memory_gb: float | None = Field(
        default=None,
        gt=0,
        description="a stage or measurement that takes more memory (resident, GiB) is stopped and its trial "
        "infeasible; null: what the machine has",
    )

    @property
    def stage_seconds(self) -> float | None:
        """The bound on a stage, s."""
        return None if self.stage_minutes is None else self.stage_minutes * 60

    @property
    def checkpoint_seconds(self) -> float | None:
        """Between two checkpoints of a stage, s; None: there are none."""
        return None if self.checkpoint_minutes is None else self.checkpoint_minutes * 60

    @property
    def measure_seconds(self) -> float | None:
        """The bound on a measurement, s."""
        return None if self.measure_minutes is None else self.measure_minutes * 60

    @property
    def memory_mb(self) -> float | None:
        """The bound on memory, MiB."""
        return None if self.memory_gb is None else self.memory_gb * 1024

    def batch_start(self, trial: int) -> int:
        """The first trial of the batch that this one belongs to."""
        return trial - trial % self.batch


class TrainingRungs(Strict):
    """Successive halving (Jamieson & Talwalkar 2016; Li et al. 2020) by a metric of the training curve.

    At each rung a trial goes on only if its metric, the mean since the rung before, is among the best `keep` of itself
    and the trials that reached that rung in earlier batches.
    """

    metric: str = Field(min_length=1, description="what the cell's searched method logs: loss, reward, accuracy, ...")
    direction: Direction = Field(default="minimize", description="of the metric")
    rungs: Fractions = Field(default=[0.25, 0.5], description="fractions of the training steps")
    keep: Fraction = Field(default=0.5, description="share of the trials that go on from a rung")
    after: Annotated[int, Field(ge=1)] = Field(
        default=3, description="trials that must have reached a rung before one is stopped there"
    )


class DocumentRungs(Strict):
    """Wilcoxon's signed-rank test (1945) of the tuning documents measured so far against the best trial's.

    For a single objective that is a mean over documents: gold_reward, rm_reward, score or a task's metric.
    """

    rungs: Fractions = Field(default=[0.25, 0.5], description="fractions of the tuning documents")
    p: Fraction = Field(default=0.1, description="level, one-sided, at which worse than the best trial is stopped")
    test: Literal["wilcoxon"] = Field(default="wilcoxon", description="the test")


class EarlyStopping(Strict):
    """Rungs at which a hopeless tuning trial ends. Only tuning documents are looked at."""

    training: TrainingRungs | None = Field(default=None, description="rungs of the training steps")
    documents: DocumentRungs | None = Field(default=None, description="rungs of the tuning documents")

    @model_validator(mode="after")
    def _something(self) -> "EarlyStopping":
        if self.training is None and self.documents is None:
            raise ValueError("no rungs; give training or documents, or leave early_stopping out")
        return self
