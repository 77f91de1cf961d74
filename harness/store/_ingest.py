"""From shards to the database: each batch once, whole, and to the same content whatever the order of arrival."""

import contextlib
import functools
import gc
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.store._groups import Batch, batch_problems, groups, read
from harness.store._schema import TABLES, Column, Kind, Table
from harness.store._views import VIEWS, comments

if TYPE_CHECKING:
    import duckdb
    import polars as pl

__all__ = ["alone", "create", "damage", "fingerprint", "ingest", "recorded_fingerprint"]

_TYPES: dict[Kind, str] = {
    "text": "VARCHAR",
    "json": "JSON",
    "int": "BIGINT",
    "float": "DOUBLE",
    "bool": "BOOLEAN",
    "time": "TIMESTAMP",
}
_FEW = 100
"""Batches for which a thread to read them ahead is not worth its start."""


def _tables() -> list[str]:
    made = [
        "CREATE SCHEMA raw",
        # Which batches are in; a batch and its row here are written in one transaction.
        "CREATE TABLE raw.ledger (batch VARCHAR)",
        # Which batch's rows count for a content key, per table.
        'CREATE TABLE raw.owners (table_name VARCHAR, "key" VARCHAR, batch VARCHAR)',
    ]
    for table in TABLES.values():
        columns = ", ".join(map(_column, table.columns))
        # No primary key: on a million samples it costs twice the time and eight times the space.
        made.append(f"CREATE TABLE raw.{table.name} ({columns}, batch VARCHAR NOT NULL, batch_row BIGINT NOT NULL)")
    return made


def _statements() -> list[str]:
    made = [*_tables(), "CREATE TABLE raw.schema_version (fingerprint VARCHAR)"]
    for view in VIEWS.values():
        made += [f"CREATE VIEW main.{view.name} AS {view.sql}", *comments(view)]
    return made


def _column(column: Column) -> str:
    # DuckDB's own choice for texts, a dictionary with FSST, takes twice as long and twice the space where most differ.
    how = " USING COMPRESSION zstd" if column.varied else ""
    return f'"{column.name}" {_TYPES[column.kind]}{how}{"" if column.nullable else " NOT NULL"}'


@functools.cache
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


@contextlib.contextmanager
def alone(
    connection: "duckdb.DuckDBPyConnection", shards: Path, batches: Sequence[str]
) -> Iterator["duckdb.DuckDBPyConnection"]:
    """Within the block, the schema `raw` of a database in memory, with the rows of these batches and no others.

    Raises:
        UserError: damaged or foreign shards, each named.
    """
    for statement in _tables():
        connection.execute(statement)
    try:
        _, problems = ingest(connection, shards, batches)
        if problems:
            raise damage(problems, "nothing was ingested")
        yield connection
    finally:
        connection.execute("DROP SCHEMA raw CASCADE")


def recorded_fingerprint(connection: "duckdb.DuckDBPyConnection") -> str | None:
    """The fingerprint of the code that made this database; None for an empty or foreign one."""
    import duckdb

    try:
        # Fetched to the end: DuckDB refuses the next query while one has rows left.
        rows = connection.execute("SELECT fingerprint FROM raw.schema_version").fetchall()
    except (duckdb.CatalogException, duckdb.BinderException):
        return None
    return str(rows[0][0]) if rows else None


def ingest(connection: "duckdb.DuckDBPyConnection", shards: Path, batches: Sequence[str]) -> tuple[int, list[str]]:
    """Take in those of these batches that the ledger does not have.

    Returns:
        The number of batches taken in, and what is wrong with the others, each naming its file.
    """
    known = connection.execute("SELECT batch FROM raw.ledger WHERE batch IN (SELECT unnest(?))", [list(batches)])
    done = {row[0] for row in known.fetchall()}
    problems: list[str] = []
    taken = 0
    # What else it could keep in memory is the machine's, and others work there.
    connection.execute("SET memory_limit = '1GB'")
    for names, frames in _read_ahead(shards, [batch for batch in batches if batch not in done], problems):
        _take(connection, names, frames)
        taken += len(names)
    return taken, problems


_Group = tuple[list[str], "dict[str, pl.DataFrame]"]


def _read_ahead(shards: Path, batches: Sequence[str], problems: list[str]) -> Iterator[_Group]:
    """Groups of sound batches with their rows by table; one is read while another is inserted."""
    source = groups(shards, batches, problems)

    def load() -> _Group | None:
        group = next(source, None)
        return None if group is None else _read(shards, group, problems)

    if len(batches) < _FEW:
        while (found := load()) is not None:
            yield found
        return
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(load)
        while (found := coming.result()) is not None:
            coming = thread.submit(load)
            yield found


