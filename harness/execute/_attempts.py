"""What dies under a spec is tried again, with growing pauses; how a spec itself ended never is."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from harness.execute._spec import MeasureSpec, Result, StageSpec

__all__ = ["UnderWay", "attempts", "pause_s"]

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


def pause_s(failed: int) -> float:
    """Seconds to wait after so many failed attempts: 0.5, 1, 2, ... up to 30."""
    return float(min(_FIRST_PAUSE_S * 2.0 ** (failed - 1), _LONGEST_PAUSE_S))


async def attempts(spec: StageSpec | MeasureSpec, attempt: Callable[[], Awaitable[Result]], retries: int) -> Result:
    """Try until an attempt ends otherwise than in `crash`, at most `retries` times after the first.

    An attempt that finds its worker or machine dead returns a `crash` with how it died; the last one is returned, its
    message saying how often that was.
    """
    for failed in range(1, retries + 2):
        result = await attempt()
        if result.state != "crash":
            return result
        if failed <= retries:
            await asyncio.sleep(pause_s(failed))
    if not retries:
        return result
    return result.model_copy(update={"message": f"{result.message}, in the last of {retries + 1} attempts"})


class UnderWay:
    """Attempts under way, each a task of its own, so that they can be ended without those who wait for them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Result]] = set()
        self._ended = False

    async def run(self, attempt: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Make an attempt; cancelled without one where they have been ended."""
        if self._ended:
            raise asyncio.CancelledError
        task = asyncio.create_task(attempt())
        self._tasks.add(task)
        try:
            return await task
        finally:
            self._tasks.discard(task)

    async def end(self) -> None:
        """Cancel what is under way and whatever is asked for from now on; returns when all have ended."""
        self._ended = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
