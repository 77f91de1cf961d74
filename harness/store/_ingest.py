"""From shards to the database: each batch once, whole, and to the same content whatever the order of arrival."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.store._schema import TABLES, Kind, Table
from harness.store._shards import MANIFEST, damage_of, polars_schema, read_manifest
from harness.store._views import VIEWS, comments

if TYPE_CHECKING:
    import duckdb

__all__ = ["create", "damage", "fingerprint", "ingest", "recorded_fingerprint"]

_TYPES: dict[Kind, str] = {
    "text": "VARCHAR",
    "json": "JSON",
    "int": "BIGINT",
    "float": "DOUBLE",
    "bool": "BOOLEAN",
    "time": "TIMESTAMP",
}
_GROUP = 200
"""Batches taken in one transaction: a rebuild is fast, and one bad shard costs little."""


def _statements() -> list[str]:
    made = [
        "CREATE SCHEMA raw",
        "CREATE TABLE raw.schema_version (fingerprint VARCHAR)",
        # Which batches are in; a batch and its row here are written in one transaction.
        "CREATE TABLE raw.ledger (batch VARCHAR)",
        # Which batch's rows count for a content key, per table.
        'CREATE TABLE raw.owners (table_name VARCHAR, "key" VARCHAR, batch VARCHAR)',
    ]
    for table in TABLES.values():
        columns = ", ".join(f'"{c.name}" {_TYPES[c.kind]}{"" if c.nullable else " NOT NULL"}' for c in table.columns)
        # No primary key: on a million samples it costs twice the time and eight times the space.
        made.append(f"CREATE TABLE raw.{table.name} ({columns}, batch VARCHAR NOT NULL, batch_row BIGINT NOT NULL)")
    for view in VIEWS.values():
        made += [f"CREATE VIEW main.{view.name} AS {view.sql}", *comments(view)]
    return made


def fingerprint() -> str:
    """Identifies the tables and views this code makes (16 hex characters)."""
    return hashlib.sha256("\n".join(_statements()).encode()).hexdigest()[:16]


def create(connection: "duckdb.DuckDBPyConnection") -> None:
    """Make the tables and views in an empty database, in one transaction."""
    connection.execute("BEGIN")
    for statement in _statements():
        connection.execute(statement)
    connection.execute("INSERT INTO raw.schema_version VALUES (?)", [fingerprint()])
    connection.execute("COMMIT")


def recorded_fingerprint(connection: "duckdb.DuckDBPyConnection") -> str | None:
    """The fingerprint of the code that made this database; None for an empty or foreign one."""
    # Fetched to the end: DuckDB refuses the next query while one has rows left.
    known = connection.execute(
        "SELECT 1 FROM duckdb_tables() WHERE schema_name = 'raw' AND table_name = 'schema_version'"
    ).fetchall()
    rows = connection.execute("SELECT fingerprint FROM raw.schema_version").fetchall() if known else []
    return str(rows[0][0]) if rows else None


def ingest(connection: "duckdb.DuckDBPyConnection", shards: Path, batches: list[str]) -> tuple[int, list[str]]:
    """Take in the batches the ledger does not have.

    Returns:
        The number of batches taken in, and what is wrong with the others, each naming its file.
    """
    done = {row[0] for row in connection.execute("SELECT batch FROM raw.ledger").fetchall()}
    problems: list[str] = []
    sound: list[str] = []
    for batch in batches:
        if batch in done:
            continue
        if found := _problems(shards / batch):
            problems += found
        else:
            sound.append(batch)
    for start in range(0, len(sound), _GROUP):
        _take(connection, shards, sound[start : start + _GROUP])
    return len(sound), problems


def _problems(batch: Path) -> list[str]:
    """What is wrong with a batch: files missing, foreign or changed since they were written, or of another schema."""
    import polars as pl

    if problems := damage_of(batch):
        return problems
    manifest = read_manifest(batch)
    names = {f.name for f in batch.iterdir()} - {MANIFEST}
    problems += [f"{batch / n}: not written by the store (not in {MANIFEST})" for n in sorted(names - manifest.keys())]
    for name in sorted(manifest):
        file = batch / name
        if file.stem not in TABLES:
            problems.append(f"{file}: the store has no such table; it was written by another version")
        else:
            found = dict(pl.read_parquet_schema(file))
            problems += [f"{file}: {p}" for p in _schema_problems(TABLES[file.stem], found)]
    return problems


def _schema_problems(table: Table, found: "Mapping[str, object]") -> list[str]:
    wanted = polars_schema(table)
    problems = [f"unknown column {name}" for name in found if name not in wanted]
    for column in table.columns:
        if column.name in found:
            if found[column.name] != wanted[column.name]:
                problems.append(f"column {column.name} is {found[column.name]}, expected {wanted[column.name]}")
        elif not column.nullable:
            # A nullable column added later is absent from older shards, and NULL there.
            problems.append(f"column {column.name} is missing")
    return problems


def _take(connection: "duckdb.DuckDBPyConnection", shards: Path, group: list[str]) -> None:
    """One transaction: the rows of these batches and their rows in the ledger, or nothing."""
    import duckdb

    connection.execute("BEGIN")
    try:
        for table in TABLES.values():
            if files := [f for batch in group if (f := shards / batch / f"{table.name}.parquet").exists()]:
                _insert(connection, table, files)
        connection.executemany("INSERT INTO raw.ledger VALUES (?)", [[batch] for batch in group])
        connection.execute("COMMIT")
    except BaseException:
        # A commit that failed has ended the transaction already, and a fatal error the connection.
        with contextlib.suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise


def _insert(connection: "duckdb.DuckDBPyConnection", table: Table, files: list[Path]) -> None:
    """Insert the rows of these shards; for an owned table, only those of each key's earliest batch."""
    source = "read_parquet($files, union_by_name = true, filename = true, file_row_number = true)"
    batch = "parse_filename(parse_dirpath(filename), false)"
    present = _present(files)
    columns = ", ".join(
        f'incoming."{c.name}"' if c.name in present else f"NULL::{_TYPES[c.kind]}" for c in table.columns
    )
    parameters = {"files": [str(f) for f in files]}
    if table.owner is None:
        connection.execute(
            f"INSERT INTO raw.{table.name} SELECT {columns}, {batch}, file_row_number FROM {source} incoming",
            parameters,
        )
        return
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE claims AS
        SELECT incoming.key, incoming.batch, o.batch AS previous
        FROM (SELECT "{table.owner}" AS key, min({batch}) AS batch FROM {source} GROUP BY 1) incoming
        LEFT JOIN raw.owners o ON o.table_name = '{table.name}' AND o.key = incoming.key
        WHERE o.batch IS NULL OR incoming.batch < o.batch
        """,
        parameters,
    )
    for target, column, extra in (
        (f"raw.{table.name}", table.owner, ""),
        ("raw.owners", "key", f"AND table_name = '{table.name}'"),
    ):
        connection.execute(
            f'DELETE FROM {target} WHERE "{column}" IN (SELECT key FROM claims WHERE previous IS NOT NULL) {extra}'
        )
    connection.execute(f"INSERT INTO raw.owners SELECT '{table.name}', key, batch FROM claims")
    connection.execute(
        f"""
        INSERT INTO raw.{table.name} SELECT {columns}, {batch}, file_row_number
        FROM {source} incoming JOIN claims ON claims.key = incoming."{table.owner}" AND claims.batch = {batch}
        """,
        parameters,
    )
    connection.execute("DROP TABLE claims")


def _present(files: list[Path]) -> set[str]:
    import polars as pl

    return {name for file in files for name in pl.read_parquet_schema(file)}


def damage(problems: list[str], others: str = "everything else was ingested") -> UserError:
    """The error for shards that could not be taken in; `others` says what became of the rest."""
    return UserError(
        f"{len(problems)} shard problem(s); {others}:\n  " + "\n  ".join(problems) + "\n"
        "Restore the named files from a copy and run this again; or let `harness db rebuild` set what is damaged aside "
        "(rows that the database has are kept) and the sweep compute again what is lost. Move what the store did not "
        "write, or another version wrote, out of the shards folder"
    )
