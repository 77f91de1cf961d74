"""A sweep's specs as Slurm jobs, submitted by submitit: a job for each, which Slurm queues, places and kills.

A job starts an interpreter and a worker and loads torch: some seconds beside its time in the queue. For many short
specs a Ray cluster started inside one allocation is faster. The job's logs are in `results/work/<folder>/jobs`.
"""

import asyncio
import contextlib
import math
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness._printable import printable
from harness._secrets import redacted
from harness.errors import UserError
from harness.execute._attempts import UnderWay, attempts
from harness.execute._job import Papers, leave_result
from harness.execute._places import Places
from harness.execute._queue import LocalQueue, Queue, SlurmQueue
from harness.execute._spec import MeasureSpec, Progress, Result, StageSpec, resources_of
from harness.execute._there import Ground, Message

__all__ = ["SlurmExecutor"]

_JOBS = 100
_BEAT_S = 20.0
_ORPHAN_S = 180.0
_LATE_S = 15.0
"""A shared folder shows a file of another machine this late, or never."""
_END_S = 45.0
"""Slurm gives a job half a minute between asking it to end and killing it."""
_START_S = 120.0
"""Beside the time a spec may take: for the start of a job, and for its own end at its limit."""
_BESIDE_MB = 1024
"""Beside the memory a spec may take: for the process that watches over its worker."""
_TRANSIENT = re.compile(r"unable to contact|timed out|temporarily|try again|connection refused", re.IGNORECASE)

Spec = StageSpec | MeasureSpec
Report = Callable[[Progress], None]


@dataclass(frozen=True)
class _Submitted:
    job: Any
    papers: Papers


