"""A dataset as an artifact: what a step has made, as rows of JSON beside the manifest."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness._rows import rows_of_kind
from harness.errors import UserError
from harness.method import DatasetKind

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["made_dataset", "made_rows", "save_made"]

_FILE = "rows.jsonl"


def save_made(rows: Sequence[Mapping[str, object]], kind: DatasetKind | None, label: str, folder: Path) -> None:
    """Write the rows into an artifact's folder.

    Raises:
        UserError: there are none, or they do not make the kind: the method's mistake, found before anyone trains on it.
    """
    import datasets

    if not rows:
        raise UserError(f"{label}: no row came out; nothing could be learned from it")
    if kind is not None:
        rows_of_kind(datasets.Dataset.from_list([dict(row) for row in rows]), kind, label)
    lines = "".join(json.dumps(row, ensure_ascii=True, allow_nan=False) + "\n" for row in rows)
    (folder / _FILE).write_text(lines, encoding="utf-8")


def made_rows(folder: Path) -> list[dict[str, object]]:
    """The rows of a complete artifact, as they were given."""
    with (folder / _FILE).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def made_dataset(folder: Path, kind: DatasetKind) -> "Dataset":
    """The rows as a dataset of their kind, in order."""
    import datasets

    return rows_of_kind(datasets.Dataset.from_list(made_rows(folder)), kind, "made")
