"""Opening the database file: briefly, with a bounded wait while another process or thread has it."""

import contextlib
import fcntl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    import duckdb

__all__ = ["LOCK_WAIT_SECONDS", "connect", "writer_lock"]

LOCK_WAIT_SECONDS = 30.0
"""How long an open waits for another process before it gives up. An ingest takes well under a second."""

# DuckDB shares one instance of a file within a process and refuses a second open with another configuration: the
# threads of one process take turns.
_TURN = threading.RLock()

_Config = dict[str, str | bool | int | float | list[str]]

_SEALED: _Config = {
    "enable_external_access": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "lock_configuration": True,
}


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
        UserError: still locked after the wait (with the process that holds it), or not a DuckDB file.
    """
    # Python variables are never tables here: a query means the same wherever it is run.
    config: _Config = {"python_enable_replacements": False, **(_SEALED if sealed else {})}
    with _TURN:
        connection = _open(path, write, config, LOCK_WAIT_SECONDS if wait is None else wait)
        try:
            yield connection
        finally:
            connection.close()


def _open(path: Path, write: bool, config: _Config, wait: float) -> "duckdb.DuckDBPyConnection":
    import duckdb

    deadline = time.monotonic() + wait
    pause = 0.01
    while True:
        try:
            return duckdb.connect(str(path), read_only=not write, config=config)
        except duckdb.IOException as error:
            if "lock" not in str(error).lower():
                raise UserError(
                    f"cannot open {path}: {error}. It can be built again from the shards beside it: remove it, and "
                    "run `harness sweep` again"
                ) from error
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
    """
    wait = LOCK_WAIT_SECONDS if wait is None else wait
    deadline = time.monotonic() + wait
    with path.open("a") as file:
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
