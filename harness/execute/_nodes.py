"""The nodes of a cluster, and which of them a spec is given: in order of urgency, a whole node for one that asks."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

from harness.execute._spec import Resources

__all__ = ["CPU", "GPU", "NowhereError", "Place", "Shares"]

CPU, GPU = "CPU", "GPU"

_LOOK_S = 1.0
_DOUBT_S = 20.0
"""A cluster takes this long to notice that a machine has vanished; what is sent there until then is lost."""

Amounts = Mapping[str, float]


class NowhereError(Exception):
    """No node has what a spec occupies: what was asked for, and what there is."""


@dataclass(frozen=True)
class Place:
    """A node, and what is taken of it."""

    node: str
    taken: Amounts


@dataclass
class _Node:
    total: Amounts
    used: dict[str, float] = field(default_factory=dict)
    held: int = 0
    doubted_until: float = float("-inf")

    def could(self, wanted: Amounts) -> bool:
        return all(self.total.get(name, 0.0) >= amount for name, amount in wanted.items())

    def can(self, wanted: Amounts) -> bool:
        return all(self.total.get(n, 0.0) - self.used.get(n, 0.0) >= amount for n, amount in wanted.items())

    def change(self, taken: Amounts, sign: int) -> None:
        self.held += sign
        for name, amount in taken.items():
            self.used[name] = self.used.get(name, 0.0) + sign * amount


@dataclass(order=True)
class _Waiting:
    urgency: int
    order: int
    wanted: Resources = field(compare=False)
    turn: "asyncio.Future[Place]" = field(compare=False)
    hopeless_since: float | None = field(default=None, compare=False)


class Shares:
    """What a sweep occupies of each node.

    Who waits is served by urgency (small first), then in order of arrival. One for whom no node is free enough has the
    least busy node that could take it kept for it: nobody behind it is let in there, so that it never starves.

    Args:
        look: the nodes alive: identifier → what it has in all. Called in a thread, about once a second.
        limit: how many may hold a place together; None: as many as the nodes have room for.
        patience_s: seconds that one waits for a node to appear which has what it needs.
    """

    def __init__(self, look: Callable[[], Mapping[str, Amounts]], limit: int | None, patience_s: float) -> None:
        self._look, self._limit, self._patience_s = look, limit, patience_s
        self._nodes: dict[str, _Node] = {}
        self._held = 0
        self._order = count()
        self._waiting: list[_Waiting] = []
        self._looking: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def hold(self, wanted: Resources, urgency: int) -> AsyncIterator[Place]:
        """Hold a place while the block runs.

        Raises:
            NowhereError: no node has what is wanted, nor has one come up in time.
        """
        if self._looking is None:
            await self.look()
            self._looking = asyncio.create_task(self._keep_looking())
        turn: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(urgency, next(self._order), wanted, turn))
        self._serve()
        try:
            place = await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self._give_back(turn.result())
            raise
        try:
            yield place
        finally:
            self._give_back(place)

    def doubt(self, node: str) -> None:
        """Give nobody this node for a while: something died there, and perhaps the node."""
        if node in self._nodes:
            self._nodes[node].doubted_until = time.monotonic() + _DOUBT_S

    async def look(self) -> None:
        """See which nodes are there now: those that went take nobody any more."""
        found = await asyncio.to_thread(self._look)
        gone = self._nodes.keys() - found.keys()
        for name in gone:
            del self._nodes[name]
        for name in found.keys() - self._nodes.keys():
            self._nodes[name] = _Node(found[name])
        self._serve()

    async def close(self) -> None:
        """Stop looking; whoever waits is cancelled."""
        for one in self._waiting:
            one.turn.cancel()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()

    def _give_back(self, place: Place) -> None:
        self._held -= 1
        if place.node in self._nodes:
            self._nodes[place.node].change(place.taken, -1)
        self._serve()

    def _serve(self) -> None:
        kept: set[str] = set()
        left = []
        for one in sorted(self._waiting):
            if one.turn.done():
                continue
            if self._limit is not None and self._held >= self._limit:
                left.append(one)
                continue
            wanted = self._amounts(one.wanted)
            able = {name: node for name, node in self._nodes.items() if node.could(wanted)}
            now = time.monotonic()
            open_ = {name: node for name, node in able.items() if name not in kept and now >= node.doubted_until}
            free = {name: node for name, node in open_.items() if _free(node, one.wanted, wanted)}
            if free:
                name = min(free, key=lambda n: (_busy(free[n]), n))
                self._give(one, name, wanted)
                continue
            if open_:
                kept.add(min(open_, key=lambda n: (_busy(open_[n]), n)))
            if self._still_hopes(one, bool(able)):
                left.append(one)
        self._waiting = left

    def _give(self, one: _Waiting, name: str, wanted: Amounts) -> None:
        node = self._nodes[name]
        # A whole node: all its CPUs, so that the cluster lets nobody else's work in beside it either.
        taken = {**wanted, CPU: node.total[CPU]} if one.wanted.whole_machine else wanted
        node.change(taken, 1)
        self._held += 1
        one.turn.set_result(Place(name, taken))

    def _still_hopes(self, one: _Waiting, able: bool) -> bool:
        if able:
            one.hopeless_since = None
            return True
        now = time.monotonic()
        one.hopeless_since = now if one.hopeless_since is None else one.hopeless_since
        if now - one.hopeless_since < self._patience_s:
            return True
        one.turn.set_exception(NowhereError(self._nowhere(self._amounts(one.wanted))))
        return False

    def _amounts(self, wanted: Resources) -> dict[str, float]:
        most = max((node.total.get(CPU, 0.0) for node in self._nodes.values()), default=0.0)
        gpus = wanted.gpus
        if wanted.gpu_if_there and any(node.total.get(GPU, 0.0) >= 1 for node in self._nodes.values()):
            gpus = max(gpus, 1)
        # Threads are a setting and no demand: more of them than a node has CPUs run there all the same.
        cpus = max(1.0, min(float(wanted.cpus), most))
        return {CPU: cpus, **({GPU: float(gpus)} if gpus else {}), **wanted.custom}

    def _nowhere(self, wanted: Amounts) -> str:
        nodes = [_listed(node.total) for node in self._nodes.values()]
        return (
            f"no node of the cluster has {_listed(wanted)} together; its {len(nodes)} nodes have: "
            f"{'; '.join(sorted(set(nodes))) or 'nothing'}. Expected a target's `resources` to be names that "
            "nodes were started with (ray start --resources='{\"h200\": 1}'): correct the suite or start such a node"
        )


def _free(node: _Node, asked: Resources, wanted: Amounts) -> bool:
    return node.held == 0 if asked.whole_machine else node.can(wanted)


def _busy(node: _Node) -> float:
    return node.used.get(CPU, 0.0) / max(node.total.get(CPU, 0.0), 1.0)


def _listed(amounts: Amounts) -> str:
    return ", ".join(f"{name} {amount:g}" for name, amount in sorted(amounts.items()))
