"""What travels between the sweep and a worker: specs and results, plain JSON."""

from collections.abc import Callable
from typing import Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from harness.data import Half
from harness.rungs import MeasureRungs, StageRungs
from harness.targets import Target

__all__ = [
    "ENDPOINT",
    "Executor",
    "Item",
    "ItemKind",
    "JudgeSpec",
    "MeasureSpec",
    "Progress",
    "Resources",
    "Result",
    "StageSpec",
    "read_spec",
    "resources_of",
]


ENDPOINT = "endpoint:"
"""In front of the name of a judge that is no model here, where a stage's inputs refer to it."""

ItemKind = Literal["task", "gold", "judge", "judge_check", "pairs", "profile", "domain"]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StageSpec(_Spec):
    """One stage to compute. Model references are artifact keys or model names (see `Folders`)."""

    kind: Literal["stage"] = "stage"
    key: str
    method: str
    version: int
    params: dict[str, Any]
    inputs: dict[str, str] = Field(
        description="role → model reference; data: the dataset made before; prepared: what the preparation left"
    )
    dataset: str | None = None
    dataset_fingerprint: str | None = None
    datasets: dict[str, str] = Field(default={}, description="further datasets by name → fingerprint of their rows")
    data: str
    seed: int
    precision: Literal["float32", "bfloat16"]
    round: int = Field(default=0, description="which time round a repeated group of steps, from 0")
    endpoint: dict[str, Any] | None = Field(default=None, description="settings of the judge, where it is none of ours")
    threads: int = 1
    limit_s: float | None = Field(default=None, description="wall seconds; past them the stage is pruned")
    memory_mb: float | None = Field(default=None, description="resident memory; beyond it the stage is infeasible")
    checkpoint_s: float | None = Field(default=None, description="seconds between two checkpoints; null: none")
    rungs: StageRungs | None = Field(default=None, description="where a tuning trial may be stopped; not in the key")
    label: str = ""
    urgency: int = 0


class Item(_Spec):
    """One measurement of a `MeasureSpec`: what is measured and the key it is stored under."""

    key: str
    kind: ItemKind
    task: str
    settings: dict[str, Any]
    artifact: str | None = Field(default=None, description="what it is of, where that is not the spec's artifact")


class JudgeSpec(_Spec):
    """Who judges: a model by its reference, or the settings of an endpoint (`harness.suite.Endpoint`)."""

    name: str
    key: str = Field(description="what decides its votes")
    model: str | None = None
    words: int | None = Field(default=None, description="tokens of the words it judges in; null: by probabilities")
    own: bool = Field(default=False, description="it is the model under test itself")
    endpoint: dict[str, Any] | None = None


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
    judges: tuple[JudgeSpec, ...] = ()
    repeat: int = Field(
        default=0, ge=0, description="number of the repeat, for the noise floor: other batches, other random numbers"
    )
    alone: bool = Field(default=False, description="run while no other work is under way: latency and memory")
    limit_s: float | None = Field(default=None, description="wall seconds; past them the measurement is pruned")
    memory_mb: float | None = Field(default=None, description="resident memory; beyond it: infeasible")
    rungs: MeasureRungs | None = Field(default=None, description="where a tuning trial may be stopped; not in a key")
    label: str = ""
    urgency: int = Field(
        default=0, description="small first where work waits: what other work waits for before what ends here"
    )

    @model_validator(mode="after")
    def _tuning_only(self) -> Self:
        if self.rungs is not None and self.halves != ("tune",):
            raise ValueError("rungs look at tuning documents only")
        return self


_SPECS: TypeAdapter[StageSpec | MeasureSpec] = TypeAdapter(StageSpec | MeasureSpec)


def read_spec(text: str | bytes) -> StageSpec | MeasureSpec:
    """A spec from its JSON.

    Raises:
        ValidationError: pydantic's, where it is none.
    """
    return _SPECS.validate_json(text)


class Result(_Spec):
    """How a spec ended: with the reason and the traceback, unless complete. Rows are in the store's shards."""

    key: str
    state: Literal["complete", "failed", "infeasible", "pruned", "crash"]
    seconds: float = 0.0
    message: str = ""
    traceback: str = ""
    peak_mb: float | None = Field(default=None, description="largest resident memory of the process that ran it, MiB")
    step: int | None = Field(default=None, description="training step at which it ended, where it did not complete")
    reached: dict[int, float] = Field(
        default_factory=dict, description="where stopped at a rung: its number → the trial's value there"
    )
    storage: bool = Field(
        default=False, description="the disk refused (see StorageError): the spec is not to blame, and the sweep ends"
    )


class Progress(_Spec):
    """A sign of life from a worker: `label` is at `step` of `total`."""

    key: str
    label: str
    step: int
    total: int
    metrics: dict[str, float] = Field(default_factory=dict)


class Resources(_Spec):
    """What a spec occupies while it runs. `custom` are a cluster's own names for hardware (a target's `resources`)."""

    cpus: int = 1
    gpus: int = 0
    gpu_if_there: bool = Field(default=False, description="one GPU where the machine has any: a stage trains on it")
    custom: dict[str, float] = Field(default_factory=dict)
    whole_machine: bool = Field(default=False, description="nothing else may run there meanwhile")


def resources_of(spec: StageSpec | MeasureSpec) -> Resources:
    """The resources of a spec: a stage trains on CPU threads, a measurement occupies what its target names."""
    if isinstance(spec, StageSpec):
        return Resources(cpus=spec.threads, gpu_if_there=True)
    target = Target.model_validate(spec.target)
    return Resources(
        cpus=target.threads, gpus=int(target.on_gpu), custom=dict(target.resources), whole_machine=spec.alone
    )


class Executor(Protocol):
    """Runs specs. Local worker processes by default; a cluster engine keeps the same two methods."""

    async def run(self, spec: StageSpec | MeasureSpec, report: Callable[[Progress], None]) -> Result:
        """Run one spec to its end; never raises for what the spec itself did. Cancelled, it leaves nothing at work."""

    async def close(self) -> None:
        """Stop the workers, also those at work."""
