"""The last look at an export's bytes before they go out: whatever is left in them of this machine stops it."""

import html
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.publish._board import Board
from harness.publish._frame import own_code
from harness.publish._gather import Part
from harness.publish._scrub import Scrubber
from harness.publish._spool import Blob, Spooled

if TYPE_CHECKING:
    import polars as pl

__all__ = ["refuse"]


_OURS: dict[str, Any] = {
    "state": True,
    "batch": True,
    "objectives": True,
    "budget": True,
    "notes": True,
    "failures": {"__all__": {"kind"}},
}
"""Parts of a card whose words are the harness's own."""


def refuse(content: Mapping[str, Blob], board: Board, own: Sequence[Part], scrub: Scrubber) -> None:
    """Look at every byte for paths and secrets, and at what comes from this machine for names of users and hosts too.

    The pages are not searched for names: a user may be called like a word in them, and all else in them is from the
    cards and samples.

    Args:
        content: the files.
        board: what is in the Parquet files.
        own: the entries of this store; those of others were cleaned where their names are known.
        scrub: what knows this machine.

    Raises:
        UserError: something is found; what and in which file, but not its text.
    """
    seen = _Seen()
    found = [
        (name, scrub.first_problem(seen.new(_texts(name, blob, board)), names=False)) for name, blob in content.items()
    ]
    seen = _Seen()
    for card, samples in own:
        texts = itertools.chain(_values(card.model_dump(mode="json", exclude=_OURS)), _columns(samples.frame()))
        found.append((f"entry {card.id}", scrub.first_problem(seen.new(texts))))
    for name, problem in found:
        if problem is not None:
            raise UserError(
                f"nothing was published: {name} would hold {problem}. If no merged export "
                "brought it, that is a fault of the harness: please report it"
            )


class _Seen:
    """Leaves out texts that were looked at before: a prompt stands in many lines of many files."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    def new(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            mark = hash(text)
            if mark not in self._known:
                self._known.add(mark)
                yield text


def _texts(name: str, blob: Blob, board: Board) -> Iterator[str]:
    yield name
    if name == "data/samples.parquet":
        for own in board.samples.values():
            yield from _columns(own.frame())
    elif isinstance(blob, Spooled):
        yield from _lines(name, blob.path)
    else:
        yield from _whole(name, blob, board)


def _lines(name: str, path: Path) -> Iterator[str]:
    if name.endswith(".jsonl"):
        with path.open("rb") as file:
            for line in file:
                yield from _strings(json.loads(line))
        return
    text = path.read_text(encoding="utf-8")
    if name.endswith(".json"):
        yield from _strings(json.loads(text))
        return
    from ruamel.yaml import YAML

    # In YAML's quotes and Markdown's entities a text is not as it stands: what they stand for is looked at.
    head, body = text.split("\n---\n", 1) if name.endswith(".md") else (text, "")
    yield from _strings(YAML(typ="safe").load(head))
    yield html.unescape(body)


def _whole(name: str, raw: bytes, board: Board) -> Iterator[str]:
    if name.endswith(".html"):
        text = raw.decode()
        # Code that every page has, and hashes of it: the same for everybody.
        for code in own_code():
            text = text.replace(code, "")
        yield html.unescape(text)
    elif name.endswith(".json"):
        yield from _strings(json.loads(raw))
    elif name.endswith(".csv"):
        yield raw.decode()
    else:
        yield from _columns(board.rows)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _values(value: object) -> Iterator[str]:
    """The texts in JSON data that are no keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _values(inner)


def _columns(frame: "pl.DataFrame") -> Iterator[str]:
    import polars as pl

    yield from frame.columns
    for column in frame.select(pl.col(pl.String)).iter_columns():
        yield from column.drop_nulls().unique().to_list()
