"""Is an export what its samples say: digests, every figure computed again, and the pages made again."""

import csv
import hashlib
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness._printable import printable
from harness.publish._aggregates import PEOPLE, STATISTICS, range_of
from harness.publish._board import ROWS, Board, board_of
from harness.publish._cards import digest_of, identity
from harness.publish._croissant import CROISSANT, croissant
from harness.publish._files import MANIFEST, code_digest, csv_of
from harness.publish._formats import FOLDERS, formats
from harness.publish._pages import pages
from harness.publish._reading import Export, digest, open_export, read_json, read_text
from harness.publish._told import told

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Discrepancy", "read_and_verify"]

_TOLERANCE = 1e-9
_LINES = 2_000_000
_OF_HOSTS = frozenset({".git", ".cache", ".gitattributes", ".gitignore", ".nojekyll", "CNAME", "README.md", "LICENSE"})
"""What a clone or a download holds beside the board: git's and the Hub's own, and what tells a host what to do."""


@dataclass(frozen=True)
class Discrepancy:
    """Something in an export that is not what it should be; `entry`, `task` and `metric` where it is of a figure."""

    what: str
    entry: str = ""
    task: str = ""
    metric: str = ""
    published: str = ""
    recomputed: str = ""

    def __str__(self) -> str:
        """In a line that a terminal may show."""
        place = " ".join(p for p in (self.entry, self.task, self.metric) if p)
        values = f": published {self.published}, recomputed {self.recomputed}" if self.published else ""
        return printable(f"{place + ': ' if place else ''}{self.what}{values}").replace("\n", " ")


def read_and_verify(folder: Path) -> tuple[Export, list[Discrepancy]]:
    """Read an export and compute again all that it says of its samples.

    Figures may differ by 1e-9 of their size. Pages are made again where this very code made them; of other code's
    only the digest is checked.

    Raises:
        UserError: it cannot be read as an export at all.
    """
    export = open_export(folder)
    found = [*_files(folder, export), *_identities(export)]
    board = board_of(export.parts())
    found += _figures(export, board)
    found += [*_copies(folder, export), *_told(folder, export)]
    if export.manifest.statistics != STATISTICS:
        found.append(Discrepancy("the manifest says that figures are computed otherwise than this harness does"))
    if export.manifest.code == code_digest():
        found += [*_pages(folder, export, board), *_formats(folder, export, board)]
    return export, found


def _files(folder: Path, export: Export) -> Iterator[Discrepancy]:
    listed = export.manifest.files
    for name, facts in listed.items():
        there = digest(folder, name)
        if there is None:
            yield Discrepancy(f"the file {name} is missing, or no ordinary file")
        elif there != facts:
            yield Discrepancy(f"the file {name} was changed (sha256)", "", "", "", facts[0][:12], there[0][:12])
    expected = {"index.html", *(f"entries/{key}.html" for key in export.cards)}
    for name in sorted(expected - listed.keys()):
        yield Discrepancy(f"the manifest lists no {name}")
    for root, folders, files in os.walk(folder):
        beside = _OF_HOSTS if Path(root) == folder else frozenset()
        folders[:] = [f for f in folders if f not in beside]
        links = [f for f in folders if (Path(root) / f).is_symlink()]
        for one in sorted({*files, *links} - beside):
            name = (Path(root) / one).relative_to(folder).as_posix()
            if name not in listed and name != MANIFEST:
                yield Discrepancy(f"the file {name} is not of the export: the manifest does not list it")


def _identities(export: Export) -> Iterator[Discrepancy]:
    for key in sorted(export.samples.keys() - export.cards.keys()):
        yield Discrepancy("samples of an entry without provenance", key)
    for key, card in export.cards.items():
        names = identity(card.sweep, card.recipe, card.model, card.target)
        if card.id != names or not key.startswith(card.id):
            yield Discrepancy("the id is not that of its names", key, published=card.id, recomputed=names)
        if key not in export.samples:
            yield Discrepancy("an entry without samples: nothing shows its figures", key)
            continue
        own = export.samples[key].scores()
        if own.select("task", "metric", "seed", "document").is_duplicated().any():
            yield Discrepancy("samples that are given twice", key)
        yield from _beyond(key, own)
        if (made := digest_of(card.id, own)) != card.digest:
            yield Discrepancy(
                "the samples are not those that were published (digest)",
                key,
                published=card.digest[:12],
                recomputed=made[:12],
            )


def _beyond(key: str, own: "pl.DataFrame") -> Iterator[Discrepancy]:
    """What people say that no form asks for."""
    for (metric,), marks in own.filter(own["task"] == PEOPLE).group_by("metric", maintain_order=True):
        low, high = range_of(PEOPLE, str(metric))
        if not marks["score"].is_between(low, high).all():
            yield Discrepancy(f"marks beyond the scale from {low:g} to {high:g}", key, PEOPLE, str(metric))


def _named(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(str(r["entry"]), str(r["task"]), str(r["metric"])): r for r in rows}


