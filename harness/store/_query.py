"""Reading: one statement, read-only, with no way to another file; and its answer as a table or a file format."""

import contextlib
import io
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from harness.errors import UserError
from harness.store._connection import connect, database_problem, let_writer_in
from harness.store._ingest import fingerprint, recorded_fingerprint
from harness.store._views import VIEWS

if TYPE_CHECKING:
    import duckdb
    import polars as pl

__all__ = ["Format", "Reader", "answer", "format_rows", "run_sql"]

Format = Literal["table", "csv", "json", "parquet"]

_DESCRIBE = re.compile(r"\s*(?:describe|desc)\s+(?:main\.)?\"?(\w+)\"?\s*;?\s*", re.IGNORECASE)
_CELL = 60
_KEPT_S = 0.5


def answer(
    database: Path,
    sql: str,
    params: Sequence[object] | Mapping[str, object] | None = None,
    *,
    wait: float | None = None,
) -> "pl.DataFrame":
    """One query on the database file, sealed: read-only, no other file, no extension, no setting.

    Raises:
        UserError: no database yet, one of another version or damaged, not a single query, or DuckDB's own message.
    """
    with _opened(database, wait) as connection:
        return _ask(connection, database, sql, params)


class Reader:
    """Queries in a row on one opening of the database: one that is there, which is left open, or one of its own, which
    is given up and made anew when it is half a second old."""

    def __init__(
        self, database: Path, given: "duckdb.DuckDBPyConnection | None" = None, lock: Path | None = None
    ) -> None:
        """`lock` is the writers' (`writer_lock`): they are let in when the opening is made anew."""
        self._database, self.given, self._lock = database, given, lock
        self._stack = contextlib.ExitStack()
        self._own: duckdb.DuckDBPyConnection | None = None
        self._since = 0.0

    def answer(self, sql: str, params: Sequence[object] | Mapping[str, object] | None) -> "pl.DataFrame":
        """As the function `answer`."""
        if self.given is not None:
            return _ask(self.given, self._database, sql, params)
        if self._own is not None and time.monotonic() - self._since > _KEPT_S:
            self.close()
            if self._lock is not None:
                let_writer_in(self._lock)
        if self._own is None:
            self._own = self._stack.enter_context(_opened(self._database, None))
            self._since = time.monotonic()
        return _ask(self._own, self._database, sql, params)

    def close(self) -> None:
        """Give the database up; the next query opens it again."""
        self._own = self.given = None
        self._stack.close()


@contextlib.contextmanager
def _opened(database: Path, wait: float | None) -> "Iterator[duckdb.DuckDBPyConnection]":
    if not database.is_file():
        raise UserError(f"nothing has been measured under {database.parent} yet: run `harness sweep SUITE` first")
    with connect(database, write=False, sealed=True, wait=wait) as connection:
        made_by = recorded_fingerprint(connection)
        if made_by is None:
            raise UserError(f"{database} is empty: run `harness sweep SUITE` first")
        if made_by != fingerprint():
            raise UserError(
                f"{database} was made by another version of the harness: run `harness sweep SUITE` again (finished "
                "work is not repeated), which makes it anew from the shards"
            )
        yield connection


def _ask(
    connection: "duckdb.DuckDBPyConnection",
    database: Path,
    sql: str,
    params: Sequence[object] | Mapping[str, object] | None,
) -> "pl.DataFrame":
    import duckdb

    try:
        _check(connection, sql)
        frame: pl.DataFrame = connection.sql(sql, params=params).pl()
    except duckdb.Error as error:
        if damage := database_problem(error, database):
            raise damage from error
        raise UserError(
            f"{error}\nThe views are {', '.join(VIEWS)}; `describe scores` lists a view's columns"
        ) from error
    return frame


def _check(connection: "duckdb.DuckDBPyConnection", sql: str) -> None:
    import duckdb

    statements = connection.extract_statements(sql)
    allowed = (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)
    if len(statements) != 1:
        raise UserError(f"expected one query, got {len(statements)}")
    if statements[0].type not in allowed:
        raise UserError(
            f"expected a query (SELECT, WITH, FROM, DESCRIBE, SUMMARIZE, SHOW or EXPLAIN), got "
            f"{statements[0].type.name}; the store is read-only here"
        )


def run_sql(store_dir: Path, sql: str, format: Format = "table") -> bytes:
    """What `harness sql` prints: the answer to a query on the store in this results folder.

    `describe VIEW` answers with the meaning of each column.

    Raises:
        UserError: see `answer`; or an unknown format.
    """
    database = Path(store_dir) / "harness.duckdb"
    if (asked := _DESCRIBE.fullmatch(sql)) and asked[1].lower() in VIEWS:
        query = "SELECT column_name, type, description FROM dictionary WHERE view_name = ? AND column_name IS NOT NULL"
        return format_rows(answer(database, query, [asked[1].lower()]), format, widest=None)
    return format_rows(answer(database, sql), format)


def format_rows(frame: "pl.DataFrame", format: Format, *, widest: int | None = _CELL) -> bytes:
    """The frame in one of the formats, UTF-8: an aligned table, CSV with a header, a JSON list of objects, Parquet.

    `widest` is the longest text a cell of a table shows, None for all of it; the other formats are never cut.

    Raises:
        UserError: an unknown format.
    """
    buffer = io.BytesIO()
    match format:
        case "table":
            return _table(frame, widest).encode()
        case "csv":
            frame.write_csv(buffer)
        case "json":
            frame.write_json(buffer)
            buffer.write(b"\n")
        case "parquet":
            frame.write_parquet(buffer, compression="zstd")
        case _:
            raise UserError(f"unknown format {format!r}; expected one of {', '.join(get_args(Format))}")
    return buffer.getvalue()


def _table(frame: "pl.DataFrame", widest: int | None) -> str:
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]
    rows = [[_cell(value, widest) for value in row] for row in frame.iter_rows()]
    widths = [max([len(name), *(len(row[i]) for row in rows)]) for i, name in enumerate(frame.columns)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(cells, widths, numeric, strict=True)]
        return "  ".join(padded).rstrip()

    lines = [line(frame.columns), "  ".join("-" * w for w in widths), *map(line, rows)]
    return "\n".join(lines) + f"\n({frame.height} row{'' if frame.height == 1 else 's'})\n"


def _cell(value: object, widest: int | None) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    # Control characters in a model's response could drive the terminal.
    text = "".join(c if c.isprintable() else "␤" if c == "\n" else " " for c in text)
    return text if widest is None or len(text) <= widest else text[: widest - 1] + "…"
