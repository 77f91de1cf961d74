"""The method contract: what one post-training technique declares, receives and returns.

A method knows nothing of Optuna, DuckDB or suites. It is found by its name (`methods/<name>.py`), by a dotted path
(`package.module:Class`) or through the entry-point group `harness.methods`.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import pkgutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

from harness.errors import PrunedError, UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "MADE",
    "TORCH_BACKENDS",
    "Context",
    "DatasetKind",
    "Inputs",
    "Judge",
    "LoadedModel",
    "Made",
    "Method",
    "Params",
    "Record",
    "RecordKind",
    "Role",
    "Trained",
    "Turns",
    "find_method",
    "method_names",
    "tunable",
]

Role = str
"""What a model is to a stage: policy, reference, reward, teacher, judge, …"""
RecordKind = Literal["answer", "sample", "critique", "revision", "label", "demonstration"]
Turns = Sequence[Mapping[str, str]]
DatasetKind = Literal["instructions", "preferences", "prompts", "text"]
TORCH_BACKENDS = frozenset({"eager", "inductor", "tensorrt"})
"""The backends that run an ordinary model folder."""
MADE = "made"
"""As a step's `dataset`: the set that the nearest step before it has made."""
Precision = Literal["float32", "bfloat16"]


class Params(BaseModel):
    """Base of every method's settings: strict, frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)


def tunable(low: float, high: float, *, log: bool = False) -> JsonDict:
    """Mark a `Params` field with the search range the literature uses: `Field(..., json_schema_extra=tunable(...))`.

    Used when a suite says `learning_rate: search`.
    """
    return {"search": {"min": low, "max": high, "log": log}}


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer and the folder both were loaded from."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    folder: Path


class Judge(Protocol):
    """A model that says how good an answer is, or which of two is better."""

    @property
    def name(self) -> str:
        """As the suite calls it."""

    def rate(self, asked: Sequence[tuple[Turns, str]]) -> list[float]:
        """How helpful each response is to its prompt: 1 (useless) to 10 (excellent), in order."""

    def prefer(self, asked: Sequence[tuple[Turns, str, str]], principles: Sequence[str] | None = None) -> list[float]:
        """The probability that the first of two responses to a prompt is the better one, in order.

        Each pair is shown in both orders and the mean taken, so that the place decides nothing.

        Args:
            asked: prompt, first response, second response.
            principles: what to judge by, one for each pair; None: by how good an answer it is.
        """


@dataclass
class Inputs:
    """What a stage receives: model folders by role, loaded when first asked for, and the dataset.

    Dataset columns by kind (conversational, as TRL has them): instructions `prompt`, `completion`; preferences
    `prompt`, `chosen`, `rejected`; prompts `prompt`; text `text`. Other columns may be present (`constraints`).
    """

    folders: Mapping[Role, Path]
    loader: Callable[[Role, Path], LoadedModel]
    dataset: "Dataset | None" = None
    judging: "Callable[[], Judge] | None" = None
    """Makes the judge that the step names."""
    judged: Judge | None = None
    """That judge, once it was asked for."""
    prepared: Sequence[Mapping[str, object]] | None = None
    """The rows that the method's preparation left (`Method.prepares`); None where it was run without one."""
    further: "Mapping[str, Dataset]" = field(default_factory=dict)
    """The datasets that settings name beside `dataset` (`Method.datasets`), by name."""
    _loaded: dict[Role, LoadedModel] = field(default_factory=dict)

    def load(self, role: Role) -> LoadedModel:
        """The model in this role: fp32 weights, in memory once however often it is asked for."""
        if role not in self._loaded:
            if role not in self.folders:
                raise UserError(f"this recipe gives no {role!r} model; it has {sorted(self.folders)}")
            self._loaded[role] = self.loader(role, self.folders[role])
        return self._loaded[role]

    def judge(self) -> Judge:
        """The judge of this stage: never the model in memory that learns.

        Raises:
            UserError: it has none.
        """
        if self.judged is None:
            if self.judging is None:
                raise UserError("this step has no judge; set its `judge` to self, base, a recipe or a model")
            self.judged = self.judging()
        return self.judged

    def named(self, name: str) -> "Dataset":
        """A dataset that a setting names beside `dataset`.

        Raises:
            UserError: the stage was given none of this name.
        """
        if name not in self.further:
            raise UserError(f"this stage was given no dataset {name!r}; it has {sorted(self.further)} beside its own")
        return self.further[name]


@dataclass
class Context:
    """What a stage may know of its surroundings.

    `scratch` is emptied afterwards; `precision` is the autocast type (weights stay fp32); `deadline` is a
    `time.monotonic()` instant. `log` stores one training step's metrics and feeds the progress display.
    """

    seed: int
    scratch: Path
    precision: Precision
    log: Callable[[int, int, Mapping[str, float]], None]
    """`log(step, total_steps, metrics)`."""
    deadline: float | None = None
    round: int = 0
    """Which time round a repeated group of steps this is; who takes only some of the prompts takes others each time."""
    checkpoints: Path | None = None
    """A folder of this stage that outlives a killed worker: for what it takes to go on. None: no checkpoints."""
    checkpoint_s: float = 600.0
    """Seconds between two of them."""
    before_s: float = 0.0
    """Seconds that the stage took before it went on from a checkpoint."""
    began: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """What the stage has taken so far, s: also before its worker was killed, as far as that was kept."""
        return self.before_s + time.monotonic() - self.began

    def resumed(self, seconds: float) -> None:
        """The stage goes on from a checkpoint, made when it had taken so long: its deadline is no later for it."""
        self.before_s += seconds
        if self.deadline is not None:
            self.deadline -= seconds

    def check(self) -> None:
        """Call once a step.

        Raises:
            PrunedError: the stage is past its deadline.
        """
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise PrunedError("the stage ran past its deadline (budget.stage_minutes)")


