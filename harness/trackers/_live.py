"""Tracking a sweep while it runs: beside it, in a thread a tracker, which neither slows nor fails it."""

import asyncio
import contextlib
import shlex
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from harness._secrets import redacted
from harness.store import Store
from harness.trackers._open import open_tracker, refuse_missing
from harness.trackers._track import track

__all__ = ["tracking"]

EVERY_S = 60.0
"""Pause between two looks at the store; after one that took longer, as long as that: a look costs the sweep's own
process its turn at the database, and at most half of a core."""

_LAST_S, _INTERRUPTED_S = 60.0, 10.0
"""How long the command waits for what is still to be written when the sweep has ended, or was interrupted."""


@contextlib.asynccontextmanager
async def tracking(results: Path, sweep: str, names: Sequence[str], note: Callable[[str], None]) -> AsyncIterator[None]:
    """Within the block, copy what has ended into these trackers every so often, and the rest at its end.

    A tracker that fails is left out from there on, and that is noted; so is one that is not done in time.
    `harness export` writes what is missing then.

    Args:
        results: the results folder.
        sweep: the sweep's id.
        names: of trackers.
        note: takes a line for the user; called from other threads.

    Raises:
        UserError: before the block, a tracker that is not installed.
    """
    refuse_missing(names)
    feeds = [_Feed(results, sweep, name, note) for name in dict.fromkeys(names)]
    for feed in feeds:
        feed.start()
    patience = 0.0
    try:
        yield
        patience = _LAST_S
    except (KeyboardInterrupt, asyncio.CancelledError):
        patience = _INTERRUPTED_S
        raise
    finally:
        # After any other error nothing more is asked of the disk or the store: one of them may be what has failed.
        for feed in feeds:
            feed.end(now=patience == 0.0)
        deadline = time.monotonic() + patience
        while any(feed.is_alive() for feed in feeds) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for feed in feeds:
            if feed.is_alive() and patience:
                feed.end(now=True)
                note(f"{feed.name}: not all is written after {patience:.0f} s; for the rest: {feed.again}")


class _Feed(threading.Thread):
    """One tracker's. A daemon: a server that never answers must not keep the command from ending."""

    def __init__(self, results: Path, sweep: str, tracker: str, note: Callable[[str], None]) -> None:
        super().__init__(name=tracker, daemon=True)
        self._results, self._sweep, self._note = results, sweep, note
        self._ending, self._given_up = threading.Event(), threading.Event()
        elsewhere = "" if results == Path("results").resolve() else f" --results {shlex.quote(str(results))}"
        self.again = f"harness export {tracker} {sweep}{elsewhere}"

    def end(self, *, now: bool) -> None:
        """Look once more and end; `now`: without another look, after the run that is being written."""
        if now:
            self._given_up.set()
        self._ending.set()

    def run(self) -> None:
        try:
            self._follow()
        except Exception as error:  # noqa: BLE001  # any library's, and none may end the sweep
            if not self._given_up.is_set():
                reason = redacted(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
                self._note(f"{self.name}: left out from here on ({reason}); to write it later: {self.again}")

    def _follow(self) -> None:
        store, pause = Store(self._results), EVERY_S
        with contextlib.ExitStack() as stack:
            tracker = None
            while True:
                last = self._ending.wait(pause)
                if self._given_up.is_set():
                    return
                began = time.monotonic()
                if tracker is None:
                    tracker = stack.enter_context(open_tracker(self.name, None, store, self._sweep))
                track(store, self._sweep, tracker, self._given_up.is_set)
                if last:
                    return
                pause = max(EVERY_S, time.monotonic() - began)
