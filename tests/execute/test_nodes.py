"""Which node of a cluster a spec is given: resources, urgency, whole nodes, nodes that come and go."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from harness.execute import Resources
from harness.execute._nodes import NowhereError, Place, Shares

TWO = {"a": {"CPU": 2.0}, "b": {"CPU": 2.0, "GPU": 1.0, "h200": 1.0}}


class _Room:
    """Requests by name that hold what they are given until they leave."""

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.inside: dict[str, Place] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def enter(self, name: str, wanted: Resources, urgency: int = 0) -> None:
        self.tasks[name] = asyncio.create_task(self._stay(name, wanted, urgency))
        await asyncio.sleep(0.02)

    async def leave(self, name: str) -> None:
        self.tasks.pop(name).cancel()
        await asyncio.sleep(0.02)

    async def _stay(self, name: str, wanted: Resources, urgency: int) -> None:
        async with self.shares.hold(wanted, urgency) as place:
            self.inside[name] = place
            try:
                await asyncio.Event().wait()
            finally:
                del self.inside[name]

    @property
    def nodes(self) -> dict[str, str]:
        return {name: place.node for name, place in self.inside.items()}


def _in_room(
    work: Callable[[_Room], Coroutine[Any, Any, None]],
    nodes: dict[str, dict[str, float]],
    limit: int | None = None,
    patience_s: float = 0.0,
) -> None:
    async def go() -> None:
        room = _Room(Shares(lambda: nodes, limit, patience_s))
        try:
            await work(room)
        finally:
            for task in room.tasks.values():
                task.cancel()
            await asyncio.gather(*room.tasks.values(), return_exceptions=True)
            await room.shares.close()

    asyncio.run(go())


def test_work_is_spread_and_goes_where_its_resources_are() -> None:
    async def work(room: _Room) -> None:
        await room.enter("one", Resources())
        await room.enter("two", Resources())
        assert sorted(room.nodes.values()) == ["a", "b"]
        await room.enter("special", Resources(custom={"h200": 1}))
        await room.enter("another", Resources(custom={"h200": 1}))
        assert room.nodes["special"] == "b"
        assert "another" not in room.nodes
        await room.leave("special")
        assert room.nodes["another"] == "b"
        assert room.inside["another"].taken == {"CPU": 1.0, "h200": 1}

    _in_room(work, TWO)


def test_a_stage_trains_on_a_gpu_where_the_cluster_has_one() -> None:
    async def work(room: _Room) -> None:
        await room.enter("stage", Resources(gpu_if_there=True))
        assert room.inside["stage"] == Place("b", {"CPU": 1.0, "GPU": 1.0})

    async def without(room: _Room) -> None:
        await room.enter("stage", Resources(gpu_if_there=True))
        assert room.inside["stage"] == Place("a", {"CPU": 1.0})

    _in_room(work, TWO)
    _in_room(without, {"a": {"CPU": 1.0}})


def test_a_whole_node_is_taken_when_idle_and_kept_for_who_waits_for_it() -> None:
    async def work(room: _Room) -> None:
        for name in ("one", "two", "three"):
            await room.enter(name, Resources())
        await room.enter("alone", Resources(whole_machine=True), urgency=2)
        await room.enter("late", Resources(), urgency=3)
        assert "alone" not in room.nodes
        assert "late" not in room.nodes
        # Both nodes are as busy after this: one is kept, the other takes who came later and is less urgent.
        await room.leave("one")
        kept = ({"a", "b"} - {room.nodes["late"]}).pop()
        assert "alone" not in room.nodes
        await room.enter("urgent", Resources(), urgency=1)
        assert room.nodes["urgent"] == kept
        for name in [name for name, node in room.nodes.items() if node == kept]:
            await room.leave(name)
        assert room.inside["alone"] == Place(kept, {"CPU": 2.0})
        await room.enter("beside", Resources())
        assert room.nodes.get("beside") != kept

    _in_room(work, {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}})


def test_no_more_at_once_than_the_limit_and_the_urgent_first() -> None:
    async def work(room: _Room) -> None:
        await room.enter("one", Resources())
        await room.enter("slow", Resources(), urgency=5)
        await room.enter("fast", Resources(), urgency=1)
        assert set(room.nodes) == {"one"}
        await room.leave("one")
        assert set(room.nodes) == {"fast"}

    _in_room(work, TWO, limit=1)


def test_more_threads_than_any_node_has_cpus_take_a_node_of_its_own() -> None:
    async def work(room: _Room) -> None:
        await room.enter("wide", Resources(cpus=8))
        assert room.inside["wide"].taken == {"CPU": 2.0}

    _in_room(work, TWO)


def test_what_no_node_has_is_refused_with_what_there_is() -> None:
    async def work(room: _Room) -> None:
        with pytest.raises(NowhereError, match=r"CPU 1, h300 1 .* 2 nodes have: CPU 2; CPU 2, GPU 1, h200 1"):
            async with room.shares.hold(Resources(custom={"h300": 1}), 0):
                pass

    _in_room(work, TWO)


def test_nodes_may_go_and_come() -> None:
    nodes = dict(TWO)

    async def work(room: _Room) -> None:
        await room.enter("special", Resources(custom={"h200": 1}))
        del nodes["b"]
        await room.enter("other", Resources(custom={"h200": 1}))
        await room.shares.look()
        await room.leave("special")
        assert "other" not in room.nodes
        nodes["c"] = {"CPU": 1.0, "h200": 1.0}
        end = time.monotonic() + 5
        while "other" not in room.nodes and time.monotonic() < end:
            await asyncio.sleep(0.05)
        assert room.nodes["other"] == "c"

    _in_room(work, nodes, patience_s=30)


def test_who_is_cancelled_takes_nothing_with_it() -> None:
    async def work(room: _Room) -> None:
        await room.enter("one", Resources(whole_machine=True))
        await room.enter("waits", Resources())
        # Cancelled when its turn has come, before it could take it.
        room.tasks["one"].cancel()
        await asyncio.sleep(0)
        await room.leave("waits")
        await room.enter("next", Resources(whole_machine=True))
        assert "next" in room.nodes

    _in_room(work, {"a": {"CPU": 1.0}})


def test_where_something_died_nobody_is_sent_while_the_node_may_be_dead() -> None:
    async def work(room: _Room) -> None:
        await room.enter("one", Resources())
        room.shares.doubt("a")
        await room.leave("one")
        await room.enter("two", Resources(cpus=2))
        assert room.nodes["two"] == "b"
        await room.enter("three", Resources())
        assert "three" not in room.nodes

    _in_room(work, {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}})
