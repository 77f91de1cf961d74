"""What a worker and its libraries print: a file that stays small, and its end as text for a result."""

import contextlib
import re
from pathlib import Path
from typing import BinaryIO

from harness._printable import printable
from harness._secrets import redacted

__all__ = ["WorkerLog"]

_LARGEST = 8 * 2**20
_KEPT = 2**18
_TAIL = 4000
_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles and links
    r"|\x1b[@-_]"
)


class WorkerLog:
    """The log file of one worker, which appends to it while this side cuts it where it grows too large."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = 0

    def open(self) -> BinaryIO:
        """For the worker: what is written goes to the end, also after the file was cut."""
        return self.path.open("ab")

    def begin(self) -> None:
        """From here on it is about another spec."""
        self._began = self._size()

    def bound(self) -> None:
        """Cut the file where it is beyond 8 MiB, keeping the last 256 KiB. What is written meanwhile may be lost."""
        size = self._size()
        if size <= _LARGEST:
            return
        # On a disk that is full the cut makes room, and only its note is lost.
        with contextlib.suppress(OSError), self.path.open("r+b") as file:
            file.seek(-_KEPT, 2)
            kept = file.read().partition(b"\n")[2]
            file.truncate(0)
            note = f"[{(size - len(kept)) / 2**20:.0f} MiB of earlier output were dropped here: a log holds 8 MiB]\n"
            with self.open() as end:
                end.write(note.encode() + kept)
        self._began = 0

    def tail(self) -> str:
        """The last 4000 characters about the spec at hand, without secrets and what drives a terminal."""
        size = self._size()
        start = max(size - 4 * _TAIL, self._began if self._began <= size else 0)
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                text = file.read(size - start).decode("utf-8", errors="replace")
        except OSError:
            return ""
        lines = (line.rstrip("\r").rpartition("\r")[2] for line in _SEQUENCES.sub("", text).split("\n"))
        return printable(redacted("\n".join(lines)))[-_TAIL:]

    def close(self) -> None:
        """An empty log says nothing to anyone."""
        if not self._size():
            self.path.unlink(missing_ok=True)

    def _size(self) -> int:
        with contextlib.suppress(OSError):
            return self.path.stat().st_size
        return 0
