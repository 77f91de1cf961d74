"""Running a plan: the lock on the results folder, the executor, the display, and a clean stop."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness.execute import open_executor
from harness.folders import Folders
from harness.lock import only_one
from harness.plan import Plan
from harness.progress import Display
from harness.sweep import Outcome, run_sweep
from harness.trackers import tracking

__all__ = ["run_plan"]


async def run_plan(
    plan: Plan,
    results: Path,
    workers: int | None = None,
    prepare: Callable[[], None] = lambda: None,
    *,
    executor: str = "local",
    address: str | None = None,
    options: Mapping[str, str] | None = None,
    track: Sequence[str] = (),
) -> Outcome:
    """Run a sweep to its end; SIGTERM stops it as Ctrl-C does.

    Args:
        plan: what to run.
        results: artifacts and store; beyond this machine, a folder that all machines share.
        workers: specs at work together; None: what the suite says, else as many as this machine or the cluster has
            room for.
        prepare: called first, when no other command can be at work in the results folder any more.
        executor: `local`, `ray` or `slurm`.
        address: of a Ray cluster to join.
        options: of Slurm's sbatch.
        track: trackers beside TensorBoard, which every sweep is copied into.

    Raises:
        UserError: another command is at work in this results folder, or the executor or a tracker cannot be had.
    """
    results = results.resolve()
    count = workers or plan.suite.workers
    if executor == "local":
        count = count or len(os.sched_getaffinity(0))
    with only_one(results, f"the sweep {plan.sweep}"), Display() as display:
        Folders(results).sweep_out()
        prepare()
        opened = open_executor(
            executor, results, count, plan.suite.retries, address=address, options=options, warn=display.note
        )
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        async with tracking(results, plan.sweep, ("tensorboard", *track), display.note):
            try:
                return await run_sweep(plan, results, opened, display)
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None
            finally:
                await opened.close()
