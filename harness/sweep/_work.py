"""Stages and measurements awaited by their content keys: each is computed once, whichever runs ask for it."""

import asyncio
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Self, TypeVar

from harness._shapes import folder_shape
from harness.errors import StorageError
from harness.execute import Executor, Item, MeasureSpec, Result, StageSpec
from harness.folders import Folders
from harness.progress import Display
from harness.rungs import HopelessError, MeasureRungs, StageRungs
from harness.store import Store
from harness.sweep._rungs import judge_measured, judge_stage, scores_of

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


T = TypeVar("T")


@dataclass
class _Shared(Generic[T]):
    """What is under way or done, and the rungs under which it is."""

    rungs: StageRungs | MeasureRungs | None
    task: asyncio.Task[T]


class Work:
    """What a sweep computes. Runs that need the same wait for the same task.

    Rungs make an exception: whether a trial is hopeless is a verdict on it alone. Who needs the same under other rungs,
    or under none, waits for the end, and takes what is there then or has it computed.
    """

    def __init__(
        self,
        executor: Executor,
        folders: Folders,
        display: Display,
        measured: Iterable[str],
        recorded: Iterable[str],
    ) -> None:
        """`measured` are the keys of the measurements that the store has, `recorded` those of the stages."""
        self._executor, self._folders, self._display = executor, folders, display
        self._measured, self._recorded = set(measured), set(recorded)
        self._store = Store(folders.results)
        self._stages: dict[str, _Shared[bool]] = {}
        self._measures: dict[str, _Shared[None]] = {}
        self.computed = 0
        """Stages and measurements that were computed now, not found."""

    async def stage(self, spec: StageSpec) -> bool:
        """Have the stage's artifact; whether it was there, or under way, already.

        Raises:
            FailedRunError: it cannot be had.
            StorageError: the disk refuses.
        """
        while (found := self._stages.get(spec.key)) is not None and found.rungs != spec.rungs:
            await asyncio.wait([found.task])
            if self._stages.get(spec.key) is found:
                del self._stages[spec.key]
        first = found is None
        if found is None:
            found = self._stages[spec.key] = _Shared(spec.rungs, asyncio.create_task(self._make_stage(spec)))
        return await asyncio.shield(found.task) or not first

    def shape(self, reference: str) -> str:
        """What decides the latency and memory of a model whose stages are done."""
        return folder_shape(self._folders.model(reference))

    async def measure(self, spec: MeasureSpec) -> None:
        """Have the spec's measurements in the store's shards; only those are made that are not there or under way.

        Raises:
            FailedRunError: one of them cannot be had.
        """
        await self._settled(spec)
        missing = tuple(i for i in spec.items if i.key not in self._measured and i.key not in self._measures)
        shared = [self._measures[i.key].task for i in spec.items if i.key in self._measures]
        if missing:
            task = asyncio.create_task(self._make_measurements(self._partly(spec, missing)))
            self._measures |= {i.key: _Shared(spec.rungs, task) for i in missing}
            shared.append(task)
        elif spec.rungs is not None and not shared:
            try:
                judge_measured(self._store, spec.rungs)
            except HopelessError as error:
                raise FailedRunError(_hopeless(spec, error), measurement=spec.items[0].key) from error
        for task in dict.fromkeys(shared):
            await asyncio.shield(task)

    def cancel(self) -> None:
        """Stop what is under way: it is shielded from the run that happened to start it, not from the sweep's end."""
        for stage in self._stages.values():
            stage.task.cancel()
        for measure in self._measures.values():
            measure.task.cancel()

    async def _settled(self, spec: MeasureSpec) -> None:
        """Wait until none of the spec's measurements is under way under other rungs."""
        keys = [i.key for i in spec.items]
        while others := {k: f for k in keys if (f := self._measures.get(k)) is not None and f.rungs != spec.rungs}:
            await asyncio.wait({shared.task for shared in others.values()})
            for key, shared in others.items():
                if self._measures.get(key) is shared:
                    del self._measures[key]

    def _partly(self, spec: MeasureSpec, missing: tuple[Item, ...]) -> MeasureSpec:
        """The spec for what is missing of it; its rungs know the scores of the rest."""
        rungs = spec.rungs
        if rungs is not None:
            there = {k: m for k, m in rungs.metrics.items() if k not in {i.key for i in missing}}
            rungs = rungs.model_copy(update={"known": scores_of(self._store, there) if there else {}})
        return spec.model_copy(update={"items": missing, "rungs": rungs})

    async def _make_stage(self, spec: StageSpec) -> bool:
        holds = self._folders.holds(spec.key)
        if holds and spec.key not in self._recorded:
            # Its shard is lost: computed again it has its curve and its cost again, and the same artifact.
            self._display.note(f"{spec.label}: the store has no rows of artifact {spec.key}: computed again")
        elif holds:
            damage = await asyncio.to_thread(self._folders.check, spec.key)
            if damage is None:
                try:
                    judge_stage(self._store, spec)
                except HopelessError as error:
                    raise FailedRunError(_hopeless(spec, error), stage=spec.key) from error
                return True
            aside = self._folders.set_aside(spec.key)
            self._display.note(f"{spec.label}: artifact {spec.key} is damaged ({damage}): set aside as {aside.name}")
        result = await self._execute(spec)
        if result.state != "complete":
            raise FailedRunError(result, stage=spec.key, command=self._keep(spec))
        self._recorded.add(spec.key)
        return False

    async def _make_measurements(self, spec: MeasureSpec) -> None:
        result = await self._execute(spec)
        if result.state != "complete":
            raise FailedRunError(result, measurement=self._failed_item(spec), command=self._keep(spec))
        self._measured |= {i.key for i in spec.items}

    def _failed_item(self, spec: MeasureSpec) -> str:
        """The first of a spec's measurements that was not made; those before it are stored."""
        keys = [item.key for item in spec.items]
        with self._store.fresh():
            sql = "SELECT measurement FROM raw.measurements WHERE list_contains($keys, measurement)"
            made = set(self._store.query(sql, {"keys": keys})["measurement"])
        return next((key for key in keys if key not in made), keys[0])

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


def _hopeless(spec: StageSpec | MeasureSpec, error: HopelessError) -> Result:
    """The result that a worker would have sent, of what was there already."""
    message = f"{type(error).__name__}: {error}"
    return Result(key=spec.key, state="pruned", message=message, step=error.step, reached=error.reached)
