"""One worker process, seen from the coordinator: its pipes, its log, its devices and its end."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import Any, Self

from harness.execute._logs import WorkerLog
from harness.execute._tree import MARK, kill_marked, kill_tree, strays

__all__ = ["Worker"]

_LINE_LIMIT = 2**20
_LOOK_S = 0.25
_POLL_S = 0.01
_DIES_WITHIN_S = 30.0


class Worker:
    """A process that runs one spec after another, with all that these start."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        log: WorkerLog,
        token: str,
        visible: str | None,
        held: tuple[str, ...],
    ) -> None:
        self._process, self._token = process, token
        self.log, self.visible, self.held = log, visible, held
        self.unreadable = False
        """Whether it was killed because its answers could not be read."""

    @classmethod
    async def start(cls, results: Path, log: Path, visible: str | None, held: tuple[str, ...]) -> Self:
        """Start one that sees these GPUs (CUDA_VISIBLE_DEVICES; None: those that this process sees)."""
        token = uuid.uuid4().hex
        kept = WorkerLog(log)
        with kept.open() as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "harness.execute.worker",
                str(results),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env=_environment(token, visible),
                limit=_LINE_LIMIT,
                # Ctrl-C is the sweep's to handle: workers end when their standard input closes.
                start_new_session=True,
            )
        return cls(process, kept, token, visible, held)

    @property
    def pid(self) -> int:
        """Its number; another process's once it has ended."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return self._process.returncode is None

    @property
    def how_it_ended(self) -> str:
        """Its exit code or the signal that ended it, in words."""
        code = self._process.returncode
        if self.unreadable:
            return "it answered what is no answer"
        if code is None:
            return "it does not react to SIGKILL"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    @property
    def killed(self) -> bool:
        """Whether a SIGKILL has ended it, whoever sent it."""
        return self._process.returncode == -signal.SIGKILL and not self.unreadable

    def strays(self) -> list[int]:
        """What it has started that still runs."""
        return strays(self.pid) if self.alive else []

    async def ask(self, spec: Path, result: Path) -> None:
        """Have it run the spec in this file and leave its result in that one; `read` finds out whether it is dead."""
        if self._process.stdin is None:
            raise RuntimeError("a worker without pipes")
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps({"spec": str(spec), "result": str(result)}).encode() + b"\n")
            await self._process.stdin.drain()

    async def read(self) -> dict[str, Any] | None:
        """The next message; None once it has ended, though something that it started may still hold its pipes."""
        if self._process.stdout is None:
            raise RuntimeError("a worker without pipes")
        line = asyncio.ensure_future(self._process.stdout.readline())
        try:
            dead = False
            while not line.done() and not dead:
                # What it wrote before it died may still be in the pipe: one more look.
                dead = not self.alive
                await asyncio.wait({line}, timeout=_LOOK_S)
            if not line.done() or not line.result():
                return None
            message = json.loads(line.result())
            if isinstance(message, dict):
                return message
        except ValueError:
            # A line beyond the limit, or no JSON.
            pass
        finally:
            line.cancel()
        self.reject()
        return None

    def reject(self) -> None:
        """What it answers cannot be read, so that nothing it does can be known."""
        self.unreadable = True
        self.kill()

    def show_stacks(self) -> None:
        """Have it write where its threads are into its log."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """Kill it and all that it has started."""
        if self.alive:
            kill_tree(self.pid)

    async def end(self) -> bool:
        """Kill it and all that it has started; whether it is gone: one that waits for a device may not be."""
        self.kill()
        end = asyncio.get_running_loop().time() + _DIES_WITHIN_S
        try:
            # Not `wait`: in some versions of Python it also waits for whoever holds the pipes.
            while self.alive and asyncio.get_running_loop().time() < end:
                await asyncio.sleep(_POLL_S)
        finally:
            kill_marked(self._token, self.pid)
            self._close_pipes()
            self.log.close()
        return not self.alive

    def _close_pipes(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        # Of a pipe that something else still holds, this end would stay open.
        transport = getattr(self._process, "_transport", None)
        if transport is not None and not self.alive:
            transport.close()


def _environment(token: str, visible: str | None) -> dict[str, str]:
    return {
        **os.environ,
        MARK: token,
        **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "PYTHONUNBUFFERED": "1",
        # A segmentation fault leaves its place in the log.
        "PYTHONFAULTHANDLER": "1",
        # glibc gives freed activations back to the system and faults them in again at the next step: 5 to 10 % of a
        # training step on a CPU. The user's own setting goes first.
        "MALLOC_TRIM_THRESHOLD_": os.environ.get("MALLOC_TRIM_THRESHOLD_", str(2**30)),
        "MALLOC_TOP_PAD_": os.environ.get("MALLOC_TOP_PAD_", str(2**26)),
        "MALLOC_MMAP_THRESHOLD_": os.environ.get("MALLOC_MMAP_THRESHOLD_", str(2**32)),
    }
