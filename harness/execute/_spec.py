"""What travels between the sweep and a worker: specs and results, plain JSON."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from harness.data import Half

__all__ = ["Executor", "Item", "MeasureSpec", "Progress", "Result", "StageSpec"]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageSpec(_Spec):
    """One stage to compute. Model references are artifact keys or model names (see `Folders`)."""

    kind: Literal["stage"] = "stage"
    key: str
    method: str
    version: int
    params: dict[str, Any]
    inputs: dict[str, str] = Field(description="role → model reference")
    dataset: str | None = None
    dataset_fingerprint: str | None = None
    data: str
    seed: int
    precision: Literal["float32", "bfloat16"]
    threads: int = 1
    limit_s: float | None = None
    label: str = ""
    urgency: int = 0


class Item(_Spec):
    """One measurement of a `MeasureSpec`: what is measured and the key it is stored under."""

    key: str
    kind: Literal["task", "gold", "judge", "profile"]
    task: str
    settings: dict[str, Any]


class MeasureSpec(_Spec):
    """Measurements of one model on one target, made in one process so that the model is loaded once."""

    kind: Literal["measure"] = "measure"
    key: str
    model: str
    artifact: str
    target: dict[str, Any]
    data: str
    halves: tuple[Half, ...]
    scorer: str
    items: tuple[Item, ...]
    reward: str | None = None
    base: str
    judge: str | None = None
    alone: bool = Field(False, description="run while no other work is under way: latency and memory")
    label: str = ""
    urgency: int = Field(0, description="small first where work waits: what other work waits for before what ends here")


class Result(_Spec):
    """How a spec ended: with the reason and the traceback, unless complete. Rows are in the store's shards."""

    key: str
    state: Literal["complete", "failed", "infeasible", "crash"]
    seconds: float = 0.0
    message: str = ""
    traceback: str = ""


class Progress(_Spec):
    """A sign of life from a worker: `label` is at `step` of `total`."""

    key: str
    label: str
    step: int
    total: int
    metrics: dict[str, float] = Field(default_factory=dict)


class Executor(Protocol):
    """Runs specs. Local worker processes by default; a cluster engine keeps the same two methods."""

    async def run(self, spec: StageSpec | MeasureSpec, report: Callable[[Progress], None]) -> Result:
        """Run one spec to its end; never raises for what the spec itself did."""

    async def close(self) -> None:
        """Stop the workers."""
