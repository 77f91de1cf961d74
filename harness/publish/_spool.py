"""What waits on disk, so that no export has to fit into memory: entries' samples, and downloads before they go out."""

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Blob", "Samples", "Spool", "Spooled", "facts_of"]

_SCORES = ("task", "metric", "seed", "document", "score")


class Spool:
    """A temporary folder; it goes when nothing of it is referred to any more."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="posttrain-harness-"))
        self._files = 0
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def path(self) -> Path:
        """Where another file may be put."""
        self._files += 1
        return self._folder / str(self._files)

    def keep(self, frame: "pl.DataFrame") -> "Samples":
        """The samples of an entry, put aside."""
        path = self.path()
        frame.write_parquet(path)
        return Samples(path, self)

    def write(self, parts: Iterable[bytes]) -> "Spooled":
        """A file of these parts, one after the other."""
        path, found, size = self.path(), hashlib.sha256(), 0
        with path.open("wb") as file:
            for part in parts:
                file.write(part)
                found.update(part)
                size += len(part)
        return Spooled(path, found.hexdigest(), size, self)

    def have(self, path: Path) -> "Spooled":
        """A file that was written at one of its paths."""
        with path.open("rb") as file:
            return Spooled(path, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size, self)


@dataclass(frozen=True)
class Samples:
    """The samples of one entry, in the columns of `SAMPLES`: read again each time."""

    path: Path
    _spool: Spool

    def frame(self) -> "pl.DataFrame":
        """All columns."""
        import polars as pl

        return pl.read_parquet(self.path)

    def scores(self) -> "pl.DataFrame":
        """Without the texts."""
        import polars as pl

        return pl.read_parquet(self.path, columns=list(_SCORES))


@dataclass(frozen=True)
class Spooled:
    """A file that waits, with its sha256 and its size in bytes."""

    path: Path
    sha256: str
    size: int
    _spool: Spool


Blob = bytes | Spooled
"""What a file of an export holds."""


def facts_of(blob: Blob) -> tuple[str, int]:
    """sha256 and size."""
    if isinstance(blob, Spooled):
        return blob.sha256, blob.size
    return hashlib.sha256(blob).hexdigest(), len(blob)
