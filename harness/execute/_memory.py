"""The machine's memory: how much there is, how much is left, and whether the system has killed for want of it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["available_mb", "system_kills", "total_mb"]

_GROUPS = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""In control groups of version 2, of version 1: the limit, what is used, what of that the system would give up."""


def total_mb() -> float:
    """MiB that the processes of this machine or container can have at most."""
    whole = psutil.virtual_memory().total / 2**20
    return min([float(whole), *(limit for limit, _ in _group_limits())])


def available_mb() -> float:
    """MiB that could be taken without anything being killed or swapped."""
    free = psutil.virtual_memory().available / 2**20
    return min([float(free), *(limit - used for limit, used in _group_limits())])


def system_kills() -> int:
    """How many processes the system has killed so far because memory ran out; only a difference means something.

    Those of the machine and those of this process's control groups, added up: some systems tell only one of them.
    """
    files = [folder / name for folder in _groups() for name in ("memory.events", "memory.oom_control")]
    return sum(_field(file, "oom_kill") or 0 for file in (Path("/proc/vmstat"), *files))


def _groups() -> Iterator[Path]:
    """The folders of this process's control groups that say something of memory."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "memory"):
                # Inside a container its own group may be the root of what is mounted there.
                root = _GROUPS / controllers
                yield from dict.fromkeys((root / path.lstrip("/"), root))


def _group_limits() -> Iterator[tuple[float, float]]:
    """Limit of a control group and what of it is used, in MiB."""
    for folder in _groups():
        for limit_name, used_name, reclaimable in _LIMITS:
            with contextlib.suppress(OSError, ValueError):
                limit = int((folder / limit_name).read_text())
                used = int((folder / used_name).read_text()) - (_field(folder / "memory.stat", reclaimable) or 0)
                # Without a limit version 1 has one of 8 exabytes.
                if limit < 2**60:
                    yield limit / 2**20, used / 2**20


def _field(file: Path, name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            if line.split()[:1] == [name]:
                return int(line.split()[1])
    return None
