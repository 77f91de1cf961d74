"""What a sweep shows of itself: a live display on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from harness._printable import printable
from harness.execute import Progress as Sign

__all__ = ["Display"]

_PLAIN_EVERY_S = 10.0
_SHOWN = ("reward", "loss", "policy_loss", "kl", "rewards_margin", "accuracy")


class Display:
    """Cells, stages and their steps with a time to go; every line also makes sense in a log file."""

    def __init__(self, console: Console | None = None) -> None:
        """`console` writes to standard error by default, so that standard output holds the answer alone."""
        self._console = console or Console(stderr=True)
        self._live = self._console.is_terminal
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._labels: dict[str, str] = {}
        self._started: dict[str, float] = {}
        self._said: dict[str, float] = {}
        self._begin = time.monotonic()

    def __enter__(self) -> Self:
        """Start the live display, if there is one."""
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._live:
            self._bars.stop()

    def note(self, text: str) -> None:
        """A line worth keeping."""
        clock = time.monotonic() - self._begin
        self._console.print(
            f"[{int(clock) // 60:d}:{int(clock) % 60:02d}] {printable(text)}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def cell(self, recipe: str, model: str, done: int, total: int) -> None:
        """A cell has finished `done` of its `total` trials."""
        key, label = f"cell {recipe} {model}", f"{recipe}: trials"
        if self._live:
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(printable(label), total=total, figures="")
            self._bars.update(self._tasks[key], completed=done)
        elif done < total:
            self.note(f"{recipe} on {model}: {done} of {total} trials done")

    def waiting(self, key: str, label: str) -> None:
        """A stage or measurement was handed to the executor."""
        self._labels[key] = label
        if self._live:
            self._tasks[key] = self._bars.add_task(printable(label), total=None, start=False, figures="waiting")

    def progress(self, sign: Sign) -> None:
        """A sign of life of what runs."""
        now = time.monotonic()
        self._started.setdefault(sign.key, now)
        figures = "  ".join(f"{m} {sign.metrics[m]:.3g}" for m in _SHOWN if m in sign.metrics)
        if self._live and sign.key in self._tasks:
            task = self._tasks[sign.key]
            if not self._bars.tasks[self._bars.task_ids.index(task)].started:
                self._bars.start_task(task)
            self._bars.update(task, completed=sign.step, total=sign.total, figures=figures)
        elif not self._live and now - self._said.get(sign.key, 0.0) > _PLAIN_EVERY_S:
            self._said[sign.key] = now
            spent = now - self._started[sign.key]
            left = (
                f", about {spent / sign.step * (sign.total - sign.step):.0f} s to go" if sign.step and spent > 1 else ""
            )
            self.note(f"{sign.label}: step {sign.step} of {sign.total}{left}  {figures}".rstrip())

    def finished(self, key: str, state: str) -> None:
        """It ended, in this state."""
        if self._live and key in self._tasks:
            self._bars.remove_task(self._tasks.pop(key))
        if state == "complete":
            spent = time.monotonic() - self._started.get(key, time.monotonic())
            self.note(f"{self._labels.get(key, key)}: done" + (f" in {spent:.0f} s" if spent >= 1 else ""))
