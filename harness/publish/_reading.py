"""Reading an export that anybody may have written: bounded, typed, and never outside its folder."""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from harness._printable import printable
from harness.errors import UserError
from harness.publish._board import MOST_ENTRIES, ROWS
from harness.publish._cards import SAMPLES, Card
from harness.publish._files import FORMAT, MANIFEST, VERSION
from harness.publish._gather import Part
from harness.publish._names import COMPONENT
from harness.publish._spool import Samples, Spool

if TYPE_CHECKING:
    import polars as pl

__all__ = ["KEY", "Export", "Manifest", "open_export", "read_frame", "read_json", "read_manifest"]

KEY = re.compile(r"[0-9a-f]{16}(?:-[0-9a-f]{8})?")
_NAME = re.compile(
    rf"index\.html|entries/{KEY.pattern}\.html|croissant\.json"
    r"|data/(?:entries\.(?:json|csv|parquet)|samples\.parquet|provenance\.json)"
    rf"|every-eval-ever/data(?:/{COMPONENT}){{4}}"
    rf"|lm-eval/{KEY.pattern}/seed--?\d+/(?:results|samples_{COMPONENT})_[0-9T.-]{{26}}\.jsonl?"
    rf"|hub/{KEY.pattern}/(?:README\.md|\.eval_results/{COMPONENT})"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_JSON = 2**28
_LARGEST_FILE = 2**32
_LARGEST_UNPACKED = 2**34
_MOST_SAMPLES = 50_000_000
_MOST_ROWS = 1_000_000
_MOST_FILES = 1_000_000
_DATA = ("data/entries.parquet", "data/samples.parquet", "data/provenance.json")


@dataclass(frozen=True)
class Manifest:
    """What an export says of itself: `files` is path → sha256 and size."""

    made: str
    harness: str
    code: str
    statistics: object
    files: Mapping[str, tuple[str, int]]


@dataclass(frozen=True, eq=False)
class Export:
    """An export's data as it is written there, nothing of it checked against anything."""

    manifest: Manifest
    cards: Mapping[str, Card]
    rows: "pl.DataFrame"
    samples: Mapping[str, Samples]

    def parts(self) -> list[Part]:
        """The entries, in the order of the export."""
        return [(card, self.samples[key]) for key, card in self.cards.items() if key in self.samples]


def open_export(folder: Path) -> Export:
    """Read an export.

    Raises:
        UserError: it is none, or one of another version, or hostile: paths that lead out of it, links, files beyond all
            measure, data of other types.
    """
    manifest = read_manifest(folder)
    for name in _DATA:
        if name not in manifest.files:
            raise UserError(f"{folder / MANIFEST}: lists no {name}: not all of an export")
    cards = _cards(folder)
    rows = read_frame(folder, "data/entries.parquet", ROWS, _MOST_ROWS)
    return Export(manifest, cards, rows, _samples(folder))


def _samples(folder: Path) -> dict[str, Samples]:
    """The samples of each entry, put aside one entry at a time."""
    import polars as pl

    name = "data/samples.parquet"
    spool = Spool()
    copy = spool.path()
    with _opened(folder, name, _LARGEST_FILE) as file, copy.open("wb") as to:
        shutil.copyfileobj(file, to)
    _check_size(folder / name, copy, _MOST_SAMPLES)
    needed = ["entry", "task", "metric", "seed", "document", "score"]
    try:
        whole = pl.scan_parquet(copy)
        _check_columns(folder / name, whole.collect_schema(), {"entry": "String", **SAMPLES})
        wrong = pl.any_horizontal(pl.col(needed).is_null()).any() | ~pl.col("score").is_finite().all()
        bad = whole.select(wrong).collect(engine="streaming").item()
        keys = whole.select(pl.col("entry").unique(maintain_order=True)).collect(engine="streaming")["entry"].to_list()
    except UserError:
        raise
    except Exception as error:  # polars raises errors of many kinds, and panics
        raise _unreadable(folder / name, error) from error
    if bad:
        raise UserError(f"{folder}/{name}: scores or names that are missing, NaN or infinite")
    if len(keys) > MOST_ENTRIES:
        raise UserError(f"{folder}/{name}: samples of {len(keys)} entries; expected at most {MOST_ENTRIES}")
    try:
        return {
            str(key): spool.keep(whole.filter(pl.col("entry") == key).drop("entry").collect(engine="streaming"))
            for key in keys
        }
    except Exception as error:  # a hostile file may be sound to look at and fail where it is read
        raise _unreadable(folder / name, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a Parquet file that can be read: {printable(str(error))[:120]}")


def digest(folder: Path, name: str) -> tuple[str, int] | None:
    """sha256 and size of one of an export's files; None where it is no ordinary file of the folder."""
    path = folder / name
    if any((folder / p).is_symlink() for p in (name, *(str(q) for q in Path(name).parents if str(q) != "."))):
        return None
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_FILE:
                return None
            return hashlib.file_digest(file, "sha256").hexdigest(), status.st_size
    except OSError:
        return None


@contextlib.contextmanager
def _opened(folder: Path, name: str, largest: int) -> Iterator[IO[bytes]]:
    path = folder / name
    if folder.is_symlink() or any(p.is_symlink() for p in (path, path.parent) if p != folder):
        raise UserError(f"{path}: a link: an export holds ordinary files only; copy the file itself here")
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path}: expected an ordinary file")
            if status.st_size > largest:
                raise UserError(f"{path}: has {status.st_size} bytes; expected at most {largest}")
            yield file
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _content(folder: Path, name: str, largest: int) -> bytes:
    with _opened(folder, name, largest) as file:
        return file.read(largest)


def read_json(folder: Path, name: str) -> Any:  # noqa: ANN401  # any JSON value
    """The JSON of one of an export's files.

    Raises:
        UserError: no ordinary file, too large, or not JSON.
    """
    raw = _content(folder, name, _LARGEST_JSON)
    try:
        return json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / name}: not JSON: {printable(str(error))[:120]}") from error


