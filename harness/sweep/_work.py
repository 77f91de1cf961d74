"""Stages and measurements awaited by their content keys: each is computed once, whichever runs ask for it."""

import asyncio
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from harness._shapes import folder_shape
from harness.errors import StorageError
from harness.execute import Executor, MeasureSpec, Result, StageSpec
from harness.folders import Folders
from harness.progress import Display

__all__ = ["FailedRunError", "Work"]


class FailedRunError(Exception):
    """A stage or measurement that a run needs has failed."""

    def __init__(
        self,
        result: Result,
        *,
        stage: str | None = None,
        measurement: str | None = None,
        command: str | None = None,
    ) -> None:
        super().__init__(result.message)
        self.result, self.stage, self.measurement = result, stage, measurement
        self.command = command
        """What runs the failed stage or measurement again, alone."""

    @classmethod
    def because(cls, message: str) -> Self:
        """Nothing that ran has failed: the run cannot be, for this reason."""
        return cls(Result(key="", state="failed", message=message))


class Work:
    """What a sweep computes. Runs that need the same wait for the same task."""

    def __init__(self, executor: Executor, folders: Folders, display: Display, measured: Iterable[str]) -> None:
        """`measured` are the keys of the measurements that the store has."""
        self._executor, self._folders, self._display = executor, folders, display
        self._measured = set(measured)
        self._stages: dict[str, asyncio.Task[bool]] = {}
        self._measures: dict[str, asyncio.Task[None]] = {}
        self.computed = 0
        """Stages and measurements that were computed now, not found."""

    async def stage(self, spec: StageSpec) -> bool:
        """Have the stage's artifact; whether it was there, or under way, already.

        Raises:
            FailedRunError: it cannot be had.
            StorageError: the disk refuses.
        """
        first = spec.key not in self._stages
        if first:
            self._stages[spec.key] = asyncio.create_task(self._make_stage(spec))
        return await asyncio.shield(self._stages[spec.key]) or not first

    def shape(self, reference: str) -> str:
        """What decides the latency and memory of a model whose stages are done."""
        return folder_shape(self._folders.model(reference))

    async def measure(self, spec: MeasureSpec) -> None:
        """Have the spec's measurements in the store's shards; only those are made that are not there or under way.

        Raises:
            FailedRunError: one of them cannot be had.
        """
        missing = tuple(i for i in spec.items if i.key not in self._measured and i.key not in self._measures)
        shared = [self._measures[i.key] for i in spec.items if i.key in self._measures]
        if missing:
            spec = spec.model_copy(update={"items": missing})
            task = asyncio.create_task(self._make_measurements(spec))
            self._measures |= {i.key: task for i in missing}
            shared.append(task)
        for task in dict.fromkeys(shared):
            await asyncio.shield(task)

    def cancel(self) -> None:
        """Stop what is under way: it is shielded from the run that happened to start it, not from the sweep's end."""
        for task in [*self._stages.values(), *self._measures.values()]:
            task.cancel()

    async def _make_stage(self, spec: StageSpec) -> bool:
        if self._folders.holds(spec.key):
            damage = await asyncio.to_thread(self._folders.check, spec.key)
            if damage is None:
                return True
            aside = self._folders.set_aside(spec.key)
            self._display.note(f"{spec.label}: artifact {spec.key} is damaged ({damage}): set aside as {aside.name}")
        result = await self._execute(spec)
        if result.state != "complete":
            raise FailedRunError(result, stage=spec.key, command=self._keep(spec))
        return False

    async def _make_measurements(self, spec: MeasureSpec) -> None:
        result = await self._execute(spec)
        if result.state != "complete":
            raise FailedRunError(result, measurement=spec.items[0].key, command=self._keep(spec))
        self._measured |= {i.key for i in spec.items}

    def _keep(self, spec: StageSpec | MeasureSpec) -> str:
        self._folders.keep_spec(spec.key, spec.model_dump_json())
        results, here = self._folders.results, Path.cwd()
        shown = results.relative_to(here) if results.is_relative_to(here) else results
        return f"harness run-stage {spec.key} --results {shlex.quote(str(shown))}"

    async def _execute(self, spec: StageSpec | MeasureSpec) -> Result:
        self.computed += 1
        self._display.waiting(spec.key, spec.label)
        result = await self._executor.run(spec, self._display.progress)
        self._display.finished(spec.key, result.state)
        if result.storage:
            # No trial is to blame, and every other one would meet the same: the sweep ends here.
            raise StorageError(result.message)
        return result
