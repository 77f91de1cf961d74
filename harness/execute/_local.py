"""Local worker processes: each runs one spec after another; a dead one is replaced and its spec retried once."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

from harness._secrets import redacted
from harness.execute._places import Places
from harness.execute._spec import MeasureSpec, Progress, Result, StageSpec

__all__ = ["LocalExecutor"]

_ATTEMPTS = 2
_LINE_LIMIT = 2**20

Report = Callable[[Progress], None]
Spec = StageSpec | MeasureSpec


class LocalExecutor:
    """Up to `workers` processes on this machine, one torch thread each unless a spec says otherwise."""

    def __init__(self, results: Path, workers: int) -> None:
        self._results = results
        self._folder = results / "work" / uuid.uuid4().hex[:8]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._places = Places(workers)
        self._closed = False
        self._idle: list[asyncio.subprocess.Process] = []
        self._all: set[asyncio.subprocess.Process] = set()

    @property
    def log_file(self) -> Path:
        """Where the workers' standard error goes."""
        return self._folder / "workers.log"

    async def run(self, spec: Spec, report: Report) -> Result:
        """Run one spec in a worker; a crash of the process is retried once, then returned as `crash`."""
        alone = isinstance(spec, MeasureSpec) and spec.alone
        async with self._places.hold(self._places.total if alone else 1, spec.urgency):
            code = 0
            for _ in range(_ATTEMPTS):
                if self._closed:
                    raise asyncio.CancelledError
                code, result = await self._attempt(spec, report)
                if result is not None:
                    return result
            return _crashed(spec, code, self.log_file)

    async def _attempt(self, spec: Spec, report: Report) -> tuple[int, Result | None]:
        name = f"{spec.kind}-{spec.key}-{uuid.uuid4().hex[:6]}"
        spec_file, result_file = self._folder / f"{name}.json", self._folder / f"{name}.result"
        spec_file.write_text(spec.model_dump_json(), encoding="utf-8")
        process = self._idle.pop() if self._idle else await self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a worker without pipes")
        with contextlib.suppress(ConnectionError):
            request = json.dumps({"spec": str(spec_file), "result": str(result_file)})
            process.stdin.write(request.encode() + b"\n")
            await process.stdin.drain()
        while line := await process.stdout.readline():
            message = json.loads(line)
            if "done" in message:
                break
            report(Progress.model_validate(message))
        if not result_file.is_file():
            code = await process.wait()
            self._all.discard(process)
            return code, None
        self._idle.append(process)
        result = Result.model_validate_json(result_file.read_bytes())
        spec_file.unlink()
        result_file.unlink()
        return 0, result

    async def _start(self) -> asyncio.subprocess.Process:
        with self.log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "harness.execute.worker",
                str(self._results),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=_worker_environment(),
                limit=_LINE_LIMIT,
                # Ctrl-C is the sweep's to handle: workers end when their standard input closes.
                start_new_session=True,
            )
        self._all.add(process)
        return process

    async def close(self) -> None:
        """End the workers, also those at work."""
        self._closed = True
        for process in self._all:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
        await asyncio.gather(*(p.wait() for p in self._all))
        self._all.clear()
        self._idle.clear()
        if self.log_file.exists() and not self.log_file.stat().st_size:
            self.log_file.unlink()
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _worker_environment() -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONUNBUFFERED": "1",
        # glibc gives freed activations back to the system and faults them in again at the next step: 5 to 10 % of a
        # training step on a CPU. The user's own setting goes first.
        "MALLOC_TRIM_THRESHOLD_": os.environ.get("MALLOC_TRIM_THRESHOLD_", str(2**30)),
        "MALLOC_TOP_PAD_": os.environ.get("MALLOC_TOP_PAD_", str(2**26)),
        "MALLOC_MMAP_THRESHOLD_": os.environ.get("MALLOC_MMAP_THRESHOLD_", str(2**32)),
    }


def _crashed(spec: Spec, code: int, log: Path) -> Result:
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    memory = code == -signal.SIGKILL
    reason = "; the system kills a process that takes too much memory" if memory else ""
    tail = redacted(log.read_text(encoding="utf-8", errors="replace")[-16_000:])[-4000:] if log.is_file() else ""
    return Result(
        key=spec.key,
        state="infeasible" if memory else "crash",
        message=f"the worker died twice ({how}){reason}",
        traceback=tail,
    )
