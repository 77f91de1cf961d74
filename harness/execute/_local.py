"""Local worker processes: each runs one spec after another, is watched over, and is replaced when it dies."""

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from pydantic import ValidationError

from harness._disk import discard
from harness.execute._attempts import attempts
from harness.execute._devices import devices_here, visible_devices, wanted_devices
from harness.execute._memory import system_kills, total_mb
from harness.execute._places import Places
from harness.execute._process import Worker
from harness.execute._spec import MeasureSpec, Progress, Result, StageSpec, resources_of
from harness.execute._tree import memory_mb
from harness.execute._watch import AtWork, Watch

__all__ = ["LocalExecutor"]

Report = Callable[[Progress], None]
Spec = StageSpec | MeasureSpec


class LocalExecutor:
    """Up to `workers` processes on this machine, one torch thread each unless a spec says otherwise.

    Args:
        results: the results folder.
        workers: specs at work together.
        retries: how often a spec is tried again whose worker died.
        warn: told what the user should know.
        recycle_mb: a worker that holds more resident memory (MiB) after a spec is replaced; None: half of what the
            machine has, divided by `workers`.
        devices: the GPUs, as CUDA_VISIBLE_DEVICES names them; None: those of this machine. No two specs have the same
            at the same time.
        watch: what watches over the workers; None: one with the bounds of this machine.
    """

    def __init__(
        self,
        results: Path,
        workers: int,
        retries: int = 2,
        *,
        warn: Callable[[str], None] = lambda _: None,
        recycle_mb: float | None = None,
        devices: Sequence[str] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._results, self._retries, self._warn = results, retries, warn
        self._recycle_mb = total_mb() / 2 / workers if recycle_mb is None else recycle_mb
        self._devices = tuple(devices_here() if devices is None else devices)
        self._folder = results / "work" / uuid.uuid4().hex[:8]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._places = Places(workers, self._devices)
        self._watch = watch or Watch(warn)
        self._numbers = count(1)
        self._closed = False
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()

    @property
    def log_folder(self) -> Path:
        """Where what the workers print goes, a file each; those that print nothing leave none."""
        return self._folder

    async def run(self, spec: Spec, report: Report) -> Result:
        """Run one spec in a worker; if that dies it is tried again in another, then returned as `crash`."""
        needed = self._places.total if resources_of(spec).whole_machine else 1
        async with self._places.hold(needed, spec.urgency, wanted_devices(spec, self._devices)) as held:
            return await attempts(spec, lambda: self._attempt(spec, report, held), self._retries)

    async def close(self) -> None:
        """End the workers, also those at work."""
        self._closed = True
        # All at once, and before anything is waited for.
        for worker in self._all:
            worker.kill()
        await asyncio.gather(*(self._end(worker) for worker in self._all))
        self._idle.clear()
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    async def _attempt(self, spec: Spec, report: Report, held: tuple[str, ...]) -> Result:
        with self._files(spec) as (asked, answered):
            while True:
                worker, fresh = await self._worker(spec, held)
                at = AtWork(spec, worker)
                try:
                    with self._watch.over(at):
                        await self._follow(at, asked, answered, report)
                except BaseException:
                    await self._bury(at)
                    raise
                if answered.is_file():
                    return await self._finished(at, Result.model_validate_json(answered.read_bytes()))
                await self._bury(at)
                if self._closed:
                    raise asyncio.CancelledError
                # One that died while it was idle never began with the spec: that is no attempt of it.
                if fresh or at.taken:
                    return _died(at)

    async def _follow(self, at: AtWork, asked: Path, answered: Path, report: Report) -> None:
        """Report what the worker tells until it is done or dead."""
        at.worker.log.begin()
        await at.worker.ask(asked, answered)
        while (message := await at.worker.read()) is not None and "done" not in message:
            if "taken" in message:
                at.taken = True
            elif "ready" in message:
                at.ready()
            else:
                try:
                    sign = Progress.model_validate(message)
                except ValidationError:
                    at.worker.reject()
                    continue
                at.sign(sign)
                report(sign)

    async def _worker(self, spec: Spec, held: tuple[str, ...]) -> tuple[Worker, bool]:
        """One that sees the spec's devices, and whether it is fresh."""
        if self._closed:
            raise asyncio.CancelledError
        visible = visible_devices(spec, held, self._devices)
        fitting = [w for w in self._idle if w.visible == visible and w.held == held and w.alive]
        if fitting:
            self._idle.remove(fitting[-1])
            return fitting[-1], False
        # What keeps memory on these devices, what is dead, and beyond the number of workers the oldest make room.
        others = [w for w in self._idle if not w.alive or set(w.held) & set(held)]
        living = [w for w in self._idle if w not in others]
        others += living[: max(0, len(self._all) - len(others) - self._places.total + 1)]
        self._idle = [w for w in self._idle if w not in others]
        await asyncio.gather(*(self._end(other) for other in others))
        worker = await Worker.start(self._results, self._folder / f"worker-{next(self._numbers)}.log", visible, held)
        self._all.add(worker)
        if self._closed:
            await self._end(worker)
            raise asyncio.CancelledError
        return worker, True

    async def _finished(self, at: AtWork, result: Result) -> Result:
        """Keep the worker for the next spec, unless this one has left something in it."""
        worker = at.worker
        worker.log.bound()
        # What still runs may be what a library keeps for itself and cannot do without: the worker ends with it.
        if self._closed or not worker.alive or worker.strays() or memory_mb(worker.pid)[0] > self._recycle_mb:
            await self._end(worker)
        else:
            self._idle.append(worker)
        if result.peak_mb is None or at.peak_mb > result.peak_mb:
            return result.model_copy(update={"peak_mb": at.peak_mb or None})
        return result

    async def _bury(self, at: AtWork) -> None:
        """End a worker in the middle of a spec, with what it has left on the disk."""
        await self._end(at.worker)
        key = at.spec.key
        for folder in (*(self._results / "scratch").glob(f"{key}.*"), *(self._results / "artifacts").glob(f".{key}.*")):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _end(self, worker: Worker) -> None:
        if not await worker.end():
            self._warn(f"worker process {worker.pid} does not end although it was killed: the system holds it")
        self._all.discard(worker)

    @contextlib.contextmanager
    def _files(self, spec: Spec) -> Iterator[tuple[Path, Path]]:
        """The spec in a file, and the place for its result; both are gone afterwards."""
        name = f"{spec.kind}-{spec.key}-{uuid.uuid4().hex[:6]}"
        asked, answered = self._folder / f"{name}.json", self._folder / f"{name}.result"
        asked.write_text(spec.model_dump_json(), encoding="utf-8")
        try:
            yield asked, answered
        finally:
            asked.unlink(missing_ok=True)
            discard(answered)


def _died(at: AtWork) -> Result:
    if at.ended is not None:
        return at.ended
    if at.worker.killed and system_kills() > at.system_kills:
        return at.result(
            "infeasible", f"out of memory: the system killed its worker, at a peak of {at.peak_mb:.0f} MiB resident"
        )
    return at.result("crash", f"the worker died ({at.worker.how_it_ended})")
