"""Watching over what is at work: time, memory, silence and the size of logs. What goes beyond its bounds is ended."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from harness.execute._memory import available_mb, system_kills, total_mb
from harness.execute._process import Worker
from harness.execute._spec import MeasureSpec, Progress, Result, StageSpec
from harness.execute._tree import descendants, memory_mb, shared_fairly_mb

__all__ = ["AtWork", "Watch"]

_EVERY_S = 0.25
_GRACE_S = 5.0
_GRACE_SHARE = 0.05
_LONGEST_GRACE_S = 60.0
_BEGINS_WITHIN_S = 120.0
"""A fresh worker imports its libraries first: the limit counts from when it has, or from here."""
_LAST_MEMORY = 0.02
_WORTH_KILLING = 0.1
_RECOVERS_S = 3.0


@dataclass
class AtWork:
    """A spec that a worker runs, and what was seen of it. Instants are of `time.monotonic`, which no clock moves."""

    spec: StageSpec | MeasureSpec
    worker: Worker
    asked: float = field(default_factory=time.monotonic)
    system_kills: int = field(default_factory=system_kills)
    taken: bool = False
    """Whether the worker has begun with it."""
    began: float | None = None
    heard: float = field(default_factory=time.monotonic)
    step: int | None = None
    peak_mb: float = 0.0
    ended: Result | None = None
    """How it was ended, where the watch did that."""
    warned: bool = False
    late: bool = False

    @property
    def name(self) -> str:
        """How the user knows it."""
        return self.spec.label or self.spec.key

    def ready(self) -> None:
        """The worker has its libraries: the spec's own work begins."""
        self.began = self.heard = time.monotonic()

    def sign(self, progress: Progress) -> None:
        """It lives."""
        self.heard, self.step = time.monotonic(), progress.step

    def result(self, state: str, message: str) -> Result:
        """Its result where it leaves none itself."""
        return Result.model_validate(
            {
                "key": self.spec.key,
                "state": state,
                "seconds": time.monotonic() - (self.began or self.asked),
                "message": message,
                "traceback": self.worker.log.tail(),
                "peak_mb": self.peak_mb or None,
                "step": self.step,
            }
        )

    def look(self) -> float:
        """Resident memory of the worker and what it started, in MiB; keeps the highest."""
        now, highest = memory_mb(self.worker.pid)
        others = sum(memory_mb(pid)[0] for pid in descendants(self.worker.pid))
        # Before that, its highest is of what it did before.
        self.peak_mb = max(self.peak_mb, now + others, highest if self.began is not None else 0.0)
        return now + others


class Watch:
    """One task that looks at everything at work four times a second, while there is something.

    Args:
        warn: told once of a spec that has no limit and gives no sign of life.
        quiet_s: after how many seconds without one.
        available: MiB that the machine has left now.
        total: MiB that it has; None: those of this machine.
    """

    def __init__(
        self,
        warn: Callable[[str], None],
        *,
        quiet_s: float = 600.0,
        available: Callable[[], float] = available_mb,
        total: float | None = None,
    ) -> None:
        self._warn, self._quiet_s, self._available = warn, quiet_s, available
        self._total_mb = total_mb() if total is None else total
        self._at_work: list[AtWork] = []
        self._task: asyncio.Task[None] | None = None
        self._killed_at = float("-inf")

    @contextlib.contextmanager
    def over(self, at: AtWork) -> Iterator[None]:
        """Watch over this while the block runs."""
        self._at_work.append(at)
        if self._task is None or self._task.done():
            if self._task is not None:
                # A watch that broke must not leave the workers unwatched in silence.
                self._task.result()
            self._task = asyncio.create_task(self._go())
        try:
            yield
        finally:
            self._at_work.remove(at)

    async def _go(self) -> None:
        while self._at_work:
            for at in list(self._at_work):
                if at.ended is None and at.worker.alive:
                    self._look_at(at)
            self._keep_machine_alive()
            await asyncio.sleep(_EVERY_S)

    def _look_at(self, at: AtWork) -> None:
        now, now_mb = time.monotonic(), at.look()
        at.worker.log.bound()
        limit_mb = at.spec.memory_mb
        if limit_mb is not None and now_mb > limit_mb and self._really_takes(at, limit_mb):
            what = f"out of memory: past its limit of {limit_mb:.0f} MiB (budget.memory_gb)"
            self._end(at, "infeasible", f"{what}, at a peak of {at.peak_mb:.0f} MiB resident")
        elif at.spec.limit_s is not None:
            self._mind_time(at, now, at.spec.limit_s)
        elif now - at.heard > self._quiet_s and not at.warned:
            at.warned = True
            self._warn(
                f"{at.name}: nothing was heard of it for {self._quiet_s / 60:.0f} minutes, and it has no time limit. "
                f"If it hangs, stop the sweep and set {_setting(at)} in the suite; its output: {at.worker.log.path}"
            )

    def _really_takes(self, at: AtWork, limit_mb: float) -> bool:
        """Forked children share pages with their worker: then what is shared counts once."""
        started = descendants(at.worker.pid)
        if not started:
            return True
        fairly = shared_fairly_mb([at.worker.pid, *started])
        if fairly > limit_mb:
            at.peak_mb = fairly
        return fairly > limit_mb

    def _mind_time(self, at: AtWork, now: float, limit_s: float) -> None:
        began = at.asked + _BEGINS_WITHIN_S if at.began is None else at.began
        grace_s = min(_GRACE_S + _GRACE_SHARE * limit_s, _LONGEST_GRACE_S)
        if now <= began + limit_s + grace_s:
            return
        if not at.late:
            at.late = True
            at.worker.show_stacks()
            return
        what = f"ran past its limit of {limit_s:g} s ({_setting(at)}) and did not stop by itself within {grace_s:.0f} s"
        self._end(at, "pruned", f"{what}: its worker was killed")

    def _keep_machine_alive(self) -> None:
        """Kill the largest worker before the system kills whatever it chooses."""
        if self._available() > _LAST_MEMORY * self._total_mb or time.monotonic() - self._killed_at < _RECOVERS_S:
            return
        candidates = [(at.look(), at) for at in self._at_work if at.ended is None and at.worker.alive]
        now_mb, largest = max(candidates, key=lambda c: c[0], default=(0.0, None))
        # Where others fill the machine, ending ours would not help them.
        if largest is None or now_mb < _WORTH_KILLING * self._total_mb:
            return
        self._killed_at = time.monotonic()
        what = f"out of memory: the machine had less than {_LAST_MEMORY:.0%} left, and this took most of it"
        self._end(largest, "infeasible", f"{what}, at a peak of {largest.peak_mb:.0f} MiB resident")

    def _end(self, at: AtWork, state: str, message: str) -> None:
        at.ended = at.result(state, message)
        at.worker.kill()


def _setting(at: AtWork) -> str:
    return "budget.stage_minutes" if at.spec.kind == "stage" else "budget.measure_minutes"
