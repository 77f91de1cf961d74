"""Places to work at, given in order of urgency; the unhurried wait until nothing urgent is asked for."""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator
from itertools import count

__all__ = ["Places"]


class Places:
    """`total` places. Who waits is served by urgency (small first), then in order of arrival.

    One who needs several places gets them together: nobody behind it in that order is served before it, so it never
    starves behind smaller needs, and two of them cannot each hold half.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._order = count()
        self._waiting: list[tuple[int, int, int, asyncio.Future[None]]] = []

    @contextlib.asynccontextmanager
    async def hold(self, needed: int, urgency: int) -> AsyncIterator[None]:
        """Hold `needed` places while the block runs."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (urgency, next(self._order), needed, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            # Cancelled after its turn had come, before it could take it: what it was given goes on to the next.
            self._free += 0 if turn.cancelled() else needed
            self._serve()
            raise
        try:
            yield
        finally:
            self._free += needed
            self._serve()

    def _serve(self) -> None:
        while self._waiting and (self._waiting[0][3].cancelled() or self._waiting[0][2] <= self._free):
            _, _, needed, turn = heapq.heappop(self._waiting)
            if not turn.cancelled():
                self._free -= needed
                turn.set_result(None)
