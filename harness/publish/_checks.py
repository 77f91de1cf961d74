"""The last look at an export's bytes before they go out: whatever is left in them of this machine stops it."""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.publish._board import Board
from harness.publish._frame import own_code
from harness.publish._gather import Part
from harness.publish._scrub import Scrubber

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


def refuse(content: Mapping[str, bytes], board: Board, own: Sequence[Part], scrub: Scrubber) -> None:
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
    found = [(name, scrub.first_problem(_texts(name, raw, board), names=False)) for name, raw in content.items()]
    for card, samples in own:
        texts = [*_values(card.model_dump(mode="json", exclude=_OURS)), *_columns(samples)]
        found.append((f"entry {card.id}", scrub.first_problem(texts)))
    for name, problem in found:
        if problem is not None:
            raise UserError(
                f"nothing was published: {name} would hold {problem}. If no merged export "
                "brought it, that is a fault of the harness: please report it"
            )


def _texts(name: str, raw: bytes, board: Board) -> Iterator[str]:
    yield name
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
    elif name == "data/samples.parquet":
        for own in board.samples.values():
            yield from _columns(own)
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
