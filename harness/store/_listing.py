"""Which batches a folder holds."""

import os
import re
import time
from pathlib import Path

__all__ = ["BATCH", "Listing", "batch_names", "is_batch"]

BATCH = re.compile(r"(\d{20})-[0-9a-f]{12}")
"""How the store names a batch: its time in ns, and a random end."""

_SETTLED_SECONDS = 1.0


def is_batch(name: str) -> bool:
    """Whether an entry is named as the store names a batch."""
    return BATCH.fullmatch(name) is not None


def batch_names(folder: Path) -> list[str]:
    """The visible entries of the folder of batches, oldest first; none where the folder is not there yet."""
    if not folder.is_dir():
        return []
    # Not iterdir: with 60,000 batches the objects it makes take longer than all the rest of an ingest.
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208  # as said


class Listing:
    """`batch_names` of one folder, read again only when the folder has changed: 80,000 names take a tenth of a second.

    A name that comes in the same tick of the system's clock as the change before it leaves the folder's time as it was.
    So the names are kept only once that time has stood for a second.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read yet."""
        self._folder = folder
        self._names: list[str] = []
        self._time: tuple[int, int] | None = None
        self._since = 0.0
        self._kept = False

    def names(self) -> list[str]:
        """The names, oldest first."""
        changed, now = self._changed(), time.monotonic()
        if changed is None or changed != self._time:
            self._time, self._since, self._kept = changed, now, False
        if not self._kept:
            self._names = batch_names(self._folder)
            self._kept = changed is not None and now - self._since >= _SETTLED_SECONDS
        return self._names

    def _changed(self) -> tuple[int, int] | None:
        try:
            found = self._folder.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns
