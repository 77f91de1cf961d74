"""Writing shards: one batch of rows is one folder of Parquet files, one file a table, made visible by one rename.

A batch is written in a hidden folder beside its place, every file and the folder are synced, the folder is renamed, and
the folder above is synced. A reader sees all the tables of a batch or none, whenever the writer is killed; once `write`
has returned, the rows survive a loss of power.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness._digests import sha256
from harness._disk import sync, writing
from harness.errors import UserError
from harness.models import sync_folder
from harness.store._listing import BATCH, batch_names
from harness.store._schema import TABLES, Column, Table

if TYPE_CHECKING:
    import polars as pl

__all__ = [
    "MANIFEST",
    "Rows",
    "damage_of",
    "inspect",
    "polars_schema",
    "read_manifest",
    "remove_stale",
    "write",
]

Rows = Sequence[Mapping[str, object]]

MANIFEST = "manifest.json"
"""The file of a batch that lists its shards with their sha256."""

_ASIDE = ".aside-"
_CLOCK = ".clock"
_PLAIN: dict[str, tuple[type[Any], str]] = {
    "text": (str, "text"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "bool": (bool, "true or false"),
}
_STALE_SECONDS = 24 * 3600.0


def write(folder: Path, tables: "Mapping[str, Rows | pl.DataFrame]", batch: str | None = None) -> str:
    """Write one batch, atomically, and return its name. Tables without rows are left out; no rows at all, no batch: "".

    Args:
        folder: the folder of the batches.
        tables: table name → rows; a polars frame avoids a Python object per value.
        batch: its name, where it takes another's place; else it is the latest.

    Raises:
        UserError: an unknown table, a missing or unknown column, a value of the wrong type. Nothing is written then.
        StorageError: the disk refuses. Nothing is left then.
    """
    frames = {name: _frame(_table(name), rows) for name, rows in tables.items()}
    frames = {name: frame for name, frame in frames.items() if frame.height}
    if not frames:
        return ""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        batch = batch or f"{_tick(folder):020d}-{uuid.uuid4().hex[:12]}"
        aside = folder / f"{_ASIDE}{batch}"
        aside.mkdir()
        try:
            with _locked(aside, fcntl.LOCK_SH):
                for name, frame in frames.items():
                    frame.write_parquet(aside / f"{name}.parquet", compression="zstd")
                manifest = {f"{name}.parquet": sha256(aside / f"{name}.parquet") for name in frames}
                (aside / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
                sync_folder(aside)
                aside.rename(folder / batch)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        sync(folder)
    return batch


_LISTED: set[Path] = set()
"""Folders of batches whose names this process has looked through."""


def _tick(folder: Path) -> int:
    """The time in ns, but later than every batch here has: names sort in the order of writing, across processes.

    That order decides which state is the latest and which of two batches with the same key counts, and a clock may be
    set back at any time.
    """
    descriptor = os.open(folder / _CLOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        told = os.pread(descriptor, 20, 0)
        last = int(told) if re.fullmatch(rb"\d{20}", told) else None
        # The file is not synced: after a loss of power it may be behind the batches, which are.
        if last is None or folder.absolute() not in _LISTED:
            found = [int(match[1]) for name in batch_names(folder) if (match := BATCH.fullmatch(name))]
            last = max([last or 0, *found])
        now = max(time.time_ns(), last + 1)
        os.pwrite(descriptor, b"%020d" % now, 0)
    finally:
        os.close(descriptor)
    _LISTED.add(folder.absolute())
    return now


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold a lock on a folder: the system frees it when this process ends, however it does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def read_manifest(batch: Path) -> dict[str, str]:
    """The shards of a batch: file name → sha256.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a manifest.
    """
    found = json.loads((batch / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError("expected a mapping of file names to sha256")
    return found


def damage_of(batch: Path) -> list[str]:
    """What is missing of a batch, or is not what was written, each with its file."""
    return inspect(batch)[1]


def inspect(batch: Path) -> tuple[dict[str, str], list[str]]:
    """The manifest of a batch (empty if it has none), and its damage."""
    try:
        manifest = read_manifest(batch)
    except (OSError, ValueError) as error:
        return {}, [f"{batch}: not a batch of the store (expected a folder with {MANIFEST}: {error})"]
    problems = []
    for name, written in sorted(manifest.items()):
        try:
            # Parquet alone does not notice: its pages carry no checksum that its readers look at.
            if sha256(batch / name) != written:
                problems.append(f"{batch / name}: damaged, its content is not what was written")
        except FileNotFoundError:
            problems.append(f"{batch / name}: in {MANIFEST} but not there")
        except OSError as error:
            problems.append(f"{batch / name}: {error.strerror}")
    return manifest, problems


def remove_stale(folder: Path) -> int:
    """Remove what killed writers left behind (hidden, never visible, a day old, their writer gone); returns how many
    folders."""
    if not folder.is_dir():
        return 0
    removed = 0
    for name in os.listdir(folder):  # noqa: PTH208  # as in batch_names
        if not name.startswith(_ASIDE):
            continue
        aside = folder / name
        # The age alone would take a living writer's rows whenever the clock is set forward.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            if time.time() - aside.stat().st_mtime > _STALE_SECONDS:
                with _locked(aside, fcntl.LOCK_EX):
                    shutil.rmtree(aside)
                removed += 1
    return removed


def _table(name: str) -> Table:
    if name not in TABLES:
        raise UserError(f"the store has no table {name!r}; its tables are {', '.join(TABLES)}")
    return TABLES[name]


def polars_schema(table: Table) -> "dict[str, pl.DataType]":
    """The polars types a shard of this table has."""
    import polars as pl

    types: dict[str, pl.DataType] = {
        "text": pl.String(),
        "json": pl.String(),
        "int": pl.Int64(),
        "float": pl.Float64(),
        "bool": pl.Boolean(),
        "time": pl.Datetime("us"),
    }
    return {c.name: types[c.kind] for c in table.columns}


def _frame(table: Table, rows: "Rows | pl.DataFrame") -> "pl.DataFrame":
    import polars as pl

    if isinstance(rows, pl.DataFrame):
        return _checked(table, rows)
    wanted = dict.fromkeys(table.names)
    for number, row in enumerate(rows):
        if row.keys() != wanted.keys():
            raise UserError(f"{table.name}, row {number}: {_columns_problem(table, row.keys())}")
    columns = {
        c.name: [_value(table, c, number, row[c.name]) for number, row in enumerate(rows)] for c in table.columns
    }
    return pl.DataFrame(columns, schema=polars_schema(table))


def _columns_problem(table: Table, given: Iterable[str]) -> str:
    have = set(given)
    parts = []
    if missing := [n for n in table.names if n not in have]:
        parts.append(f"missing {', '.join(missing)} (give None where a nullable one is unknown)")
    if unknown := sorted(have - set(table.names)):
        parts.append(f"unknown {', '.join(unknown)}")
    return "; ".join(parts)


def _checked(table: Table, frame: "pl.DataFrame") -> "pl.DataFrame":
    import polars as pl

    if set(frame.columns) != set(table.names):
        raise UserError(f"{table.name}: {_columns_problem(table, frame.columns)}")
    try:
        frame = frame.select(table.names).cast(pl.Schema(polars_schema(table)), strict=True)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{table.name}: {error}") from error
    for column in table.columns:
        values = frame.get_column(column.name)
        if not column.nullable and values.null_count():
            raise UserError(f"{table.name}.{column.name}: {values.null_count()} values are missing, none may be")
        if column.choices and not values.drop_nulls().is_in(column.choices).all():
            raise UserError(f"{table.name}.{column.name}: expected one of {', '.join(column.choices)}")
        if column.kind == "float" and column.finite and not values.drop_nulls().is_finite().all():
            raise UserError(f"{table.name}.{column.name}: not finite (NaN or infinity)")
        if column.kind == "json":
            for number, text in enumerate(values):
                _value(table, column, number, text)
    return frame


def _value(table: Table, column: Column, number: int, value: object) -> object:
    """The value as the shard holds it."""
    if value is None:
        if column.nullable:
            return None
        raise _bad(table, column, number, value, "a value, this column is not nullable")
    if column.kind == "json":
        return _json(table, column, number, value)
    if column.kind == "time":
        return _time(table, column, number, value)
    wanted, words = _PLAIN[column.kind]
    # bool is a subclass of int in Python, and True is no count.
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise _bad(table, column, number, value, words)
    if column.choices and value not in column.choices:
        raise _bad(table, column, number, value, f"one of {', '.join(column.choices)}")
    if column.kind == "float":
        number_value = float(value)
        if column.finite and not math.isfinite(number_value):
            raise _bad(table, column, number, value, "a finite number")
        return number_value
    return int(value) if column.kind == "int" else value


def _json(table: Table, column: Column, number: int, value: object) -> str:
    try:
        if isinstance(value, str):
            # Not through json.loads' own NaN and Infinity, which no other reader of JSON accepts.
            json.loads(value, parse_constant=_refuse)
            return value
        return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError) as error:
        raise _bad(table, column, number, value, f"JSON text, or a mapping or list of JSON values ({error})") from error


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _time(table: Table, column: Column, number: int, value: object) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise _bad(table, column, number, value, f"an ISO time ({error})") from error
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise _bad(table, column, number, value, "a time with its zone: datetime.now(UTC) or ISO text with an offset")
    return value.astimezone(UTC).replace(tzinfo=None)


def _bad(table: Table, column: Column, number: int, value: object, expected: str) -> UserError:
    return UserError(f"{table.name}.{column.name}, row {number}: expected {expected}, got {str(value)[:80]!r}")
