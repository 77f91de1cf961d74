"""Damaged and missing shards: their rows are written again from the database where that has them, else given up."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from harness._disk import writing
from harness.store._connection import UnreadableError, connect
from harness.store._ingest import recorded_fingerprint
from harness.store._listing import batch_names, is_batch
from harness.store._schema import TABLES
from harness.store._shards import damage_of, polars_schema, write

if TYPE_CHECKING:
    import duckdb
    import polars as pl

__all__ = ["repair_shards"]

_Tables = dict[str, "pl.DataFrame"]


def repair_shards(database: Path, shards: Path) -> list[str]:
    """Set every damaged batch aside, and put in its place what the database has of it; likewise what is missing.

    Returns a line for each batch: what was wrong, and what became of its rows.

    Raises:
        StorageError: the disk refuses; what is done is done, and this may be run again.
    """
    there = [name for name in batch_names(shards) if is_batch(name)]
    wrong = {name: problems for name in there if (problems := damage_of(shards / name))}
    kept = _kept(database, set(there), set(wrong))
    said = []
    for name in sorted({*wrong, *kept}):
        tables = kept.get(name, {})
        # The new batch before the old one goes, at the same place in the order of writing.
        if tables and not (shards / _successor(name)).exists():
            write(shards, tables, _successor(name))
        problem = "; ".join(wrong[name]) if name in wrong else f"{shards / name}: not there"
        rows = sum(frame.height for frame in tables.values())
        fate = f"its {rows} rows were in the database and are written again" if tables else "its rows are lost"
        if name in wrong:
            fate += f"; what is left of it is in {_set_aside(shards, name).name}"
        said.append(f"{problem}: {fate}")
    return said


def _successor(name: str) -> str:
    """The name of the batch that takes this one's place: as early, and the same however often it is asked for."""
    return f"{name.partition('-')[0]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def _set_aside(shards: Path, name: str) -> Path:
    aside = shards / f".damaged-{name}"
    with writing(shards):
        (shards / name).rename(aside)
    return aside


def _kept(database: Path, there: set[str], damaged: set[str]) -> dict[str, _Tables]:
    """What the database has of batches that are damaged or gone; nothing where it cannot be read itself."""
    if not database.is_file():
        return {}
    try:
        with connect(database, write=False) as connection:
            if recorded_fingerprint(connection) is None:
                return {}
            taken = {str(row[0]) for row in connection.execute("SELECT batch FROM raw.ledger").fetchall()}
            gone = {name for name in taken - there if _successor(name) not in there}
            return {name: _rows(connection, name) for name in sorted(taken & damaged | gone)}
    except UnreadableError:
        # It has nothing to give; it is about to be made anew.
        return {}


def _rows(connection: "duckdb.DuckDBPyConnection", batch: str) -> _Tables:
    """The rows of a batch that count, table by table; the database may be of an older version, with fewer columns."""
    import polars as pl

    found: _Tables = {}
    for name, table in TABLES.items():
        columns = {
            str(row[0])
            for row in connection.execute(
                "SELECT column_name FROM duckdb_columns() WHERE schema_name = 'raw' AND table_name = ?", [name]
            ).fetchall()
        }
        if not columns >= {c.name for c in table.columns if not c.nullable}:
            continue
        chosen = ", ".join(f'"{c}"' if c in columns else f'NULL AS "{c}"' for c in table.names)
        query = f"SELECT {chosen} FROM raw.{name} WHERE batch = ? ORDER BY batch_row"
        frame = connection.sql(query, params=[batch]).pl()
        if frame.height:
            found[name] = frame.cast(pl.Schema(polars_schema(table)))
    return found
