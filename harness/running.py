"""Running a plan on this machine: the lock on the results folder, the workers, the display, and a clean stop."""

import asyncio
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import UserError
from harness.execute import LocalExecutor
from harness.folders import Folders
from harness.plan import Plan
from harness.progress import Display
from harness.sweep import Outcome, run_sweep

__all__ = ["run_plan"]


@contextmanager
def _only_sweep(results: Path) -> Iterator[None]:
    """One sweep at a time per results folder: two would compute the same twice, and disturb each other's latency."""
    results.mkdir(parents=True, exist_ok=True)
    with (results / ".sweep.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another sweep is running in {results}; wait for it, or use --results") from None
        yield


async def run_plan(plan: Plan, results: Path, workers: int | None = None) -> Outcome:
    """Run a sweep with local workers to its end; SIGTERM stops it as Ctrl-C does.

    Raises:
        UserError: another sweep is running in this results folder.
    """
    results = results.resolve()
    count = workers or plan.suite.workers or len(os.sched_getaffinity(0))
    with _only_sweep(results), Display() as display:
        Folders(results).sweep_out()
        executor = LocalExecutor(results, count)
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            return await run_sweep(plan, results, executor, display)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            await executor.close()