def read_text(folder: Path, name: str) -> str:
    """The text of one of an export's files.

    Raises:
        UserError: no ordinary file, too large, or not UTF-8.
    """
    try:
        return _content(folder, name, _LARGEST_JSON).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{folder / name}: not UTF-8") from error


def read_manifest(folder: Path) -> Manifest:
    """What an export says of itself.

    Raises:
        UserError: no export, one of another version, or a list of files that are none of an export's.
    """
    if not folder.is_dir() or folder.is_symlink():
        raise UserError(f"{folder} is no folder: expected what `harness publish` wrote")
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder} has no {MANIFEST}: it is no export of `harness publish`, or not all of one")
    found = read_json(folder, MANIFEST)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{folder / MANIFEST}: not that of an export of `harness publish`")
    if found.get("version") != VERSION:
        raise UserError(
            f"{folder / MANIFEST}: format version {printable(repr(found.get('version')))[:20]}; this harness reads "
            f"{VERSION}: use the harness that wrote it"
        )
    listed = found.get("files")
    if not isinstance(listed, dict) or len(listed) > _MOST_FILES:
        raise UserError(f"{folder / MANIFEST}: expected files, at most {_MOST_FILES}")
    files: dict[str, tuple[str, int]] = {}
    for name, facts in listed.items():
        if not _NAME.fullmatch(name):
            raise UserError(f"{folder / MANIFEST}: {printable(name)[:80]!r} is no file of an export")
        sha, size = (facts.get("sha256"), facts.get("size")) if isinstance(facts, dict) else (None, None)
        if not isinstance(sha, str) or not _SHA256.fullmatch(sha) or type(size) is not int:
            raise UserError(f"{folder / MANIFEST}: {name}: expected its size and sha256")
        files[name] = sha, size
    texts = [found.get(name) for name in ("made_at", "harness", "code")]
    made, version, code = (t if isinstance(t, str) else "" for t in texts)
    return Manifest(made, version, code, found.get("statistics"), files)


def _cards(folder: Path) -> dict[str, Card]:
    from pydantic import ValidationError

    name = "data/provenance.json"
    found = read_json(folder, name)
    if not isinstance(found, dict) or len(found) > MOST_ENTRIES:
        raise UserError(f"{folder / name}: expected at most {MOST_ENTRIES} entries by their keys")
    cards: dict[str, Card] = {}
    for key, value in found.items():
        if not KEY.fullmatch(key):
            raise UserError(f"{folder / name}: {printable(key)[:60]!r} is no key of an entry")
        try:
            # As JSON: it has no tuples, which strict types would miss.
            cards[key] = Card.model_validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"])
            raise UserError(f"{folder / name}: {key}: {printable(place)[:60]}: {first['msg']}") from error
    return cards


def read_frame(folder: Path, name: str, columns: Mapping[str, str], most: int) -> "pl.DataFrame":
    """A Parquet file of an export, of exactly these columns and types.

    Raises:
        UserError: no ordinary file, too large (unpacked too), or not such a table.
    """
    import polars as pl

    path = folder / name
    raw = _content(folder, name, _LARGEST_FILE)
    _check_size(path, io.BytesIO(raw), most)
    try:
        frame = pl.read_parquet(io.BytesIO(raw))
    except Exception as error:  # polars raises errors of many kinds, and panics
        raise _unreadable(path, error) from error
    _check_columns(path, frame.schema, columns)
    return frame


def _check_size(path: Path, file: Path | io.BytesIO, most: int) -> None:
    import pyarrow.parquet as pq

    try:
        about = pq.ParquetFile(file).metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        unpacked = sum(g.total_byte_size for g in groups)
    except Exception as error:  # whatever a hostile file makes of the reader
        raise _unreadable(path, error) from error
    if about.num_rows > most or unpacked > _LARGEST_UNPACKED:
        raise UserError(f"{path}: {about.num_rows} rows, {unpacked} bytes unpacked; expected at most {most} rows")


def _check_columns(path: Path, schema: "pl.Schema", columns: Mapping[str, str]) -> None:
    import polars as pl

    expected = {n: getattr(pl, kind) for n, kind in columns.items()}
    if dict(schema) != expected:
        odd = sorted(set(schema) ^ set(expected)) or [n for n in expected if schema[n] != expected[n]]
        raise UserError(f"{path}: other columns or types than an export has: {printable(', '.join(odd))[:120]}")
