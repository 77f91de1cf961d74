"""When the disk refuses: what was raised, by whichever library, becomes one line with the folder and what to do."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.errors import StorageError

__all__ = ["discard", "replace", "results_problem", "storage_error", "sync", "writing"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REFUSED = _FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_FREE_IT = "free some space there"
_ADVICE = {
    errno.ENOSPC: _FREE_IT,
    errno.EDQUOT: _FREE_IT,
    errno.EIO: "the disk is failing: copy the folder to another one, and name that with --results",
}
_PROBE_BYTES = 2**20
_PARTS = ("artifacts", "checkpoints", "shards", "work", "scratch", "failed")
_FILES = ("harness.duckdb", ".harness.lock", ".sweep.lock")


def storage_error(error: BaseException, folder: Path, *, inside: bool = False) -> StorageError | None:
    """What the disk has refused, if that is why this was raised, else None.

    Looked for in the whole chain of causes and in groups, also in the text: safetensors, polars, tokenizers and DuckDB
    raise errors of their own, which only name the system's.

    Args:
        error: what was raised.
        folder: where it was being written, named where the error names no file.
        inside: the error comes from writing below `folder` and nowhere else, so that a refusal for want of permission
            is one too; else only a disk that is full counts, wherever it is, and what was refused below `folder`.
    """
    for cause in _causes(error, set()):
        if isinstance(cause, StorageError):
            return cause
        number, place = _refusal(cause, folder, inside=inside)
        if number is not None:
            return StorageError(_line(number, place))
    return None


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the disk refuses within the block is raised as one line about this folder.

    Raises:
        StorageError: it is full, over quota, read-only, not permitted, or failing.
    """
    try:
        yield
    except Exception as error:
        if found := storage_error(error, folder, inside=True) or _full(folder):
            raise found from error
        raise


def sync(path: Path) -> None:
    """Have what was written to this file, or the names that changed in this folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(file: Path, text: str) -> None:
    """Write a file aside, sync it and rename it into its place: whoever finds it finds all of it."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.rename(file)


def discard(file: Path) -> None:
    """Remove a file, if it is there, and what `replace` was writing for it when its process was killed."""
    for one in (file, *file.parent.glob(f".{file.name}.*")):
        one.unlink(missing_ok=True)


def results_problem(results: Path) -> str | None:
    """Why nothing can be kept below this results folder, or None. Makes nothing that was not there."""
    there = results.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        kind = "a link to nothing" if there.is_symlink() else "a file"
        return f"{results}: {there} is {kind}, not a folder; name another place with --results"
    for folder in (there, *(results / part for part in _PARTS)):
        if not os.path.lexists(folder):
            continue
        if not folder.is_dir():
            return f"{folder} is not a folder; move it away, or name another place with --results"
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"x" * 4096)
                probe.flush()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            free = f" ({_free(folder)})" if error.errno in _FULL else ""
            what = _FREE_IT if error.errno in _FULL else "make it writable for you"
            return f"cannot write in {folder}: {reason}{free}; {what}, or name another place with --results"
    for file in (results / name for name in _FILES):
        if file.exists() and not os.access(file, os.W_OK):
            return f"cannot write to {file}; make it writable for you, or name another place with --results"
    return None


def _causes(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for cause in (*members, error.__cause__, error.__context__):
        if cause is not None:
            yield from _causes(cause, seen)


def _refusal(error: BaseException, folder: Path, *, inside: bool) -> tuple[int | None, Path]:
    """The system's error number, None if it is no refusal of the disk's; and the folder it is about."""
    if isinstance(error, OSError) and error.errno is not None:
        file = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
        below = file is not None and file.absolute().is_relative_to(folder.absolute())
        counts = error.errno in (_REFUSED if below or inside else _FULL)
        return error.errno if counts else None, folder if file is None or below else file.parent
    text = str(error)
    for number in _REFUSED if inside else _FULL:
        if os.strerror(number) in text or f"(os error {number})" in text:
            return number, folder
    return None, folder


def _full(folder: Path) -> StorageError | None:
    """Whether the disk is full now: torch says only that it wrote less than it wanted."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x" * _PROBE_BYTES)
            probe.flush()
    except OSError as refused:
        return StorageError(_line(refused.errno, folder)) if refused.errno in _FULL else None
    return None


def _line(number: int, folder: Path) -> str:
    what = _ADVICE.get(number, "make it writable for you")
    return (
        f"cannot write in {folder}: {os.strerror(number)} ({_free(folder)}). Nothing that was finished is lost: "
        f"{what}, and run the same command again"
    )


def _free(folder: Path) -> str:
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return f"{shutil.disk_usage(there).free / 2**20:,.1f} MiB free"
