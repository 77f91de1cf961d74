"""Places: urgent work first, those who need all of them together, and nothing lost when one who waits gives up."""

import asyncio

from harness.execute._places import Places


def _order(total: int, asked: list[tuple[str, int, int]]) -> list[str]:
    """The order in which work begins, if it is all asked for while the places are taken."""
    began: list[str] = []

    async def go() -> None:
        places = Places(total)
        release = asyncio.Event()

        async def first() -> None:
            async with places.hold(total, 0):
                await release.wait()

        async def work(name: str, needed: int, urgency: int) -> None:
            async with places.hold(needed, urgency):
                began.append(name)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(first())
            await asyncio.sleep(0)
            for one in asked:
                group.create_task(work(*one))
            await asyncio.sleep(0)
            release.set()

    asyncio.run(go())
    return began


def test_the_urgent_goes_first_and_equals_by_arrival() -> None:
    assert _order(1, [("c", 1, 2), ("b", 1, 1), ("a", 1, 0), ("b2", 1, 1)]) == ["a", "b", "b2", "c"]


def test_one_who_needs_all_places_is_not_overtaken_by_equals() -> None:
    assert _order(2, [("all", 2, 1), ("one", 1, 1), ("urgent", 1, 0)]) == ["urgent", "all", "one"]


def test_two_who_need_all_places_do_not_meet() -> None:
    inside = most = 0

    async def go() -> None:
        places = Places(3)

        async def work(needed: int) -> None:
            nonlocal inside, most
            async with places.hold(needed, 0):
                inside += needed
                most = max(most, inside)
                await asyncio.sleep(0)
                inside -= needed

        await asyncio.gather(*(work(n) for n in (3, 1, 3, 2, 1, 1, 3)))

    asyncio.run(go())
    assert (inside, most) == (0, 3)


def test_one_who_gives_up_leaves_no_hole() -> None:
    async def go() -> None:
        places = Places(2)

        async def wait(needed: int) -> None:
            async with places.hold(needed, 0):
                await asyncio.sleep(3600)

        async with asyncio.timeout(5):
            async with places.hold(1, 0):
                waits_for_all = asyncio.create_task(wait(2))
                await asyncio.sleep(0)
                behind = asyncio.create_task(wait(1))
                await asyncio.sleep(0)
                waits_for_all.cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                behind.cancel()
                served_and_cancelled_at_once = asyncio.create_task(wait(1))
                await asyncio.sleep(0)
                served_and_cancelled_at_once.cancel()
            async with places.hold(2, 0):
                pass

    asyncio.run(go())