class SlurmExecutor:
    """Runs each spec as a Slurm job, from a machine that has sbatch and shares the results folder with the nodes.

    A job asks for the CPUs, GPUs and generic resources (`--gres`) of `resources_of`; one that must run alone asks for
    its node exclusively. Jobs that Slurm preempts, times out or loses with their node are submitted again.

    Args:
        results: the results folder, shared by all nodes under this path.
        workers: jobs in Slurm's queue together; None: 100.
        retries: how often a spec is submitted again whose job or worker died.
        options: of sbatch, by their long names (partition, account, time, ...); `time` is a job's, minutes or
            days-hours:minutes:seconds. They win over what a spec asks for.
        warn: told what the user should know.
        cluster: `slurm`, or `local`: the same jobs as processes of this machine, without a queue.
        poll_s: seconds between two looks at the files of a job.
        orphan_s: seconds after which a job ends whose sweep shows no sign of life.

    Raises:
        UserError: submitit is not installed, or this machine has no sbatch.
    """

    def __init__(
        self,
        results: Path,
        workers: int | None = None,
        retries: int = 2,
        *,
        options: Mapping[str, str] | None = None,
        warn: Callable[[str], None] = lambda _: None,
        cluster: Literal["slurm", "local"] = "slurm",
        poll_s: float = 1.0,
        orphan_s: float = _ORPHAN_S,
    ) -> None:
        try:
            import submitit  # noqa: F401  # only whether it is there
        except ImportError:
            raise UserError("--executor slurm needs submitit: pip install 'posttrain-harness[slurm]'") from None
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise UserError("--executor slurm: no sbatch here: start the sweep on a login node of the Slurm cluster")
        self._retries, self._warn, self._cluster = retries, warn, cluster
        self._options = {name.lstrip("-").replace("_", "-"): value for name, value in (options or {}).items()}
        self._poll_s, self._orphan_s = poll_s, orphan_s
        self._folder = results / "work" / uuid.uuid4().hex[:8]
        self._ground = Ground.lay(results, self._folder).model_dump_json()
        self._places = Places(workers or _JOBS)
        self._queue: Queue = SlurmQueue() if cluster == "slurm" else LocalQueue()
        self._under_way = UnderWay()
        self._ended: list[_Submitted] = []
        self._heart: asyncio.Task[None] | None = None

    async def run(self, spec: Spec, report: Report) -> Result:
        """Run one spec in a job; one whose job or worker dies is submitted again, then returned as `crash`.

        On a node that does not see the results folder, or has other versions of the libraries, its result says so, and
        that the sweep ends (`Result.storage`).
        """
        if self._heart is None:
            self._heart = asyncio.create_task(self._beat())
        # With Slurm it is Slurm that keeps a node for one job.
        everything = self._cluster == "local" and resources_of(spec).whole_machine
        async with self._places.hold(self._places.total if everything else 1, spec.urgency):
            return await attempts(
                spec, lambda: self._under_way.run(lambda: self._submitted(spec, report)), self._retries
            )

    async def close(self) -> None:
        """End the jobs, also those that wait in the queue. Logs of jobs that left a result are removed."""
        await self._under_way.end()
        for one in self._ended:
            await self._gone(one)
            for file in self._files(one):
                file.unlink(missing_ok=True)
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)
        for name in ("heart", "marker"):
            (self._folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self._folder / "jobs").rmdir()
            self._folder.rmdir()

    async def _submitted(self, spec: Spec, report: Report) -> Result:
        # A submission cannot be interrupted: it is awaited, and then its job is ended.
        submission = asyncio.ensure_future(asyncio.to_thread(self._submit, spec))
        try:
            one = await asyncio.shield(submission)
        except asyncio.CancelledError:
            await self._end(await submission)
            raise
        if isinstance(one, Result):
            return one
        try:
            return await self._follow(spec, one, report)
        except asyncio.CancelledError:
            await self._end(one)
            raise

    def _submit(self, spec: Spec) -> "_Submitted | Result":
        import submitit

        name = f"{spec.kind}-{spec.key}-{uuid.uuid4().hex[:6]}"
        papers = Papers(
            signs=self._folder / f"{name}.signs",
            result=self._folder / f"{name}.result",
            heart=self._folder / "heart",
            orphan_s=self._orphan_s,
        )
        executor = submitit.AutoExecutor(folder=self._folder / "jobs", cluster=self._cluster)
        executor.update_parameters(**self._asked(spec))
        if self._cluster == "slurm" and "time" not in self._options and spec.limit_s is None:
            # submitit would ask for five minutes; nothing said, a job has what its partition gives.
            executor.parameters["time"] = None
        try:
            job = executor.submit(leave_result, spec.model_dump_json(), self._ground, papers.model_dump_json())
        except submitit.core.utils.FailedJobError as error:
            again = _TRANSIENT.search(str(error)) is not None
            said = f"sbatch refused the job of {spec.label or spec.key}: {str(error).strip()}"
            return Result(key=spec.key, state="crash" if again else "failed", message=said)
        return _Submitted(job, papers)

    def _asked(self, spec: Spec) -> dict[str, Any]:
        wanted = resources_of(spec)
        asked: dict[str, Any] = {"name": "harness", "nodes": 1, "tasks_per_node": 1}
        if self._cluster == "local":
            return {**asked, "timeout_min": 60 * 24 * 365}
        gres = [f"{name}:{amount:g}" for name, amount in wanted.custom.items()]
        if wanted.gpus and not any(name.startswith("gpu") for name in wanted.custom):
            gres.append(f"gpu:{wanted.gpus}")
        more = {"export": "ALL", **({"gres": ",".join(gres)} if gres else {})}
        if spec.limit_s is not None:
            asked["timeout_min"] = math.ceil((spec.limit_s + _START_S) / 60)
        if spec.memory_mb is not None:
            more["mem"] = f"{math.ceil(spec.memory_mb) + _BESIDE_MB}M"
        if wanted.whole_machine:
            asked["slurm_exclusive"] = True
        return {
            **asked,
            "cpus_per_task": wanted.cpus,
            "slurm_signal_delay_s": 15,
            "slurm_additional_parameters": {**more, **self._options},
        }

    async def _follow(self, spec: Spec, one: _Submitted, report: Report) -> Result:
        read, absent = 0, 0.0
        while True:
            done = one.papers.result.is_file()
            read = self._signs(one.papers.signs, read, report)
            if done:
                return await self._result(spec, one)
            ended = await self._queue.ended(one.job)
            # Its last files may show only after Slurm has said that it is over.
            absent = absent + self._poll_s if ended else 0.0
            if ended and absent > (_LATE_S if self._cluster == "slurm" else self._poll_s):
                return _died(spec, one, ended)
            await asyncio.sleep(self._poll_s)

    async def _result(self, spec: Spec, one: _Submitted) -> Result:
        message = Message.model_validate_json(one.papers.result.read_bytes())
        if message.problem is not None:
            return Result(key=spec.key, state="failed", storage=True, message=message.problem)
        if message.result is None:
            raise RuntimeError("a job ended without a result")
        if message.result.state == "crash" and await self._queue.ended(one.job) == "OUT_OF_MEMORY":
            return _died(spec, one, "OUT_OF_MEMORY")
        for file in (one.papers.signs, one.papers.result):
            file.unlink(missing_ok=True)
        if message.result.state != "crash":
            self._ended.append(one)
        return message.result

    def _signs(self, file: Path, read: int, report: Report) -> int:
        if not file.is_file():
            return read
        with file.open("rb") as signs:
            signs.seek(read)
            # A line that is being written is read whole, next time.
            whole = signs.read().rpartition(b"\n")[0]
        for line in whole.splitlines():
            message = Message.model_validate_json(line)
            for sign in message.signs:
                report(sign)
            for warning in message.warnings:
                self._warn(warning)
        return read + len(whole) + bool(whole)

    async def _end(self, one: "_Submitted | Result") -> None:
        if isinstance(one, Result):
            return
        await asyncio.to_thread(self._queue.cancel, one.job)
        await self._gone(one)
        for file in (one.papers.signs, one.papers.result):
            file.unlink(missing_ok=True)

    async def _gone(self, one: _Submitted) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                while not await self._queue.ended(one.job):
                    await asyncio.sleep(min(self._poll_s, 0.5))

    async def _beat(self) -> None:
        heart, aside = self._folder / "heart", self._folder / "heart.aside"
        while True:
            aside.write_text(uuid.uuid4().hex, encoding="utf-8")
            aside.rename(heart)
            await asyncio.sleep(min(_BEAT_S, self._orphan_s / 5))

    @staticmethod
    def _files(one: _Submitted) -> list[Path]:
        paths = one.job.paths
        return [paths.stdout, paths.stderr, paths.submitted_pickle, paths.result_pickle, paths.submission_file]


def _died(spec: Spec, one: _Submitted, state: str) -> Result:
    file = Path(one.job.paths.stderr)
    tail = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    tail = printable(redacted(tail[-16_000:]))[-4000:]
    said = f"job {one.job.job_id} ended as {state} and left no result; its log: {file}"
    if state == "OUT_OF_MEMORY":
        said = f"out of memory: Slurm killed job {one.job.job_id}. Option mem of sbatch asks for more"
        return Result(key=spec.key, state="infeasible", message=said, traceback=tail)
    if state == "TIMEOUT":
        said += ". Option time of sbatch asks for more"
    return Result(key=spec.key, state="crash", message=said, traceback=tail)
