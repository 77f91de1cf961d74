"""The processes that a worker has started: who they are, the memory they take, and their end."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

__all__ = ["MARK", "descendants", "kill_marked", "kill_tree", "memory_mb", "shared_fairly_mb", "strays"]

MARK = "HARNESS_WORKER"
"""Environment variable with the worker's own token: what it starts inherits it, wherever it hides afterwards."""

_PROC = Path("/proc")
_ROUNDS = 10
_FOUND_S = 1.0
# Started by Python for itself when first needed, for the life of the process: it computes nothing and ends with it.
_HARMLESS = "multiprocessing.resource_tracker"


def descendants(pid: int) -> list[int]:
    """All that descend from a process, the nearest first."""
    found: list[int] = []
    new = [pid]
    while new:
        new = [child for parent in new for child in _children(parent) if child not in found]
        found += new
    return found


def strays(pid: int) -> list[int]:
    """The descendants that still run, but for Python's own helper."""
    return [child for child in descendants(pid) if _runs(child) and _HARMLESS not in _command(child)]


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory of one process in MiB, now and at its highest; zeros where it is gone.

    Its highest is what it is now on systems that do not tell.
    """
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        if _PROC.is_dir():
            return 0.0, 0.0
        with contextlib.suppress(psutil.Error):
            now = psutil.Process(pid).memory_info().rss / 2**20
            return now, now
        return 0.0, 0.0
    fields = dict(line.split(":", 1) for line in status.splitlines() if line.startswith(("VmRSS", "VmHWM")))
    now, highest = (int(fields[name].split()[0]) / 1024 if name in fields else 0.0 for name in ("VmRSS", "VmHWM"))
    return now, highest


def shared_fairly_mb(pids: Iterable[int]) -> float:
    """Resident memory of several processes together in MiB, what they share counted once where the system tells.

    Slow (it walks their pages): for when it matters.
    """
    total = 0.0
    for pid in pids:
        try:
            lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:
            total += memory_mb(pid)[0]
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return total


def kill_tree(pid: int) -> None:
    """Kill a worker and all that descends from it. Not to be called once it is known to have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # Stopped, it starts nothing new, and adopts what its descendants leave behind.
        os.kill(pid, signal.SIGSTOP)
    killed: set[int] = set()
    for _ in range(_ROUNDS):
        new = set(descendants(pid)) - killed
        if not new:
            break
        _kill(new)
        killed |= new
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill_marked(token: str, session: int) -> None:
    """Kill what a worker that is gone has left: all that carry its token or belong to its session."""
    end = time.monotonic() + _FOUND_S
    while (left := [pid for pid in psutil.pids() if _belongs(pid, token, session)]) and time.monotonic() < end:
        _kill(left)


def _children(pid: int) -> list[int]:
    tasks = _PROC / str(pid) / "task"
    try:
        # One small file a thread; all that psutil could do is read the whole process table.
        return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []


def _runs(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def _command(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def _belongs(pid: int, token: str, session: int) -> bool:
    if pid == os.getpid() or not _ours(pid):
        return False
    with contextlib.suppress(OSError):
        if os.getsid(pid) == session:
            return _runs(pid)
    with contextlib.suppress(OSError):
        return f"{MARK}={token}".encode() in (_PROC / str(pid) / "environ").read_bytes() and _runs(pid)
    return False


def _ours(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return not _PROC.is_dir() or (_PROC / str(pid)).stat().st_uid == os.getuid()
    return False


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