def _figures(export: Export, board: Board) -> Iterator[Discrepancy]:
    published, computed = _named(export.rows.to_dicts()), _named(board.rows.to_dicts())
    if len(published) != export.rows.height:
        yield Discrepancy("figures that are published twice in data/entries.parquet")
    for name in sorted(published.keys() | computed.keys()):
        if name not in computed:
            yield Discrepancy("a figure without samples", *name, published=_shown(published[name]["value"]))
        elif name not in published:
            yield Discrepancy("samples whose figure is not published", *name)
        else:
            yield from _compared("data/entries.parquet", name, published[name], computed[name])


def _compared(
    file: str, name: tuple[str, str, str], published: Mapping[str, Any], computed: Mapping[str, Any]
) -> Iterator[Discrepancy]:
    for column in ROWS:
        given, own = published.get(column), computed[column]
        if not _equal(given, own):
            yield Discrepancy(f"{column} in {file}", *name, published=_shown(given), recomputed=_shown(own))


def _equal(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= _TOLERANCE * max(1.0, abs(a), abs(b))
    return type(a) is type(b) and a == b


def _shown(value: object) -> str:
    return "none" if value is None else repr(value) if isinstance(value, float) else str(value)[:80]


def _copies(folder: Path, export: Export) -> Iterator[Discrepancy]:
    """The same figures as JSON and CSV."""
    own = export.rows.to_dicts()
    listed = export.manifest.files
    if digest(folder, "data/entries.json") is not None:
        found = read_json(folder, "data/entries.json")
        rows = [_typed(r) for r in found if isinstance(r, dict)] if isinstance(found, list) else []
        yield from _same("data/entries.json", own, rows)
    elif "data/entries.json" not in listed:
        yield Discrepancy("the manifest lists no data/entries.json")
    if digest(folder, "data/entries.csv") is not None:
        texts = (csv_of(export.rows), read_text(folder, "data/entries.csv"))
        mine, theirs = ([_typed(r) for r in csv.DictReader(io.StringIO(t), strict=False)] for t in texts)
        yield from _same("data/entries.csv", mine, theirs)
    elif "data/entries.csv" not in listed:
        yield Discrepancy("the manifest lists no data/entries.csv")


def _told(folder: Path, export: Export) -> Iterator[Discrepancy]:
    """The same figures in the formats of others."""
    published = _named(export.rows.to_dicts())
    for one in told(folder, export):
        name = (one.entry, one.task, one.metric)
        if not one.task:
            yield Discrepancy(f"the file {one.file} cannot be read ({str(one.value)[:80]})", one.entry)
        elif name not in published:
            yield Discrepancy(f"a figure that only {one.file} has", *name, published=_shown(one.value))
        else:
            given = float(one.value) if type(one.value) is int else one.value
            if not _equal(given, own := published[name]["value"]):
                yield Discrepancy(f"value in {one.file}", *name, published=_shown(given), recomputed=_shown(own))


def _typed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as its columns have it, from JSON or texts; what does not fit stays as it is, and differs."""
    found: dict[str, Any] = {}
    for name, kind in ROWS.items():
        value = row.get(name)
        try:
            if value in (None, ""):
                found[name] = None
            else:
                found[name] = {"Float64": float, "Int64": int}.get(kind, str)(value)
        except (TypeError, ValueError, OverflowError):
            found[name] = str(value)
        if isinstance(found[name], float) and not math.isfinite(found[name]):
            found[name] = str(value)
    return found


def _same(file: str, own: list[dict[str, Any]], rows: list[dict[str, Any]]) -> Iterator[Discrepancy]:
    mine, theirs = _named([_typed(r) for r in own]), _named(rows)
    if len(rows) != len(own):
        yield Discrepancy(f"rows of {file}", published=str(len(rows)), recomputed=str(len(own)))
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in mine or name not in theirs:
            yield Discrepancy(f"a figure that only one of {file} and data/entries.parquet has", *name)
        else:
            yield from _compared(file, name, theirs[name], mine[name])


def _pages(folder: Path, export: Export, board: Board) -> Iterator[Discrepancy]:
    if board.cards.keys() != export.cards.keys():
        return
    for name, text in pages(board, export.manifest.made).items():
        if digest(folder, name) is not None and read_text(folder, name) != text:
            yield Discrepancy(f"the page {name} is not what the data give")


def _formats(folder: Path, export: Export, board: Board) -> Iterator[Discrepancy]:
    """The same figures and samples as others read them."""
    if board.cards.keys() != export.cards.keys():
        return
    listed, made = export.manifest.files, set[str]()
    for name, parts in formats(board):
        made.add(name)
        yield from _made_again(folder, listed, name, parts)
    known = {name: facts for name, facts in listed.items() if name.startswith("data/")}
    yield from _made_again(folder, listed, CROISSANT, [croissant(board, known)])
    for name in sorted(n for n in listed if n.partition("/")[0] in FOLDERS and n not in made):
        yield Discrepancy(f"the file {name} is of no entry")


def _made_again(
    folder: Path, listed: Mapping[str, tuple[str, int]], name: str, parts: Iterable[bytes]
) -> Iterator[Discrepancy]:
    found, size = hashlib.sha256(), 0
    for part in parts:
        found.update(part)
        size += len(part)
    if name not in listed:
        yield Discrepancy(f"the manifest lists no {name}")
    elif (there := digest(folder, name)) is not None and there != (found.hexdigest(), size):
        yield Discrepancy(f"the file {name} is not what the data give")
