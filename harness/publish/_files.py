"""An export's files: what lies where, written aside and put in place as a whole, the manifest last."""

import hashlib
import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.publish._aggregates import STATISTICS
from harness.publish._board import ROWS, Board
from harness.publish._cards import SAMPLES
from harness.publish._croissant import CROISSANT, croissant
from harness.publish._formats import formats
from harness.publish._spool import Blob, Samples, Spool, Spooled, facts_of

if TYPE_CHECKING:
    import polars as pl

__all__ = ["FORMAT", "MANIFEST", "VERSION", "check_place", "code_digest", "csv_of", "data_files", "manifest_of", "put"]

FORMAT, VERSION = "posttrain-harness leaderboard", 3
MANIFEST = "manifest.json"
_NOT_RECOMPUTED = [
    "trials",
    "device_seconds",
    "settings",
    "state",
    "recorded_at",
    "how good judges are: as the sweep measured it",
    "the provenance: as recorded by the sweep",
]
_FORMULA = r"^[=+\-@\t\r]"


def data_files(board: Board) -> dict[str, Blob]:
    """The downloads: the figures three times, the samples, the provenance of each entry, and the formats of others."""
    rows = board.rows.to_dicts()
    cards = {key: card.model_dump(mode="json") for key, card in board.cards.items()}
    spool = Spool()
    found: dict[str, Blob] = {
        "data/entries.json": _json(rows),
        "data/entries.csv": csv_of(board.rows).encode(),
        "data/entries.parquet": _parquet(board.rows),
        "data/samples.parquet": _all_samples(board.samples, spool),
        "data/provenance.json": _json(cards),
    }
    found[CROISSANT] = croissant(board, {name: facts_of(blob) for name, blob in found.items()})
    for name, parts in formats(board):
        found[name] = spool.write(parts)
    return found


def _all_samples(samples: Mapping[str, Samples], spool: Spool) -> Spooled:
    """Those of all entries in one file, a group of rows each, so that one entry is read without the others."""
    import polars as pl
    import pyarrow.parquet as pq

    path = spool.path()
    writer = None
    for key, own in samples.items():
        rows = own.frame().select(pl.lit(key).alias("entry"), *SAMPLES).to_arrow(compat_level=pl.CompatLevel.oldest())
        writer = writer or pq.ParquetWriter(path, rows.schema, compression="zstd")
        writer.write_table(rows, row_group_size=max(rows.num_rows, 1))
    if writer is not None:
        writer.close()
    return spool.have(path)


def csv_of(rows: "pl.DataFrame") -> str:
    """The figures as CSV. A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    import polars as pl

    return rows.with_columns(
        pl.when(pl.col(c).str.contains(_FORMULA)).then(pl.concat_str(pl.lit("'"), c)).otherwise(pl.col(c)).alias(c)
        for c, kind in ROWS.items()
        if kind == "String"
    ).write_csv()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=True) + "\n").encode()


def _parquet(frame: "pl.DataFrame") -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def manifest_of(board: Board, made: str, version: str, content: Mapping[str, Blob]) -> bytes:
    """What `verify` goes by.

    Args:
        board: what is published.
        made: ISO time.
        version: of the harness.
        content: every other file, by its path in the export.
    """
    facts = {name: facts_of(blob) for name, blob in sorted(content.items())}
    listed = {name: {"size": size, "sha256": sha256} for name, (sha256, size) in facts.items()}
    return _json(
        {
            "format": FORMAT,
            "version": VERSION,
            "made_at": made,
            "harness": version,
            "code": code_digest(),
            "statistics": STATISTICS,
            "not_recomputed": _NOT_RECOMPUTED,
            "entries": len(board.cards),
            "files": listed,
        }
    )


def code_digest() -> str:
    """sha256 of what makes the pages: only the same code makes the same bytes again from the data."""
    # It writes the model cards.
    found = hashlib.sha256(importlib.metadata.version("huggingface_hub").encode())
    for package in ("harness.publish", "harness.report"):
        for file in sorted(files(package).iterdir(), key=lambda f: f.name):
            if file.name.endswith((".py", ".js", ".css", ".txt")):
                found.update(file.name.encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def put(to: Path, content: Mapping[str, Blob]) -> None:
    """Write an export aside and rename it to its place, that of an earlier one or none.

    Raises:
        UserError: something else is there, or the disk refuses.
    """
    to = to.absolute()
    check_place(to)
    aside, old = (to.with_name(f".{to.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        # The manifest last: without it nothing passes for an export.
        for name in sorted(content, key=lambda n: n == MANIFEST):
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            blob = content[name]
            if isinstance(blob, Spooled):
                shutil.copyfile(blob.path, path)
            else:
                path.write_bytes(blob)
        if to.exists():
            to.rename(old)
        aside.rename(to)
    except OSError as error:
        if old.exists() and not to.exists():
            old.rename(to)
        raise UserError(f"cannot write the export to {to}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def check_place(to: Path) -> None:
    """Raises:
    UserError: `to` holds anything but an earlier export, or nothing.
    """
    if to.is_symlink() or (to.exists() and not to.is_dir()):
        raise UserError(f"{to} is no folder: give another --to")
    if not to.exists() or not any(to.iterdir()):
        return
    try:
        manifest = json.loads((to / MANIFEST).read_bytes())
        ours = manifest["format"] == FORMAT
        listed = {MANIFEST, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        ours, listed = False, set()
    if not ours:
        raise UserError(f"{to} is not an earlier export: give --to a folder that is not there yet, or is empty")
    there = {p.relative_to(to).as_posix() for p in to.rglob("*") if not p.is_dir()}
    if more := sorted(there - listed):
        raise UserError(f"{to} holds files that are not of its export, such as {more[0]!r}: move them away first")
