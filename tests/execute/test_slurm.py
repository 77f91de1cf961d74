"""Specs as Slurm jobs: as processes of this machine, and the whole contract on a real Slurm where there is one."""

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.errors import UserError
from harness.execute import Executor, Item, MeasureSpec
from harness.execute._open import open_executor
from harness.execute._queue import SlurmQueue
from harness.execute._slurm import SlurmExecutor
from harness.targets import Target
from tests.execute.contract import ExecutorContract, alive, open_bench

pytest.importorskip("submitit", reason="submitit is an extra: pip install 'posttrain-harness[slurm]'")


def _has_slurm() -> bool:
    if shutil.which("sbatch") is None:
        return False
    asked = ["sinfo", "--noheader"]
    return subprocess.run(asked, capture_output=True, check=False, timeout=60).returncode == 0


class TestProcesses(ExecutorContract):
    """Submitit's own way of running jobs without a queue. What a worker deals with by itself is left to `TestSlurm`."""

    test_how_a_method_ends_is_told = None
    test_a_spec_that_succeeds_when_tried_again_is_complete = None
    test_more_memory_than_allowed_is_infeasible = None
    test_what_must_run_alone_overlaps_with_nothing = None
    test_what_a_method_forks_does_not_outlive_its_stage = None

    def make(self, results: Path, workers: int, retries: int) -> Executor:
        return SlurmExecutor(results, workers, retries, cluster="local", poll_s=0.1)


@pytest.mark.skipif(not _has_slurm(), reason="no Slurm here (sinfo)")
class TestSlurm(ExecutorContract):
    """Every spec pays for a job: some minutes in all."""

    LIMIT_SLACK_S = 60.0

    def make(self, results: Path, workers: int, retries: int) -> Executor:
        return SlurmExecutor(results, workers, retries, options={"time": "5"})


def test_jobs_of_a_sweep_that_was_killed_end_by_themselves(tmp_path: Path) -> None:
    def make(results: Path, workers: int, retries: int) -> Executor:
        return SlurmExecutor(results, workers, retries, cluster="local", poll_s=0.1, orphan_s=1.0)

    with open_bench(make, tmp_path) as bench:

        async def orphaned() -> None:
            run = asyncio.create_task(bench.executor.run(bench.stage("hang"), bench.signs.append))
            while not bench.signs:
                await asyncio.sleep(0.02)
            # Its heart beats in this event loop, which stands still as if the sweep were dead.
            assert not alive(bench.pids(), 30.0)
            # Told to stop a second time while it clears up, the job ends all the same.
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run

        bench.do(orphaned())
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]


def _measure(**target: Any) -> MeasureSpec:
    profile = Item(key="p", kind="profile", task="profile", settings={})
    fields: dict[str, Any] = {"key": "m", "model": "m", "artifact": "a", "base": "b", "data": "bundled"}
    shown = Target(name="t", **target).model_dump()
    return MeasureSpec(
        **fields, target=shown, halves=("tune",), scorer="hf", items=(profile,), alone=True, limit_s=600, memory_mb=5000
    )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins for Slurm's commands, which keep what they were given and answer what they are told."""
    for name in ("sbatch", "srun", "squeue", "scancel"):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/{name}.asked\n. {tmp_path}/{name}.says\n')
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def test_a_job_asks_for_what_its_spec_occupies_and_options_win(slurm: Path) -> None:
    script = slurm / "script"
    (slurm / "sbatch.says").write_text(f'cp "$1" {script}; echo "sbatch: error: invalid partition" >&2; exit 1')

    async def asked(spec: MeasureSpec, **options: str) -> list[str]:
        executor = SlurmExecutor(slurm / "results", 1, 0, options=options)
        result = await executor.run(spec, lambda _: None)
        await executor.close()
        assert (result.state, "invalid partition" in result.message) == ("failed", True)
        return [line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if "#SBATCH" in line]

    gpu = asyncio.run(asked(_measure(device="cuda", threads=4, resources={"gpu:h200": 1}), partition="big"))
    assert {"cpus-per-task=4", "gres=gpu:h200:1", "partition=big", "exclusive", "time=12", "mem=6024M"} <= set(gpu)
    assert "gres=gpu:1" in asyncio.run(asked(_measure(device="cuda")))
    free = _measure().model_copy(update={"limit_s": None, "memory_mb": None})
    assert not [line for line in asyncio.run(asked(free)) if line.startswith(("time=", "mem=", "gres="))]
    assert {"time=1-00:00:00", "mem=9G"} <= set(asyncio.run(asked(_measure(), time="1-00:00:00", mem="9G")))


def test_what_slurm_says_of_a_job_is_told(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.execute._slurm._LATE_S", 0.0)
    monkeypatch.setattr("harness.execute._queue._ASK_EVERY_S", 0.0)
    (slurm / "sbatch.says").write_text('echo "Submitted batch job 12"')

    def ended(says: str, retries: int = 0) -> tuple[str, str, int]:
        (slurm / "squeue.says").write_text(says)
        (slurm / "sbatch.asked").write_text("")

        async def run() -> tuple[str, str, int]:
            executor = SlurmExecutor(slurm / "results", 1, retries, poll_s=0.05)
            result = await executor.run(_measure(), lambda _: None)
            await executor.close()
            return result.state, result.message, len((slurm / "sbatch.asked").read_text().splitlines())

        return asyncio.run(run())

    state, message, _ = ended('echo "12|OUT_OF_MEMORY"')
    assert (state, "Option mem of sbatch" in message) == ("infeasible", True)
    state, message, submitted = ended('echo "12|TIMEOUT"', retries=1)
    assert (state, "Option time of sbatch" in message, submitted) == ("crash", True, 2)
    state, message, submitted = ended('echo "12|NODE_FAIL"', retries=1)
    assert (state, "NODE_FAIL" in message, submitted) == ("crash", True, 2)
    state, message, _ = ended('echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    assert (state, "GONE" in message) == ("crash", True)


def test_a_controller_that_does_not_answer_says_nothing_of_a_job(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.execute._queue._ASK_EVERY_S", 0.0)
    (slurm / "squeue.says").write_text('echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')

    class Job:
        job_id = "12"

    async def asked() -> list[str | None]:
        queue = SlurmQueue()
        return [await queue.ended(Job()) for _ in range(5)]

    started = time.monotonic()
    assert asyncio.run(asked()) == [None] * 5
    assert time.monotonic() - started < 10


def test_without_sbatch_or_submitit_it_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch here: start the sweep on a login node"):
        open_executor("slurm", tmp_path, 1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'posttrain-harness\[slurm\]'"):
        open_executor("slurm", tmp_path, 1)
