"""Stores in the states a report must cope with, made from the scenario's rows."""

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl

from harness.store import TABLES, Store

Change = Callable[[pl.DataFrame], pl.DataFrame]


def derive(source: Store, results: Path, changes: Mapping[str, Change]) -> Store:
    """A new store with the rows of another, some tables changed; a change that returns no rows leaves the table out."""
    frames = {}
    for name, table in TABLES.items():
        columns = ", ".join(f'"{c}"' for c in table.names)
        frame = source.query(f"SELECT {columns} FROM raw.{name} ORDER BY batch, batch_row")
        frame = frame.with_columns(
            pl.col(c.name).dt.replace_time_zone("UTC") for c in table.columns if c.kind == "time"
        )
        frames[name] = changes.get(name, lambda f: f)(frame)
    store = Store(results)
    store.append_many({n: f.to_dicts() for n, f in frames.items() if not f.is_empty()})
    store.ingest()
    return store


def keep(condition: pl.Expr) -> Change:
    """Only the rows that meet the condition."""
    return lambda frame: frame.filter(condition)


def nothing(frame: pl.DataFrame) -> pl.DataFrame:
    """No rows."""
    return frame.clear()
