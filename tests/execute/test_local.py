"""Worker processes: what every executor must do, and what a method that prints, forks or leaks does to the others."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.execute import Executor, LocalExecutor, Progress, Result, StageSpec, _local
from harness.execute._attempts import attempts, pause_s
from harness.execute._watch import Watch
from harness.folders import Folders
from tests.execute.contract import Bench, ExecutorContract, alive, open_bench

MORE = """
import os, time

from acts import Act as Plain

kept = []


class Act(Plain):
    def print_much(self):
        for _ in range(20):
            print("\\x1b[31m" + "x" * 2**20 + "\\x1b[0m")
        print("half a bar\\rwhole bar")
        print("\\x1b[1;32mlast words\\x1b[0m \\x07", flush=True)

    def print_and_die(self):
        self.print_much()
        os._exit(7)

    def orphan(self):
        child = os.fork()
        if not child:
            os.setsid()
            os.execv("/bin/sleep", ["sleep", "3600"]) if "exec" in self.own else time.sleep(3600)
        self.note("pids", child)
        os._exit(7)

    def return_twice(self):
        child = os.fork()
        if child:
            self.note("pids", child)

    def grow(self):
        kept.append(bytearray(b"x") * (600 * 2**20))
        self.note("grown", "x")

    def grow_and_stay(self):
        self.grow()
        time.sleep(60)

    def be_killed(self):
        os.kill(os.getpid(), 9)

    def be_quiet(self):
        time.sleep(1.5)

    def see(self):
        self.note("seen", os.environ["CUDA_VISIBLE_DEVICES"])
        self.wait_for("go")
