"""What every command needs: its exit codes, a line on standard error, the store up to date."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness._printable import printable
from harness._secrets import redacted
from harness.errors import StorageError

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["BAD_INPUT", "DONE", "FAILED", "INTERRUPTED", "open_store", "say"]

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def say(text: str) -> None:
    """A line on standard error: what came from elsewhere may hold secrets, or what a terminal would obey."""
    print(printable(redacted(f"harness: {text}")), file=sys.stderr)


def open_store(results: Path) -> "Store":
    """The store, up to date with its shards; nothing is made where nothing was ever run."""
    from harness.store import Store

    store = Store(results)
    if store.shards.is_dir():
        try:
            store.ingest()
        except StorageError as error:
            # What is in the database can be read all the same; a sweep meets the same disk and says so.
            if not store.ready():
                raise
            say(f"the newest rows are not shown: {error}")
    return store
