"""The shards of many batches as one frame a table: whole batches, each held against its manifest and the schema."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.store._schema import TABLES, Table
from harness.store._shards import MANIFEST, inspect, polars_schema, read_manifest

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Batch", "batch_problems", "groups", "read"]

_ROWS = 500_000
"""Rows of one group, about: fewer take longer each, and these are some hundred MiB."""
_SMALL, _OF_A_ROW = 64 * 2**10, 32
"""Bytes of a shard whose rows are not counted, since it takes longer than to read it, and those of one of its rows."""


@dataclass(frozen=True)
class Batch:
    """A batch whose files are as they were written."""

    name: str
    tables: tuple[str, ...]


def groups(shards: Path, names: Sequence[str], problems: list[str]) -> Iterator[list[Batch]]:
    """The sound batches, in order, as many at a time as fit into memory; what is wrong with the others is added."""
    group: list[Batch] = []
    rows = 0
    for name in names:
        files, wrong = _files(shards / name)
        if wrong:
            problems += wrong
            continue
        group.append(Batch(name, tuple(f.removesuffix(".parquet") for f in files)))
        rows += sum(_rows(shards / name / file, size) for file, size in files.items())
        if rows >= _ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _rows(file: Path, size: int) -> int:
    import polars as pl

    if size > _SMALL:
        # What is no Parquet file is told from one where it is read.
        with contextlib.suppress(pl.exceptions.PolarsError):
            return int(pl.scan_parquet(file, glob=False).select(pl.len()).collect().item())
    return size // _OF_A_ROW


def read(shards: Path, group: Sequence[Batch]) -> "dict[str, pl.DataFrame]":
    """The rows of these batches by table, with columns `batch` and `batch_row`.

    Raises:
        ValueError: some shard has another schema; `batch_problems` says which, and what.
    """
    files: dict[str, dict[str, str]] = {}
    for batch in group:
        for table in batch.tables:
            files.setdefault(table, {})[batch.name] = str(shards / batch.name / f"{table}.parquet")
    return {name: _frame(TABLES[name], files[name]) for name in TABLES if name in files}


def _frame(table: Table, files: Mapping[str, str]) -> "pl.DataFrame":
    import numpy as np
    import polars as pl

    columns = list(table.names)
    try:
        frame = pl.scan_parquet(
            list(files.values()),
            glob=False,
            schema=pl.Schema(polars_schema(table)),
            # A nullable column added later is absent from older shards, and NULL there.
            missing_columns="insert",
            include_file_paths="file",
        ).collect()
    except pl.exceptions.PolarsError as error:
        raise ValueError(str(error)) from error
    required = [c.name for c in table.columns if not c.nullable]
    if required and any(frame.select(pl.col(required).null_count()).row(0)):
        raise ValueError(f"{table.name}: a required column has no values")
    lengths = frame["file"].rle().struct.field("len").cast(pl.Int64).to_numpy()
    if len(lengths) != len(files):
        raise ValueError(f"{table.name}: a shard without rows")
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    batches = pl.Series("batch", list(files), dtype=pl.String).gather(np.repeat(np.arange(len(files)), lengths))
    return frame.select(columns).with_columns(batches, pl.Series("batch_row", np.arange(len(starts)) - starts))


def _files(batch: Path) -> tuple[dict[str, int], list[str]]:
    """The shards of a batch with their sizes, and what is wrong: missing, changed since written, or not the store's."""
    manifest, problems = inspect(batch)
    if problems:
        return {}, problems
    with os.scandir(batch) as entries:
        sizes = {e.name: e.stat().st_size for e in entries if e.name != MANIFEST}
    problems += [f"{batch / n}: not written by the store (not in {MANIFEST})" for n in sorted(sizes.keys() - manifest)]
    problems += [
        f"{batch / name}: the store has no such table; it was written by another version"
        for name in sorted(manifest)
        if name.removesuffix(".parquet") not in TABLES
    ]
    return sizes, problems


def batch_problems(batch: Path) -> list[str]:
    """What is wrong with the schemas of a batch's shards."""
    import polars as pl

    problems = []
    for name in sorted(read_manifest(batch)):
        table = TABLES[name.removesuffix(".parquet")]
        try:
            found = dict(pl.read_parquet_schema(batch / name))
        except (pl.exceptions.PolarsError, OSError) as error:
            problems.append(f"{batch / name}: not a Parquet file ({error})")
            continue
        problems += [f"{batch / name}: {p}" for p in _schema_problems(table, found)]
    return problems


def _schema_problems(table: Table, found: "Mapping[str, object]") -> list[str]:
    wanted = polars_schema(table)
    problems = [f"unknown column {name}" for name in found if name not in wanted]
    for column in table.columns:
        if column.name in found:
            if found[column.name] != wanted[column.name]:
                problems.append(f"column {column.name} is {found[column.name]}, expected {wanted[column.name]}")
        elif not column.nullable:
            problems.append(f"column {column.name} is missing")
    return problems
