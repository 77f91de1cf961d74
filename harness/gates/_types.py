"""What a gate says: a flag, or that it could not check and why; and the constants that several gates share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from harness.gates._evidence import Evidence

__all__ = ["MATERIAL", "Checked", "Flag", "Gate", "Said", "Severity", "Unchecked"]

Severity = Literal["invalid", "warning"]

MATERIAL = 0.05
"""A defect of this share of the documents moves a mean of scores within [0, 1] by as much, 5 points, at most. That is
about what these comparisons are made of (100 documents resolve a difference of some 10 points), so beyond it a
figure is called invalid. A convention; no source has this number."""


@dataclass(frozen=True)
class Flag:
    """Something found that makes a figure doubtful (`warning`) or worthless (`invalid`).

    `seed` is None where the finding is of all seeds, or of a model that no seed trained. `task` is "" where it is of no
    single task. `figures` are those the message gives, by name, unrounded.
    """

    gate: str
    severity: Severity
    recipe: str
    model: str
    task: str
    seed: int | None
    message: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Unchecked:
    """What a gate could not check, and why; "" stands for all recipes, models or tasks."""

    gate: str
    recipe: str
    model: str
    task: str
    why: str


Said = Flag | Unchecked
Gate = Callable[["Evidence"], Iterable[Said]]
"""A gate reads the evidence and says what it found. It writes nothing."""


@dataclass(frozen=True)
class Checked:
    """The flags of a sweep, most severe first, and what was not checked."""

    flags: Sequence[Flag]
    unchecked: Sequence[Unchecked]
