"""Rows for a judge, from the hub or a mirror: none is trusted, and which of them come first is no accident."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from harness._documents import short_digest
from harness._turns import spoken, turn
from harness.data import DataSource
from harness.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Row", "each_row", "read_rows", "stable_order", "text_in", "text_of_chat", "texts_in"]

Row = Mapping[str, object]
_T = TypeVar("_T")

_LONGEST = 100_000
"""Characters of a text; what is longer is no prompt but a file in the wrong place."""


def read_rows(source: DataSource, name: str, split: str = "train", file: str | None = None) -> "Dataset":
    """The rows of `<org>/<dataset>[:config[:split]]`, as they are.

    Args:
        split: where the name gives none.
        file: the one JSON file to read where the source is the hub, for a repository that has a program in it, which
            `datasets` refuses to run.

    Raises:
        UserError: it is not there, or cannot be read.
    """
    import datasets

    path, _, rest = name.partition(":")
    config, _, own_split = rest.partition(":")
    if problem := source.lacks(path):
        raise UserError(f"dataset {name!r}: {problem}")
    datasets.disable_progress_bars()
    try:
        with source.as_hub():
            if file is not None and source.folder is None:
                from huggingface_hub import hf_hub_download

                one = hf_hub_download(path, file, repo_type="dataset")
                rows = datasets.load_dataset("json", data_files=one, split="train")
            else:
                rows = datasets.load_dataset(path, config or None, split=own_split or split)
    except Exception as error:
        # The readers of a dozen formats raise whatever they raise, all for what lies in the files.
        raise UserError(f"dataset {name!r}: {source.why(error, path)}") from error
    return rows


def each_row(rows: Sequence[Row], name: str, read: Callable[[Row], _T | None]) -> list[_T]:
    """What `read` makes of each row; None leaves one out.

    Raises:
        UserError: `read` raised a ValueError (the row's number, from 1, is named), or nothing is left.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            made = read(row)
        except ValueError as error:
            raise UserError(f"dataset {name!r}, row {number}: {error}; mend or remove the row") from error
        if made is not None:
            found.append(made)
    if not found:
        raise UserError(f"dataset {name!r} has no row that can be used; name another dataset, config or split")
    return found


def text_in(row: Row, *columns: str, blank: bool = False) -> str:
    """The text in the first of these columns that the row has.

    Args:
        blank: whether it may be.

    Raises:
        ValueError: it has none of them, or what is there is no text, blank, or too long.
    """
    column = _column(row, columns)
    return _sound(row[column], column, blank=blank)


def texts_in(row: Row, *columns: str) -> tuple[str, ...]:
    """The list of texts in the first of these columns that the row has; see `text_in`."""
    column = _column(row, columns)
    value = row[column]
    if not isinstance(value, list):
        raise ValueError(f"{column} is no list of texts")
    return tuple(_sound(text, column) for text in value)


def _column(row: Row, columns: Sequence[str]) -> str:
    for column in columns:
        if column in row:
            return column
    raise ValueError(f"expected a column {' or '.join(columns)}, got {', '.join(map(str, row)) or 'none'}")


def _sound(value: object, column: str, *, blank: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{column} is {'empty' if value is None else 'no text'}; expected a text")
    if not blank and not value.strip():
        raise ValueError(f"{column} is blank; expected a text")
    if len(value) > _LONGEST:
        raise ValueError(f"{column} has {len(value):,} characters; expected {_LONGEST:,} at most")
    return value


def text_of_chat(chat: Sequence[tuple[str, str]]) -> str:
    """A conversation (role, content) as a judge reads it: the text alone where there is one turn."""
    return spoken([turn(role, content) for role, content in chat])


def stable_order(items: Sequence[_T], text: Callable[[_T], str], group: Callable[[_T], str | None]) -> list[_T]:
    """The items in an order that a hash of each text decides, one of each group in turn.

    Public sets are sorted by topic, so a head of the file would be one kind of prompt. A higher limit keeps what a
    lower one chose; the hash is another one than that which halves the documents.
    """
    places: list[tuple[int, str, _T]] = []
    seen: Counter[str | None] = Counter()
    for digest, item in sorted(((short_digest(f"order\n{text(i)}"), i) for i in items), key=lambda pair: pair[0]):
        places.append((seen[group(item)], digest, item))
        seen[group(item)] += 1
    return [item for _, _, item in sorted(places, key=lambda place: place[:2])]