def _read(shards: Path, group: list[Batch], problems: list[str]) -> _Group:
    try:
        frames = read(shards, group)
    except ValueError:
        # Only now each by itself: it takes as long as all the rest.
        wrong = {batch.name: found for batch in group if (found := batch_problems(shards / batch.name))}
        if not wrong:
            raise
        problems += [line for found in wrong.values() for line in found]
        group = [batch for batch in group if batch.name not in wrong]
        frames = read(shards, group)
    return [batch.name for batch in group], frames


def _take(connection: "duckdb.DuckDBPyConnection", names: list[str], frames: "dict[str, pl.DataFrame]") -> None:
    """One transaction: the rows of these batches and their rows in the ledger, or nothing."""
    import duckdb

    connection.execute("BEGIN")
    try:
        with _uncollected():
            for name, frame in _counted(connection, frames).items():
                connection.register("incoming", frame)
                connection.execute(f"INSERT INTO raw.{name} SELECT * FROM incoming")
                connection.unregister("incoming")
        connection.execute("INSERT INTO raw.ledger SELECT unnest(?)", [names])
        connection.execute("COMMIT")
    except BaseException:
        # A commit that failed has ended the transaction already, and a fatal error the connection.
        with contextlib.suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Within this Python collects no garbage.

    DuckDB's threads come to Python for a frame's rows. A collection that begins there, and finds what an interrupted
    sweep has left, ends the process (`terminate called without an active exception`, one interrupt in ten).
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _counted(connection: "duckdb.DuckDBPyConnection", frames: "dict[str, pl.DataFrame]") -> "dict[str, pl.DataFrame]":
    """The rows that count: of owned tables, those whose batch is the earliest with their key. Later ones go."""
    import polars as pl

    keys = [
        frame.select(pl.lit(name).alias("table_name"), pl.col(owner).alias("key"), "batch").unique()
        for name, frame in frames.items()
        if (owner := TABLES[name].owner) is not None
    ]
    if not keys:
        return frames
    brought = pl.concat(keys)
    claims = brought.group_by("table_name", "key").agg(pl.col("batch").min())
    connection.register("claims", claims)
    previous = connection.execute(
        'SELECT o.table_name, o."key", o.batch FROM claims c JOIN raw.owners o USING (table_name, "key")'
    ).fetchall()
    connection.unregister("claims")
    if previous:
        schema = dict.fromkeys(("table_name", "key", "previous"), pl.String)
        claims = claims.join(pl.DataFrame(previous, schema, orient="row"), on=["table_name", "key"], how="left")
        claims = claims.filter(pl.col("previous").is_null() | (pl.col("batch") < pl.col("previous")))
        _give_up(connection, claims.filter(pl.col("previous").is_not_null()))
        claims = claims.select("table_name", "key", "batch")
    connection.register("claims", claims)
    connection.execute("INSERT INTO raw.owners SELECT * FROM claims")
    connection.unregister("claims")
    if claims.height == brought.height:
        return frames
    return {name: _owned(TABLES[name], frame, claims) for name, frame in frames.items()}


def _give_up(connection: "duckdb.DuckDBPyConnection", replaced: "pl.DataFrame") -> None:
    """Remove the rows of keys that an earlier batch has brought after all."""
    for (name,), part in replaced.group_by("table_name"):
        keys = part["key"].to_list()
        connection.execute(
            f'DELETE FROM raw.{name} WHERE "{TABLES[str(name)].owner}" IN (SELECT unnest(?))',
            [keys],
        )
        connection.execute('DELETE FROM raw.owners WHERE table_name = ? AND "key" IN (SELECT unnest(?))', [name, keys])


def _owned(table: Table, frame: "pl.DataFrame", claims: "pl.DataFrame") -> "pl.DataFrame":
    import polars as pl

    if table.owner is None:
        return frame
    mine = claims.filter(pl.col("table_name") == table.name)
    return frame.join(
        mine, left_on=[table.owner, "batch"], right_on=["key", "batch"], how="semi", maintain_order="left"
    )


def damage(problems: list[str], others: str = "everything else was ingested") -> UserError:
    """The error for shards that could not be taken in; `others` says what became of the rest."""
    return UserError(
        f"{len(problems)} shard problem(s); {others}:\n  " + "\n  ".join(problems) + "\n"
        "Restore the named files from a copy and run this again; or let `harness db rebuild` set what is damaged aside "
        "(rows that the database has are kept) and the sweep compute again what is lost. Move what the store did not "
        "write, or another version wrote, out of the shards folder"
    )
