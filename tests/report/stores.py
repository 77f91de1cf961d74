"""Stores in the states a report must cope with, made from the scenario's rows."""

import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from harness.store import TABLES, Store

Change = Callable[[pl.DataFrame], pl.DataFrame]


def derive(source: Store, results: Path, changes: Mapping[str, Change]) -> Store:
    """A new store with the rows of another, some tables changed; a change that returns no rows leaves the table out."""
    made = source.database.stat()
    rows = _rows(source.database, made.st_ino, made.st_mtime_ns)
    frames = {name: changes.get(name, lambda f: f)(frame) for name, frame in rows.items()}
    store = Store(results)
    results.mkdir(parents=True, exist_ok=True)
    # As an ingest of nothing leaves it: to make the tables and views takes half the time of all this.
    store.database.write_bytes(_empty())
    store.append_many({name: frame for name, frame in frames.items() if not frame.is_empty()})
    store.ingest()
    return store


@functools.cache
def _rows(database: Path, *_state: int) -> dict[str, pl.DataFrame]:
    """Every table, read once: most tests derive from the one scenario."""
    store = Store(database.parent)
    frames = {}
    with store.reading():
        for name, table in TABLES.items():
            columns = ", ".join(f'"{c}"' for c in table.names)
            frames[name] = store.query(f"SELECT {columns} FROM raw.{name} ORDER BY batch, batch_row")
    return frames


@functools.cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.ingest()
        return store.database.read_bytes()


def keep(condition: pl.Expr) -> Change:
    """Only the rows that meet the condition."""
    return lambda frame: frame.filter(condition)


def nothing(frame: pl.DataFrame) -> pl.DataFrame:
    """No rows."""
    return frame.clear()
