"""What has become of a job: asked of Slurm for all jobs together, or of the processes of this machine."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from typing import Any, Protocol

__all__ = ["LocalQueue", "Queue", "SlurmQueue"]

_ASK_EVERY_S = 5.0
_GONE_AFTER = 3
"""Answers without a job until it counts as gone: a new one may be missing in the first."""
_UNDER_WAY = frozenset(
    [
        *("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"),
        *("COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    ]
)


class Queue(Protocol):
    """Where jobs are."""

    async def ended(self, job: Any) -> str | None:  # noqa: ANN401  # a job of submitit's
        """The state in which the job ended; None while it waits or runs, or where nothing is known."""

    def cancel(self, job: Any) -> None:  # noqa: ANN401  # a job of submitit's
        """Have the job ended; it may take a while."""


class SlurmQueue:
    """Slurm's queue by squeue, which needs no accounting database. Slurm forgets a job five minutes after its end."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._missed: dict[str, int] = {}
        self._asked_at = 0.0
        self._asking = asyncio.Lock()

    async def ended(self, job: Any) -> str | None:  # noqa: ANN401  # a job of submitit's
        """As `Queue.ended`."""
        number = str(job.job_id)
        self._missed.setdefault(number, 0)
        async with self._asking:
            if time.monotonic() - self._asked_at >= _ASK_EVERY_S:
                await asyncio.to_thread(self._ask)
                self._asked_at = time.monotonic()
        state = self._known.get(number, "PENDING")
        if state not in _UNDER_WAY:
            return state
        return "GONE" if self._missed[number] >= _GONE_AFTER else None

    def cancel(self, job: Any) -> None:  # noqa: ANN401  # a job of submitit's
        """As `Queue.cancel`."""
        subprocess.run(["scancel", str(job.job_id)], check=False, capture_output=True, timeout=60)  # noqa: S607  # wherever Slurm is installed
        self._asked_at = 0.0

    def _ask(self) -> None:
        asked = [n for n in self._missed if self._known.get(n, "PENDING") in _UNDER_WAY]
        if not asked:
            return
        command = ["squeue", "--noheader", "--states=all", "--format=%i|%T", f"--jobs={','.join(asked)}"]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return
        # Asked for one job only, squeue calls it an error that Slurm has forgotten it.
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            return
        found = dict(line.strip().split("|") for line in done.stdout.splitlines() if "|" in line)
        self._known.update(found)
        for number in asked:
            self._missed[number] = 0 if number in found else self._missed[number] + 1


class LocalQueue:
    """Jobs that are processes of this machine."""

    async def ended(self, job: Any) -> str | None:  # noqa: ANN401  # a job of submitit's
        """As `Queue.ended`."""
        return str(job.state) if job.done() else None

    def cancel(self, job: Any) -> None:  # noqa: ANN401  # a job of submitit's
        """As `Queue.cancel`."""
        if not job.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)
