"""What is known of one entry beside its scores: where it came from, what it took, how to repeat it."""

import hashlib
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue

if TYPE_CHECKING:
    import polars as pl

__all__ = ["SAMPLES", "Budget", "Card", "Condition", "Failure", "JudgeQuality", "Stage", "digest_of", "identity"]

SAMPLES = {
    "task": "String",
    "metric": "String",
    "seed": "Int64",
    "document": "String",
    "score": "Float64",
    "response": "String",
    "prompt": "String",
    "expected": "String",
}
"""The columns of an entry's samples and their polars types; in an export `entry` stands before them.

A row is a document under one metric and seed, one repeat of a profile (task `profile`, document `setting/repeat`), or
what one person says (task `people`, document `document/number of the rater`).
"""

_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Share = Annotated[float, Field(allow_inf_nan=False)]
_Span = tuple[_Share, _Share | None, _Share | None]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Stage(_Strict):
    """One training stage of the final runs; `params` as JSON."""

    key: str
    method: str
    version: int
    seed: int
    dataset: str | None
    fingerprint: str | None
    inputs: dict[str, str | None]
    params: str
    precision: str
    seconds: _Amount
    peak_mb: _Amount


class Condition(_Strict):
    """How one of the tasks that a suite's task is made of was measured."""

    task: str
    leaf: str
    settings: dict[str, JsonValue]


class JudgeQuality(_Strict):
    """How good a judge of the sweep is known to be, as it was measured there; None where it was not asked.

    Value and the bounds of its 95 % interval: `accuracy` on `known_pairs` of which one answer is the better one, ties
    half; `flips`, the share of them whose verdict changed with the order; `injections`, the share of attacks that got
    the verdict they asked for. `unparsed` of the `asked` questions got no verdict.
    """

    judge: str
    accuracy: _Span | None
    known_pairs: int
    flips: _Span | None
    injections: _Span | None
    asked: int
    unparsed: int


class Failure(_Strict):
    """One failure that the recipe's runs had, in whatever phase."""

    trial: int
    seed: int
    kind: str
    message: str
    traceback: str
    command: str | None


class Budget(_Strict):
    """What the recipe took on its base model, tuning and final runs together, on all targets; seconds of workers.

    A stage or measurement counts once, with what it took when it was computed, whoever computed it.
    """

    tuning_trials: dict[str, int]
    final_runs: dict[str, int]
    training_seconds: _Amount
    measuring_seconds: _Amount
    failed_seconds: _Amount
    peak_mb: _Amount | None

    @property
    def trials(self) -> int:
        """Tuning trials in whatever state."""
        return sum(self.tuning_trials.values())

    @property
    def device_seconds(self) -> float:
        """All of it."""
        return self.training_seconds + self.measuring_seconds + self.failed_seconds


class Card(_Strict):
    """One recipe on one base model and target, cleaned of what names a machine.

    `id` is a digest of the four names, `digest` one of `id` and every score, `base` that of the base model's entry.
    """

    id: _Hex
    digest: _Digest
    base: _Digest | None
    sweep: str
    suite: str
    question: str
    state: str
    recorded_at: str
    recipe: str
    steps: list[str]
    model: str
    target: str
    data: str
    settings: dict[str, JsonValue]
    chosen_trial: int | None
    batch: str
    """The setting of profiles that stands for the others: `batch=1`."""
    objectives: dict[str, str]
    budget: Budget
    command: str
    yaml: str
    scrubbed: bool
    """Whether paths, names or secrets were taken out of the suite."""
    environment: list[tuple[str, dict[str, JsonValue]]]
    stages: list[Stage]
    artifacts: dict[str, str]
    """Seed → key of the scored artifact."""
    measurements: list[tuple[str, str]]
    """Task and key of each measurement behind the scores."""
    conditions: list[Condition]
    datasets: dict[str, list[str]]
    """Task → the datasets of the Hub that its documents are; of those alone that came from there."""
    judges: list[JudgeQuality]
    failures: list[Failure]
    notes: list[str]

    @property
    def method(self) -> str:
        """The steps of the recipe in a line."""
        return " → ".join(self.steps) or "none (base model)"

    @property
    def label(self) -> str:
        """As the board names it."""
        return f"{self.recipe} · {self.model}"


def identity(sweep: str, recipe: str, model: str, target: str) -> str:
    """The id of an entry: 16 hex of the sha256 of its four names."""
    return _sha256([json.dumps([sweep, recipe, model, target])])[:16]


def digest_of(entry: str, samples: "pl.DataFrame") -> str:
    """sha256 over an entry's id and every score, in whatever order the rows are: texts are no part of it."""
    rows = samples.select("task", "metric", "seed", "document", "score").sort("task", "metric", "seed", "document")
    # repr of a float is exact, and the same everywhere.
    return _sha256([entry, *(json.dumps([*row[:4], _exact(row[4])]) for row in rows.iter_rows())])


def _exact(score: float) -> str:
    return repr(float(score) + 0.0) if math.isfinite(score) else "none"


def _sha256(lines: Iterable[str]) -> str:
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode() + b"\n")
    return found.hexdigest()
