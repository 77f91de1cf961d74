"""What was said while a dataset was made, as rows of the store."""

from collections.abc import Sequence
from dataclasses import asdict

from harness.method import Record

__all__ = ["generation_rows"]


def generation_rows(stage: str, records: Sequence[Record]) -> list[dict[str, object]]:
    """Rows of table `generations`: one for each thing that was said."""
    return [{"stage": stage, **asdict(record)} for record in records]
