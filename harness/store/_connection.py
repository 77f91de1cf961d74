"""Opening the database file: briefly, with a bounded wait while another process or thread has it."""

import contextlib
import fcntl
import re
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness._disk import storage_error, writing
from harness.errors import UserError

if TYPE_CHECKING:
    import duckdb

__all__ = ["LOCK_WAIT_SECONDS", "UnreadableError", "connect", "database_problem", "let_writer_in", "writer_lock"]

LOCK_WAIT_SECONDS = 30.0
"""How long an open waits for another process before it gives up. An ingest takes well under a second."""
_LET_IN_SECONDS = 3.0

# DuckDB shares one instance of a file within a process and refuses a second open with another configuration: the
# threads of one process take turns.
_TURN = threading.RLock()

# "block" is in many messages about damage.
_LOCKED = re.compile(r"\block\b", re.IGNORECASE)

_Config = dict[str, str | bool | int | float | list[str]]

_SEALED: _Config = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "lock_configuration": True,
}


class UnreadableError(UserError):
    """The database file cannot be read, by this DuckDB at least; its rows are in the shards."""


@contextlib.contextmanager
def connect(
    path: Path, *, write: bool, sealed: bool = False, wait: float | None = None
) -> "Iterator[duckdb.DuckDBPyConnection]":
    """Open the database for the length of the block.

    Args:
        path: the DuckDB file.
        write: read-write, which excludes every other process; else read-only, which excludes writers only.
        sealed: no access to other files, no extensions, configuration locked.
        wait: seconds to wait for the file, `LOCK_WAIT_SECONDS` if not given.

    Raises:
        UserError: still locked after the wait (with the process that holds it).
        UnreadableError: not a DuckDB file, or one of a newer DuckDB, or one that shows itself damaged within the block.
        StorageError: the disk refuses.
    """
    import duckdb

    # Python variables are never tables here: a query means the same wherever it is run.
    config: _Config = {"python_enable_replacements": False, **(_SEALED if sealed else {})}
    with _TURN:
        connection = _open(path, write, config, LOCK_WAIT_SECONDS if wait is None else wait)
        try:
            yield connection
        except duckdb.Error as error:
            if (problem := storage_error(error, path.parent, inside=True) or database_problem(error, path)) is not None:
                raise problem from error
            raise
        finally:
            # What is committed is in the file or in its log by now; a full disk only keeps the log from being merged.
            with contextlib.suppress(duckdb.Error):
                connection.close()


def database_problem(error: "duckdb.Error", path: Path) -> UnreadableError | None:
    """What to do if DuckDB raised this because the file is damaged, else None."""
    import duckdb

    # Of its own classes only these come from the file; a failed checksum is a plain error with this text.
    broken = isinstance(error, duckdb.InternalException | duckdb.FatalException | duckdb.SerializationException)
    of_the_file = isinstance(error, duckdb.IOException) and path.name in str(error)
    if broken or of_the_file or str(error).startswith("Corrupt database file"):
        return _unreadable(path, error)
    return None


def _unreadable(path: Path, error: Exception) -> UnreadableError:
    reason = str(error).strip().partition("\n")[0].rstrip("!.")
    return UnreadableError(
        f"cannot read the database {path}: {reason}. Nothing is lost, the rows are in the shards beside it: "
        f"`harness db rebuild --results {shlex.quote(str(path.parent))}` makes it anew from them"
    )


def _open(path: Path, write: bool, config: _Config, wait: float) -> "duckdb.DuckDBPyConnection":
    import duckdb

    deadline = time.monotonic() + wait
    pause = 0.01
    while True:
        try:
            return duckdb.connect(str(path), read_only=not write, config=config)
        except duckdb.Error as error:
            if refused := storage_error(error, path.parent, inside=True):
                raise refused from error
            if not isinstance(error, duckdb.IOException) or not _LOCKED.search(str(error)):
                raise _unreadable(path, error) from error
            if time.monotonic() > deadline:
                raise UserError(
                    f"{path} is held by another process after {wait:.0f} s of waiting: {error}. Close it there (a "
                    "DuckDB shell, a notebook) and run this again; nothing is lost, the rows are in the shards"
                ) from error
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


@contextlib.contextmanager
def writer_lock(path: Path, wait: float | None = None) -> Iterator[None]:
    """Be the only writer, across processes, for the length of the block. Freed by the system if the process dies.

    Raises:
        UserError: another writer kept it for the whole wait.
        StorageError: the folder cannot be written.
    """
    wait = LOCK_WAIT_SECONDS if wait is None else wait
    deadline = time.monotonic() + wait
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"another process has been writing to {path.parent} for {wait:.0f} s; wait for it to end and "
                        "run this again"
                    ) from error
            time.sleep(0.02)
        yield


def let_writer_in(path: Path) -> None:
    """Wait while a writer is at work or waits for the database, for some seconds at most.

    Who reads in a row gives the database up for an instant only, which a writer that looks now and then would miss.

    Args:
        path: as for `writer_lock`.
    """
    deadline = time.monotonic() + _LET_IN_SECONDS
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while time.monotonic() < deadline:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            time.sleep(0.01)
