"""What every executor must do, whatever a method does to its process. Subclass `ExecutorContract` for each executor.

The methods are made here: they need no model and no dataset, so that a worker's start is all that a test costs. The
tests of one class share an executor, and so find out as well whether it goes on after each of them.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from harness.execute import Executor, Item, MeasureSpec, Progress, Result, StageSpec
from harness.folders import Folders
from harness.store import Store
from harness.suite import Gold
from harness.targets import Target

__all__ = ["Bench", "ExecutorContract", "alive", "open_bench"]

RETRIES = 1
_PATIENCE_S = 90.0

T = TypeVar("T")

ACTS = """
import os, signal, subprocess, sys, time
from pathlib import Path

from harness.errors import InfeasibleError, PrunedError
from harness.method import Method, Params, Trained


class ActParams(Params):
    do: str
    folder: str
    name: str = ""


class Act(Method[ActParams]):
    name, summary, paper, version, params, needs, dataset_kind = "act", "acts", "none", 1, ActParams, frozenset(), None

    def run(self, inputs, params, context):
        self.folder, self.own, self.context = Path(params.folder), params.name, context
        self.note("pids", os.getpid())
        self.note(self.own + ".began", time.monotonic())
        getattr(self, params.do)()
        self.note(self.own + ".ended", time.monotonic())
        return Trained(None, None, {"tokens": 3.0}, write=lambda folder: (folder / "weights").write_text("w") and None)

    def note(self, name, what):
        with (self.folder / name).open("a") as file:
            file.write(f"{what}\\n")

    def wait_for(self, name):
        end = time.monotonic() + 60
        while not (self.folder / name).exists():
            if time.monotonic() > end:
                raise RuntimeError("waited in vain for " + name)
            time.sleep(0.02)

    def finish(self):
        for step in (1, 2, 3):
            self.context.log(step, 3, {"loss": 1.0 / step})

    def fail(self):
        raise RuntimeError("broken on purpose")

    def diverge(self):
        self.context.log(4, 9, {"loss": float("nan")})
        raise InfeasibleError("the loss is NaN", step=5)

    def prune(self):
        self.context.log(3, 9, {"loss": 1.0})
        raise PrunedError("hopeless")

    def leave(self):
        sys.exit(3)

    def die(self):
        first = not (self.folder / "died").exists()
        self.note("died", "x")
        if first:
            os._exit(7)
        os.kill(os.getpid(), signal.SIGKILL)

    def stumble(self):
        first = not (self.folder / "stumbled").exists()
        self.note("stumbled", "x")
        if first:
            os._exit(7)

    def hang(self):
        self.note("pids", subprocess.Popen(["sleep", "3600"]).pid)
        self.context.log(2, 9, {})
        while True:
            time.sleep(3600)

    def leak(self):
        kept = []
        while len(kept) < 60:
            kept.append(bytearray(b"x") * 2**25)
            time.sleep(0.02)
        time.sleep(60)

    def meet(self):
        self.wait_for("a.began")
        self.wait_for("b.began")

    def linger(self):
        self.context.log(1, 2, {})
        self.wait_for("go")

    def fork(self):
        child = os.fork()
        if not child:
            os.setsid()
            time.sleep(3600)
            os._exit(0)
        self.note("pids", child)
"""


@dataclass
class Bench:
    """An executor at work in a results folder, with the signs of life that came. `do` runs in its event loop."""

    runner: asyncio.Runner
    executor: Executor
    results: Path
    folder: Path
    signs: list[Progress] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def stage(self, do: str, name: str = "", **changes: Any) -> StageSpec:
        """A stage that does this; what it notes goes below `folder`."""
        fields: dict[str, Any] = {
            "key": f"{do}{next(self._numbers)}",
            "method": "acts:Act",
            "version": 1,
            "params": {"do": do, "folder": str(self.folder), "name": name},
            "inputs": {},
            "data": "bundled",
            "seed": 0,
            "precision": "float32",
            "label": do,
        }
        return StageSpec(**{**fields, **changes})

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have it done, within a time after which the executor is taken to hang."""

        async def timed() -> T:
            async with asyncio.timeout(_PATIENCE_S):
                return await work

        return self.runner.run(timed())

    def run(self, do: str, name: str = "", **changes: Any) -> Result:
        """One stage to its end."""
        return self.do(self.executor.run(self.stage(do, name, **changes), self.signs.append))

    def noted(self, name: str) -> list[str]:
        """The lines that methods left in this note."""
        file = self.folder / name
        return file.read_text().split() if file.exists() else []

    def pids(self) -> list[int]:
        """The processes in which methods ran, or which they started."""
        return [int(pid) for pid in self.noted("pids")]


