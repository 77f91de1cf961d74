"""Bringing a tracker up to date with the store."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from harness.trackers._protocol import Tracker
from harness.trackers._runs import read_runs, read_sweep, stored_runs

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["track"]


def track(store: "Store", sweep: str, tracker: Tracker, stop: Callable[[], bool] = lambda: False) -> int:
    """Write the runs of a sweep that have ended and that the tracker does not have, or has in an earlier state.

    What it has as it is stays untouched, so doing this twice is doing it once. Runs that are no part of the sweep's
    comparison any more, another trial having been chosen, are taken out.

    Args:
        store: ingested already.
        sweep: its id.
        tracker: opened for this sweep.
        stop: asked before each run; what is not written then is written the next time.

    Returns:
        The number of runs written.

    Raises:
        UserError: the store knows no such sweep.
    """
    about, stored, known = read_sweep(store, sweep), stored_runs(store, sweep), tracker.known()
    for name in known.keys() - {one.name for one in stored}:
        tracker.remove(name)
    written = 0
    # One that runs again keeps its earlier state until it has ended.
    for run in read_runs(store, about, [r for r in stored if r.ended and known.get(r.name) != r.revision]):
        if stop():
            break
        if run.name in known:
            tracker.remove(run.name)
        tracker.write(run)
        written += 1
    return written
