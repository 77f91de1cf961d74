"""What was said while a dataset was made, as rows of the store."""

from collections.abc import Sequence
from dataclasses import asdict

from harness.method import Record

__all__ = ["generation_rows"]


def generation_rows(stage: str, records: Sequence[Record]) -> list[dict[str, object]]:
    """Rows of table `generations`: one for each thing that was said."""
    return [{"stage": stage, **{name: _storable(v) for name, v in asdict(record).items()}} for record in records]


def _storable(value: object) -> object:
    # Half a character, which a JSON file of prompts can hold, is none of UTF-8.
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value
