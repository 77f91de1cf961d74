"""What is tracked of a run, and what a tracker must do."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

__all__ = ["MOST_POINTS", "Setting", "TrackedRun", "TrackedSweep", "Tracker"]

Setting = bool | int | float | str | None

MOST_POINTS = 1000
"""Points that a curve has in a tracker: of a longer one as many, evenly spaced, the first and the last among them."""


@dataclass(frozen=True)
class TrackedSweep:
    """The sweep that runs belong to."""

    sweep: str
    suite: str
    question: str


@dataclass(frozen=True)
class TrackedRun:
    """A tuning trial or final run that has ended. Every text in it is clean: no secret, no folder of this machine."""

    sweep: TrackedSweep
    name: str
    """`recipe/model/phase-trial-seed`: unique in the sweep, and a relative path that any file system takes."""
    revision: str
    """Hash of the state the run is in: another one where it was run again."""
    recipe: str
    model: str
    trial: int
    seed: int
    phase: Literal["tune", "final"]
    state: str
    failure: str | None
    """Kind of its latest failure, where it did not complete."""
    artifact: str | None
    settings: Mapping[str, Setting]
    """The searched settings, by their flat names (`dpo.beta`)."""
    fixed: Mapping[str, Setting]
    """All other settings of its stages, as far as these were computed."""
    figures: Mapping[str, float]
    """`objective/<name>`, `seconds`, `<half>/<target>/<task>/<metric>` and `profile/<target>/<setting>/<metric>`."""
    curves: Mapping[str, Sequence[tuple[int, float]]]
    """`train/<step>/<metric>` → (training step, value), steps rising; a value may be NaN."""
    began: datetime
    ended: datetime
    """UTC, aware, both."""

    @property
    def key(self) -> str:
        """An id that no run of another sweep has (16 hex)."""
        return hashlib.sha256(f"{self.sweep.sweep}/{self.name}".encode()).hexdigest()[:16]

    def facts(self) -> dict[str, str]:
        """What it is, as words to group and filter by."""
        found = {
            "sweep": self.sweep.sweep,
            "suite": self.sweep.suite,
            "recipe": self.recipe,
            "model": self.model,
            "trial": str(self.trial),
            "seed": str(self.seed),
            "phase": self.phase,
            "state": self.state,
        }
        optional = {"failure": self.failure, "artifact": self.artifact}
        return found | {name: value for name, value in optional.items() if value is not None}


class Tracker(Protocol):
    """One tracker's copy of one sweep. The store stays the truth: whatever a tracker has lost is written again.

    Any library's error may leave these methods; whoever calls them during a sweep reports it and goes on without.
    """

    look: str
    """How to look at it: a command, as far as there is one."""

    def known(self) -> Mapping[str, str]:
        """Name of each run that the tracker has → its revision; one that is only half there has another (``)."""

    def remove(self, name: str) -> None:
        """Take out a run that `known` has named."""

    def write(self, run: TrackedRun) -> None:
        """Write the whole of a run that is not there. It counts as known once everything of it is."""

    def close(self) -> None:
        """Have everything on disk, or sent."""
