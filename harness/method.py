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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict

from harness.errors import PrunedError, UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "TORCH_BACKENDS",
    "Context",
    "DatasetKind",
    "Inputs",
    "LoadedModel",
    "Method",
    "Params",
    "Role",
    "Trained",
    "find_method",
    "method_names",
    "tunable",
]

Role = Literal["policy", "reference", "reward", "teacher"]
DatasetKind = Literal["instructions", "preferences", "prompts", "text"]
TORCH_BACKENDS = frozenset({"eager", "inductor", "tensorrt"})
"""The backends that run an ordinary model folder."""
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


@dataclass
class Inputs:
    """What a stage receives: model folders by role, loaded when first asked for, and the dataset.

    Dataset columns by kind (conversational, as TRL has them): instructions `prompt`, `completion`; preferences
    `prompt`, `chosen`, `rejected`; prompts `prompt`; text `text`. Other columns may be present (`constraints`).
    """

    folders: Mapping[Role, Path]
    loader: Callable[[Role, Path], LoadedModel]
    dataset: "Dataset | None" = None
    _loaded: dict[Role, LoadedModel] = field(default_factory=dict)

    def load(self, role: Role) -> LoadedModel:
        """The model in this role: fp32 weights, in memory once however often it is asked for."""
        if role not in self._loaded:
            if role not in self.folders:
                raise UserError(f"this recipe gives no {role!r} model; it has {sorted(self.folders)}")
            self._loaded[role] = self.loader(role, self.folders[role])
        return self._loaded[role]


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
    produces: ClassVar[Literal["policy", "reward"]] = "policy"
    compresses: ClassVar[bool | str] = False
    """Whether the policy comes out smaller; a setting's name: where that setting is not null."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """Distributions whose versions decide what it leaves, beside those that decide every stage (torch, …)."""
    fixed: ClassVar[frozenset[str]] = frozenset()
    """Settings that a suite gives as values and cannot search: those that `deploys` and `runs_on` go by."""

    @classmethod
    def deploys(cls, settings: Mapping[str, object]) -> bool:
        """Whether what it leaves is for running only, so that no step of a recipe may follow it."""
        return False

    @classmethod
    def runs_on(cls, settings: Mapping[str, object]) -> frozenset[str]:
        """The backends of targets that run the policy it leaves."""
        return TORCH_BACKENDS

    @classmethod
    def imports(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """Module that it imports with these settings and that may be missing → the extra of this package it is in."""
        return {}

    @abstractmethod
    def run(self, inputs: Inputs, params: P, context: Context) -> Trained:
        """Train, with every random choice drawn from `context.seed`."""


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
