"""The lock on a results folder: one command at a time computes, removes or rebuilds there, and says who it is.

The lock is `flock` on `.sweep.lock`: the system frees it when the process ends, however that is, so that a file left by
a dead process locks nobody out. What stands in the file is for the reader of the refusal only, and decides nothing.

On NFS, Linux (2.6.12 and later) turns flock into a byte-range lock that the server keeps, and the lock holds between
machines. It does not where the folder is mounted with `nolock` or `local_lock=flock` (or `all`): then two machines do
not see each other. After a machine has died, the server keeps its lock until the lease ends (about 90 s on NFSv4).
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from harness._disk import writing
from harness._secrets import redacted
from harness.errors import UserError

__all__ = ["only_one"]

_LOCK = ".sweep.lock"
_WRITES_WITHIN_S = 1.0
"""Between taking the lock and having written who one is."""


@contextlib.contextmanager
def only_one(results: Path, doing: str) -> Iterator[None]:
    """Be the only command that works in this results folder, for the length of the block.

    Args:
        results: the folder; it is made where it is not there.
        doing: what is done, for whoever is refused meanwhile: `the sweep tiny-1f3a…`.

    Raises:
        UserError: another process has the lock (it is named, with what to do), or the file system knows no locks.
        StorageError: the folder cannot be written in.
    """
    with writing(results):
        results.mkdir(parents=True, exist_ok=True)
        file = (results / _LOCK).open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(_refusal(results, _holder(file))) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise UserError(
                f"{results}: its file system has no locks ({os.strerror(error.errno)}), so two commands could compute "
                "there at once; name a folder on another one with --results"
            ) from error
        with writing(results):
            _write(file, json.dumps(_self(doing)))
        try:
            yield
        finally:
            # What could not be removed of it (a full disk) is only words.
            with contextlib.suppress(OSError):
                _write(file, "")


def _self(doing: str) -> dict[str, object]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "doing": doing,
        "command": redacted(shlex.join(sys.argv)),
        "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _write(file: TextIO, text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _holder(file: TextIO) -> dict[str, object] | None:
    """Who has the lock; None where it does not say."""
    deadline = time.monotonic() + _WRITES_WITHIN_S
    while True:
        file.seek(0)
        with contextlib.suppress(ValueError):
            found = json.loads(file.read())
            if isinstance(found, dict):
                return found
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)


def _refusal(results: Path, holder: dict[str, object] | None) -> str:
    wait = "Wait for it to end, or name another folder with --results"
    if holder is None:
        return f"another process is at work in {results} (it holds {results / _LOCK}). {wait}"
    here = holder.get("host") == socket.gethostname()
    pid, host = holder.get("pid"), holder.get("host")
    stop = f"kill {pid}" if here else f"ssh {host} kill {pid}"
    return (
        f"{holder.get('doing')} is at work in {results}: process {pid} on {host}, since {holder.get('since')} "
        f"({holder.get('command')}). {wait}; to stop it (what is finished is kept): {stop}"
    )
