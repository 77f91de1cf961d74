"""GPUs without one: what a spec must have to itself, what its worker sees, and who waits for which."""

import asyncio
from typing import Any

import pytest

from harness.execute import MeasureSpec, StageSpec
from harness.execute._devices import NO_DEVICES, Wanted, _listed, devices_here, visible_devices, wanted_devices
from harness.execute._places import Places
from harness.targets import Target

STAGE = StageSpec(
    key="s", method="sft", version=1, params={}, inputs={}, data="bundled", seed=0, precision="float32", label="s"
)


def _on(device: str) -> MeasureSpec:
    return MeasureSpec(
        key="m",
        model="model:m",
        artifact="a",
        target=Target(name="t", device=device).model_dump(),
        data="bundled",
        halves=("tune",),
        scorer="hf",
        items=(),
        base="model:m",
    )


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (STAGE, Wanted(any_of=1)),
        (_on("cpu"), NO_DEVICES),
        (_on("cuda"), Wanted(any_of=1)),
        (_on("offload"), Wanted(any_of=1)),
        (_on("cuda:2"), Wanted(these=("c",))),
        (_on("auto"), Wanted(these=("a", "b", "c"))),
        # It is told by torch, in its own words, that there is no such device.
        (_on("cuda:3"), NO_DEVICES),
    ],
)
def test_what_a_spec_has_to_itself(spec: Any, wanted: Wanted) -> None:
    assert wanted_devices(spec, ("a", "b", "c")) == wanted
    assert wanted_devices(spec, ()) == NO_DEVICES


def test_a_numbered_device_keeps_its_number_in_the_worker() -> None:
    here = ("a", "b", "c")
    assert visible_devices(_on("cuda:1"), ("b",), here) == "a,b"
    assert visible_devices(_on("cuda"), ("b",), here) == "b"
    assert visible_devices(_on("auto"), here, here) == "a,b,c"
    assert visible_devices(_on("cpu"), (), here) == ""
    assert visible_devices(STAGE, (), ()) is None


def test_devices_are_counted_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-x,-1,3")
    assert devices_here() == ("2", "GPU-x")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices_here() == ()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H100 (UUID: GPU-2)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert devices_here() == ("0", "1")
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert devices_here() == ()
    divided = "GPU 0: A (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-7)\n  MIG 1g.10gb Device 1: (UUID: MIG-8)\n"
    assert _listed(divided + "GPU 1: A (UUID: GPU-2)\n") == ("MIG-7", "MIG-8", "1")


def test_who_waits_for_a_device_lets_the_others_pass_and_keeps_its_turn() -> None:
    began: list[tuple[str, tuple[str, ...]]] = []

    async def go() -> None:
        places = Places(4, ("a", "b"))
        release = asyncio.Event()

        async def work(name: str, wanted: Wanted) -> None:
            async with places.hold(1, 0, wanted) as held:
                began.append((name, held))
                await release.wait() if name == "first" else await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            group.create_task(work("first", Wanted(these=("a",))))
            await asyncio.sleep(0)
            group.create_task(work("all", Wanted(these=("a", "b"))))
            group.create_task(work("behind", Wanted(any_of=1)))
            group.create_task(work("none", NO_DEVICES))
            for _ in range(5):
                await asyncio.sleep(0)
            assert [name for name, _ in began] == ["first", "none"]
            release.set()

    asyncio.run(go())
    assert began[2:] == [("all", ("a", "b")), ("behind", ("a",))]
