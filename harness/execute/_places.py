"""Places to work at, given in order of urgency; the unhurried wait until nothing urgent is asked for."""

import asyncio
import contextlib
import heapq
from collections.abc import AsyncIterator, Sequence
from itertools import count

from harness.execute._devices import NO_DEVICES, Wanted

__all__ = ["Places"]

Turn = asyncio.Future[tuple[str, ...]]


class Places:
    """`total` places, and devices. Who waits is served by urgency (small first), then in order of arrival.

    One who needs several places gets them together: nobody behind it in that order is served before it, so it never
    starves behind smaller needs, and two of them cannot each hold half. One who only waits for a device lets those pass
    who need other devices or none.
    """

    def __init__(self, total: int, devices: Sequence[str] = ()) -> None:
        self.total = total
        self._free = total
        self._devices = list(devices)
        self._rank = {device: i for i, device in enumerate(devices)}
        self._order = count()
        self._waiting: list[tuple[int, int, int, Wanted, Turn]] = []

    @contextlib.asynccontextmanager
    async def hold(self, needed: int, urgency: int, wanted: Wanted = NO_DEVICES) -> AsyncIterator[tuple[str, ...]]:
        """Hold `needed` places while the block runs; yields the devices that it holds."""
        turn: Turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (urgency, next(self._order), needed, wanted, turn))
        self._serve()
        try:
            held = await turn
        except asyncio.CancelledError:
            # Cancelled after its turn had come, before it could take it: what it was given goes on to the next.
            if not turn.cancelled():
                self._give_back(needed, turn.result())
            self._serve()
            raise
        try:
            yield held
        finally:
            self._give_back(needed, held)
            self._serve()

    def _give_back(self, needed: int, held: tuple[str, ...]) -> None:
        self._free += needed
        self._devices += held

    def _serve(self) -> None:
        passed = []
        claimed: set[str] = set()
        while self._waiting:
            _, _, needed, wanted, turn = self._waiting[0]
            if not turn.cancelled() and needed > self._free:
                break
            one = heapq.heappop(self._waiting)
            if turn.cancelled():
                continue
            held = self._choose(wanted, claimed)
            if held is None:
                # Of what it waits for, those behind it take nothing.
                claimed |= set(wanted.these or self._devices)
                passed.append(one)
                continue
            self._free -= needed
            self._devices = [d for d in self._devices if d not in held]
            turn.set_result(held)
        for one in passed:
            heapq.heappush(self._waiting, one)

    def _choose(self, wanted: Wanted, claimed: set[str]) -> tuple[str, ...] | None:
        free = sorted(set(self._devices) - claimed, key=self._rank.__getitem__)
        if wanted.these:
            return wanted.these if set(wanted.these) <= set(free) else None
        return tuple(free[: wanted.any_of]) if wanted.any_of <= len(free) else None
