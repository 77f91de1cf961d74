"""Running a plan on this machine: the lock on the results folder, the workers, the display, and a clean stop."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from harness.execute import LocalExecutor
from harness.folders import Folders
from harness.lock import only_one
from harness.plan import Plan
from harness.progress import Display
from harness.sweep import Outcome, run_sweep

__all__ = ["run_plan"]


async def run_plan(
    plan: Plan, results: Path, workers: int | None = None, prepare: Callable[[], None] = lambda: None
) -> Outcome:
    """Run a sweep with local workers to its end; SIGTERM stops it as Ctrl-C does.

    `prepare` is called first, when no other command can be at work in the results folder any more.

    Raises:
        UserError: another command is at work in this results folder.
    """
    results = results.resolve()
    count = workers or plan.suite.workers or len(os.sched_getaffinity(0))
    with only_one(results, f"the sweep {plan.sweep}"), Display() as display:
        Folders(results).sweep_out()
        prepare()
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