def alive(pids: list[int], within_s: float = 10.0) -> list[int]:
    """Those of the processes that still run after at most this long."""
    end = time.monotonic() + within_s
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def _runs(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


@contextlib.contextmanager
def open_bench(make: Callable[[Path, int, int], Executor], folder: Path) -> Iterator[Bench]:
    """A bench with two workers and `RETRIES`; methods are found through PYTHONPATH, as a user's own are."""
    (folder / "acts.py").write_text(ACTS)
    (folder / "notes").mkdir()
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv("PYTHONPATH", str(folder))

        async def made() -> Executor:
            return make(folder / "results", 2, RETRIES)

        bench = Bench(runner, runner.run(made()), folder / "results", folder / "notes")
        try:
            yield bench
        finally:
            runner.run(bench.executor.close())


class ExecutorContract:
    """Subclass this with `make`; the tests share one executor of two workers.

    `PYTHONPATH` is set while `make` is called and after.
    """

    LIMIT_SLACK_S = 20.0
    """Seconds after its limit within which a hanging spec must be gone, grace and start of a worker included."""

    def make(self, results: Path, workers: int, retries: int) -> Executor:
        """The executor under test. Called in a running event loop."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def bench(self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
        with open_bench(request.cls().make, tmp_path_factory.mktemp("bench")) as bench:
            yield bench

    @pytest.fixture(autouse=True)
    def _fresh_notes(self, bench: Bench) -> None:
        for file in bench.folder.iterdir():
            file.unlink()
        bench.signs.clear()

    def test_a_stage_completes_and_leaves_its_artifact_and_rows(self, bench: Bench) -> None:
        result = bench.run("finish", key="whole")
        assert result.state == "complete", result
        assert result.peak_mb is not None
        assert result.peak_mb > 10
        assert Folders(bench.results).has("whole")
        assert {(s.step, s.total, s.label) for s in bench.signs} == {
            (1, 3, "finish"),
            (2, 3, "finish"),
            (3, 3, "finish"),
        }
        store = Store(bench.results)
        store.ingest()
        assert store.query("SELECT stage FROM raw.stages").rows() == [("whole",)]

    def test_how_a_method_ends_is_told(self, bench: Bench) -> None:
        failed = bench.run("fail")
        assert (failed.state, failed.message) == ("failed", "RuntimeError: broken on purpose")
        assert "in fail" in failed.traceback
        diverged = bench.run("diverge")
        assert (diverged.state, diverged.step) == ("infeasible", 5)
        assert "the loss is NaN" in diverged.message
        assert diverged.peak_mb is not None
        pruned = bench.run("prune")
        assert (pruned.state, pruned.step) == ("pruned", 3)
        assert "hopeless" in pruned.message
        left = bench.run("leave")
        assert left.state == "failed"
        assert "exit with 3" in left.message

    def test_a_worker_that_dies_is_replaced_and_its_spec_retried_then_the_crash_is_told(self, bench: Bench) -> None:
        dead = bench.run("die")
        assert dead.state == "crash", dead
        assert len(bench.noted("died")) == RETRIES + 1
        assert "SIGKILL" in dead.message
        assert "2 attempts" in dead.message
        assert len(set(bench.pids())) == RETRIES + 1
        assert not alive(bench.pids())
        assert bench.run("finish").state == "complete"

    def test_a_spec_that_succeeds_when_tried_again_is_complete(self, bench: Bench) -> None:
        assert bench.run("stumble").state == "complete"
        assert len(bench.noted("stumbled")) == 2

    def test_a_hang_past_the_limit_is_pruned_and_gone(self, bench: Bench) -> None:
        started = time.monotonic()
        result = bench.run("hang", limit_s=1.0)
        assert time.monotonic() - started < 1.0 + self.LIMIT_SLACK_S
        assert result.state == "pruned", result
        assert "limit" in result.message
        assert "budget.stage_minutes" in result.message
        assert result.step == 2
        # Where it hung.
        assert "in hang" in result.traceback
        assert len(bench.pids()) == 2
        assert not alive(bench.pids())

    def test_more_memory_than_allowed_is_infeasible(self, bench: Bench) -> None:
        result = bench.run("leak", memory_mb=1200.0)
        assert result.state == "infeasible", result
        assert result.peak_mb is not None
        assert 1200 < result.peak_mb < 2600
        assert f"{result.peak_mb:.0f} MiB" in result.message
        assert "budget.memory_gb" in result.message
        assert not alive(bench.pids())

    def test_two_specs_run_at_the_same_time(self, bench: Bench) -> None:
        async def both() -> list[Result]:
            runs = (bench.executor.run(bench.stage("meet", name), bench.signs.append) for name in "ab")
            return await asyncio.gather(*runs)

        assert [r.state for r in bench.do(both())] == ["complete", "complete"]

    def test_what_must_run_alone_overlaps_with_nothing(self, bench: Bench, tiny_model: Path) -> None:
        seen: list[float] = []

        async def all_three() -> list[Result]:
            first = asyncio.create_task(bench.executor.run(bench.stage("linger", "a"), bench.signs.append))
            while not bench.signs:
                await asyncio.sleep(0.02)
            alone = asyncio.create_task(
                bench.executor.run(_measure(tiny_model), lambda _: seen.append(time.monotonic()))
            )
            await asyncio.sleep(0)
            last = asyncio.create_task(bench.executor.run(bench.stage("finish", "b"), bench.signs.append))
            await asyncio.sleep(1.0)
            assert not seen
            assert not alone.done()
            (bench.folder / "go").touch()
            return list(await asyncio.gather(first, alone, last))

        results = bench.do(all_three())
        assert [r.state for r in results] == ["complete"] * 3, results
        assert float(bench.noted("a.ended")[0]) < seen[0]
        began, ended = (float(bench.noted(f"b.{what}")[0]) for what in ("began", "ended"))
        assert ended < seen[0] or began > seen[-1]

    def test_what_a_method_forks_does_not_outlive_its_stage(self, bench: Bench) -> None:
        assert bench.run("fork").state == "complete"
        child = bench.pids()[1]
        assert not alive([child])

    def test_a_cancelled_run_leaves_nothing_at_work_and_gives_its_place_back(self, bench: Bench) -> None:
        async def cancelled() -> None:
            runs = [asyncio.create_task(bench.executor.run(bench.stage("hang"), bench.signs.append)) for _ in range(2)]
            while len(bench.signs) < 2:
                await asyncio.sleep(0.02)
            for run in runs:
                run.cancel()
            for run in runs:
                with pytest.raises(asyncio.CancelledError):
                    await run

        bench.do(cancelled())
        assert len(bench.pids()) == 4
        assert not alive(bench.pids())
        assert bench.run("finish").state == "complete"

    def test_closed_it_leaves_no_process(self, tmp_path: Path) -> None:
        with open_bench(self.make, tmp_path) as bench:

            async def closed() -> None:
                run = asyncio.create_task(bench.executor.run(bench.stage("hang"), bench.signs.append))
                while not bench.signs:
                    await asyncio.sleep(0.02)
                await bench.executor.close()
                with pytest.raises(asyncio.CancelledError):
                    await run

            bench.do(closed())
            assert len(bench.pids()) == 2
            assert not alive(bench.pids())


def _measure(model: Path) -> MeasureSpec:
    """A measurement that takes a while and tells of its steps; it needs a real model, a method being no measurement."""
    gold = Item(key="g", kind="gold", task="gold", settings=Gold(limit=12, max_new_tokens=8).model_dump())
    return MeasureSpec(
        key="alone",
        model=f"model:{model}",
        artifact="base",
        target=Target(name="cpu").model_dump(),
        data="bundled",
        halves=("tune",),
        scorer="prefix-tree",
        items=(gold,),
        base=f"model:{model}",
        alone=True,
        label="alone",
    )