@dataclass(frozen=True)
class Trained:
    """What a method returns; the engine saves it. `metrics` are final figures worth a row each (steps, tokens, …)."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    metrics: Mapping[str, float] = field(default_factory=dict)
    write: Callable[[Path], None] | None = None
    """Writes the artifact's files into an empty folder, where they are not those of an ordinary model folder (packed or
    exported weights, an adapter beside its base). Called while the stage's scratch folder is still there."""


@dataclass(frozen=True)
class Record:
    """One thing that was said while a dataset was made."""

    row: int
    """Which prompt, in the order in which they were taken."""
    turn: int
    """Order within the row."""
    kind: RecordKind
    prompt: str
    text: str
    principle: str = ""
    by: str = ""
    """Who gave the score: the reward model, a verifier, a judge by its name."""
    score: float | None = None
    kept: bool | None = None
    """Whether it went into the dataset; None where it could not."""


@dataclass(frozen=True)
class Made:
    """What a method that makes a dataset returns; the engine saves it.

    `rows` have the columns of `Inputs` for the kind that the method makes; further columns are kept.
    """

    rows: Sequence[Mapping[str, object]]
    records: Sequence[Record] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


P = TypeVar("P", bound=Params)


class Method(ABC, Generic[P]):
    """One post-training technique. `version` rises whenever the same settings would give other weights."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    version: ClassVar[int]
    params: ClassVar[type[Params]]
    needs: ClassVar[frozenset[Role]]
    dataset_kind: ClassVar[DatasetKind | None]
    produces: ClassVar[Literal["policy", "reward", "dataset"]] = "policy"
    makes: ClassVar[DatasetKind | None] = None
    """The kind of dataset it produces; None: what it leaves is for the step that it prepares only."""
    compresses: ClassVar[bool | str] = False
    """Whether the policy comes out smaller; a setting's name: where that setting is not null."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions decide what it leaves, beside those that decide every stage (torch, …)."""
    fixed: ClassVar[frozenset[str]] = frozenset()
    """Settings that a suite gives as values and cannot search: those that `deploys`, `runs_on`, `needs_with`, `reads`
    and `prepares` go by."""

    @classmethod
    def deploys(cls, settings: Mapping[str, object]) -> bool:
        """Whether what it leaves is for running only, so that no step of a recipe may follow it."""
        return False

    @classmethod
    def runs_on(cls, settings: Mapping[str, object]) -> frozenset[str]:
        """The backends of targets that run the policy it leaves."""
        return TORCH_BACKENDS

    @classmethod
    def needs_with(cls, settings: Mapping[str, object]) -> frozenset[Role]:
        """The models that it needs with these settings; a role `judge` is the model that the setting `judge` names."""
        return cls.needs

    @classmethod
    def reads(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """A fingerprint of each thing outside the suite that the settings name, by a name of its own: part of the key.

        Raises:
            UserError: it cannot be had. Asked before anything runs.
        """
        return {}

    @classmethod
    def datasets(cls, settings: Mapping[str, object]) -> Mapping[str, DatasetKind]:
        """The datasets that settings name beside `dataset`, with the kind that each must be: for `Inputs.named`."""
        return {}

    @classmethod
    def merges(cls, settings: Mapping[str, object]) -> Sequence[str] | None:
        """The models that the setting `models` names, which come in the roles `merge_0`, `merge_1`, …

        Recipes, `base` or models. None: it merges nothing; empty: the policies after each own step of its recipe so
        far that trained one. The role `origin` is the base model that all of the recipe began with.
        """
        return None

    @classmethod
    def prepares(cls, settings: Mapping[str, object]) -> "tuple[str, Mapping[str, object]] | None":
        """A method with its settings, to be run before on the same policy and dataset, for `Inputs.prepared`.

        Computed once for all stages that ask for the same.
        """
        return None

    @classmethod
    def imports(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """Module that it imports with these settings and that may be missing → the extra of this package it is in."""
        return {}

    @abstractmethod
    def run(self, inputs: Inputs, params: P, context: Context) -> Trained | Made:
        """Train, or make a dataset, with every random choice drawn from `context.seed`."""


@functools.cache
def _installed() -> Mapping[str, importlib.metadata.EntryPoint]:
    # Once a process: looking through all installed packages takes 30 ms, and a plan asks thousands of times.
    found = importlib.metadata.entry_points(group="harness.methods")
    return {e.name: e for e in reversed(tuple(found))}


@functools.cache
def _own_names() -> frozenset[str]:
    spec = importlib.util.find_spec("methods")
    places = list(spec.submodule_search_locations or []) if spec else []
    return frozenset(m.name for m in pkgutil.iter_modules(places) if not m.name.startswith("_"))


def method_names() -> list[str]:
    """The names a suite may use as they are: the files of `methods/` and the installed entry points."""
    return sorted(_own_names() | _installed().keys())


def find_method(name: str) -> "type[Method[Params]]":
    """The method class of this name; imports no torch (methods import their libraries inside `run`).

    Raises:
        UserError: no such method, or what was found is none.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"cannot load the method {name!r}: {error}") from error
    elif (entry := _installed().get(name)) is not None:
        found = entry.load()
    elif name in _own_names():
        module = importlib.import_module(f"methods.{name}")
        found = next(
            (
                c
                for c in vars(module).values()
                if isinstance(c, type) and issubclass(c, Method) and getattr(c, "name", None) == name
            ),
            None,
        )
    else:
        raise UserError(f"unknown method {name!r}; known: {', '.join(method_names())}, or package.module:Class")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{name!r} is not a harness.method.Method")
    return found