"""


class TestLocalExecutor(ExecutorContract):
    LIMIT_SLACK_S = 15.0

    def make(self, results: Path, workers: int, retries: int) -> Executor:
        return LocalExecutor(results, workers, retries)


@dataclass
class _More:
    """A bench whose methods do more, with what the user was warned of."""

    bench: Bench
    warnings: list[str] = field(default_factory=list)

    def stage(self, do: str, name: str = "", **changes: Any) -> StageSpec:
        return self.bench.stage(do, name, **{"method": "more:Act", **changes})

    def run(self, do: str, name: str = "", **changes: Any) -> Result:
        return self.bench.run(do, name, **{"method": "more:Act", **changes})


@contextlib.contextmanager
def _more(folder: Path, retries: int = 0, watch: Watch | None = None, **settings: Any) -> Iterator[_More]:
    (folder / "more.py").write_text(MORE)
    warnings: list[str] = []

    def make(results: Path, workers: int, _: int) -> Executor:
        return LocalExecutor(results, workers, retries, warn=warnings.append, watch=watch, **settings)

    with open_bench(make, folder) as bench:
        yield _More(bench, warnings)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_More]:
    with _more(tmp_path_factory.mktemp("more")) as found:
        yield found


@pytest.fixture(autouse=True)
def _fresh_notes(request: pytest.FixtureRequest) -> None:
    if "more" in request.fixturenames:
        found = request.getfixturevalue("more")
        for file in found.bench.folder.iterdir():
            file.unlink()


def _spec(model: Path, key: str = "k1", **changes: Any) -> StageSpec:
    from methods.sft import SFT

    fields: dict[str, Any] = {
        "key": key,
        "method": "sft",
        "version": SFT.version,
        "params": {"dataset": "instructions", "steps": 2, "batch_size": 2},
        "inputs": {"policy": f"model:{model}"},
        "dataset": "instructions",
        "data": "bundled",
        "seed": 0,
        "precision": "float32",
        "label": "sft",
    }
    return StageSpec(**{**fields, **changes})


def test_one_worker_trains_several_specs_and_reports(tiny_model: Path, tmp_path: Path) -> None:
    broken = _spec(
        tiny_model, "k2", params={"dataset": "instructions", "steps": 4, "batch_size": 2, "learning_rate": 1e30}
    )
    stale = _spec(tiny_model, "k3", version=99)
    signs: list[Progress] = []
    workers: set[int] = set()

    async def go() -> list[Result]:
        executor = LocalExecutor(tmp_path, 2)
        try:
            results = []
            for spec in (_spec(tiny_model), broken, stale):
                results.append(await executor.run(spec, signs.append))
                workers.update(worker.pid for worker in executor._all)
            return results
        finally:
            await executor.close()

    results = asyncio.run(go())
    assert [r.state for r in results] == ["complete", "infeasible", "failed"]
    # A warm worker, and so libraries that are imported once.
    assert len(workers) == 1
    assert "version" in results[2].message
    assert "Traceback" in results[1].traceback
    assert {s.step for s in signs if s.key == "k1"} >= {1, 2}
    folders = Folders(tmp_path)
    assert folders.has("k1")
    assert folders.manifest("k1")["method"] == "sft"
    assert not folders.has("k2")
    assert not list(folders.artifacts.glob(".*"))


def test_what_is_printed_stays_in_bounds_and_the_run_completes(more: _More) -> None:
    assert more.run("print_much").state == "complete"
    logs = list((more.bench.results / "work").rglob("*.log"))
    assert 0 < max(log.stat().st_size for log in logs) <= 8 * 2**20


def test_a_crash_shows_the_end_of_its_own_workers_log_without_escapes(more: _More) -> None:
    result = more.run("print_and_die")
    assert result.state == "crash"
    assert result.message == "the worker died (exit code 7)"
    assert "\x1b" not in result.traceback
    # What is before may have been dropped at any place: the log holds only so much.
    assert result.traceback.endswith("\nwhole bar\nlast words \\x07\n")
    assert len(result.traceback) <= 4000


@pytest.mark.parametrize("child", ["forked", "exec"])
def test_a_child_that_outlives_its_dead_worker_blocks_nothing_and_is_killed(more: _More, child: str) -> None:
    result = more.run("orphan", child)
    assert result.state == "crash"
    assert result.seconds < 10
    assert len(more.bench.pids()) == 2
    assert not alive(more.bench.pids())


def test_a_method_that_returns_in_two_processes_gives_one_result(more: _More) -> None:
    assert more.run("return_twice", key="once").state == "complete"
    assert Folders(more.bench.results).has("once")
    assert more.run("finish").state == "complete"
    assert not alive(more.bench.noted("pids") and more.bench.pids()[1:2])


def test_an_idle_worker_that_was_killed_costs_its_next_spec_no_attempt(more: _More) -> None:
    assert more.run("finish").state == "complete"
    os.kill(more.bench.pids()[0], signal.SIGKILL)
    # No retries here, and the executor may not know yet.
    assert more.run("finish").state == "complete"
    assert len(set(more.bench.pids())) == 2


def test_a_sigkill_is_out_of_memory_only_where_the_system_says_so(more: _More) -> None:
    result = more.run("be_killed")
    assert (result.state, result.message) == ("crash", "the worker died (signal SIGKILL)")
    kills = iter(range(1, 1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_local, "system_kills", lambda: next(kills))
        result = more.run("be_killed")
    assert result.state == "infeasible"
    assert result.message.startswith("out of memory: the system killed its worker, at a peak of ")
    assert result.peak_mb is not None
    assert f"{result.peak_mb:.0f} MiB" in result.message


def test_a_worker_is_replaced_where_a_spec_left_it_large(tmp_path: Path) -> None:
    with _more(tmp_path, recycle_mb=600.0) as more:
        for do in ("finish", "grow", "finish"):
            assert more.run(do).state == "complete"
        first, second, third = more.bench.pids()
        assert first == second != third
        assert not alive([first])


def test_silence_is_told_once_and_the_largest_goes_before_the_machine_does(tmp_path: Path) -> None:
    warnings: list[str] = []
    left = [1000.0]
    with _more(tmp_path, watch=Watch(warnings.append, quiet_s=0.6, available=lambda: left[0], total=2000.0)) as more:
        assert more.run("be_quiet", label="sft trial 3").state == "complete"
        assert len(warnings) == 1
        assert warnings[0].startswith("sft trial 3: nothing was heard of it for ")
        assert "set budget.stage_minutes" in warnings[0]

        async def both() -> list[Result]:
            small = asyncio.create_task(more.bench.executor.run(more.stage("linger"), more.bench.signs.append))
            large = asyncio.create_task(more.bench.executor.run(more.stage("grow_and_stay"), more.bench.signs.append))
            while not (more.bench.noted("grown") and more.bench.signs):
                await asyncio.sleep(0.02)
            left[0] = 39.0
            gone = await large
            (more.bench.folder / "go").touch()
            return [await small, gone]

        small, large = more.bench.do(both())
        assert small.state == "complete"
        assert large.state == "infeasible"
        assert "the machine had less than 2% left" in large.message
        assert large.peak_mb is not None
        assert large.peak_mb > 600


def test_no_two_stages_train_on_one_gpu(tmp_path: Path) -> None:
    with _more(tmp_path, devices=("0", "GPU-b")) as more:
        bench = more.bench

        async def three() -> None:
            executor = LocalExecutor(bench.results, 3, 0, devices=("0", "GPU-b"))
            try:
                runs = [asyncio.create_task(executor.run(more.stage("see"), bench.signs.append)) for _ in range(3)]
                while len(bench.noted("seen")) < 2:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.5)
                assert sorted(bench.noted("seen")) == ["0", "GPU-b"]
                (bench.folder / "go").touch()
                assert [(await run).state for run in runs] == ["complete"] * 3
            finally:
                await executor.close()

        bench.do(three())
        assert len(bench.noted("seen")) == 3
        # The third had the warm worker of its GPU.
        assert len(set(bench.pids())) == 2


def test_crashes_are_retried_with_growing_pauses_and_nothing_else_is() -> None:
    assert [pause_s(failed) for failed in (1, 2, 3, 9)] == [0.5, 1.0, 2.0, 30.0]
    states = iter(["crash", "failed", "complete"])

    async def attempt() -> Result:
        return Result.model_validate({"key": "k", "state": next(states), "message": "so"})

    assert asyncio.run(attempts(_spec(Path("m")), attempt, 2)).state == "failed"


def test_half_an_artifact_is_never_visible(tmp_path: Path) -> None:
    folders = Folders(tmp_path)

    def dies(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        folders.put("key", {}, dies)
    assert not folders.has("key")
    assert not list(folders.artifacts.iterdir())
    folders.put("key", {"a": 1}, lambda folder: (folder / "whole").write_text("w") and None)
    assert folders.manifest("key") == {"a": 1}


def test_a_stage_whose_worker_is_killed_goes_on_from_its_checkpoint_to_the_same_bits(
    tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    spec = _spec(tiny_model, params={"dataset": "instructions", "steps": 40, "batch_size": 2}, checkpoint_s=0.0)

    async def go(results: Path, *, kill: bool) -> tuple[Result, list[int]]:
        executor = LocalExecutor(results, 1, 1)
        killed: list[int] = []
        kept: list[int] = []

        def told(sign: Progress) -> None:
            # The steps that checkpoints were made after, from the kill on.
            found = [int(p.name) for p in (results / "checkpoints" / spec.key).glob("[0-9]*")]
            if kill and not killed and found and found[0] >= 5:
                killed.extend(worker.pid for worker in executor._all)
                os.kill(killed[0], signal.SIGKILL)
            if killed:
                kept.extend(found)

        try:
            result = await executor.run(spec, told)
        finally:
            await executor.close()
        assert len(killed) == kill
        return result, kept

    whole, _ = asyncio.run(go(tmp_path / "whole", kill=False))
    cut, kept = asyncio.run(go(tmp_path / "cut", kill=True))
    assert whole.state == cut.state == "complete"
    # The second worker began where the first was: had it begun anew, there would be one after the first step.
    assert len(set(kept)) > 3
    assert min(kept) >= 5
    one, other = (load_file(tmp_path / r / "artifacts" / spec.key / "model.safetensors") for r in ("whole", "cut"))
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)
    assert not (tmp_path / "cut" / "checkpoints" / spec.key).exists()
