"""The choices of multiple-choice documents: how many there are, and which one an answer is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.gates._evidence import Asked, Documents, Evidence

if TYPE_CHECKING:
    from harness.measure.tasks import LeafTask

__all__ = ["Choices", "choices_of", "is_ranked", "recorded_counts"]

_LABELS = 10
"""Answers that are labels (A to D, yes and no) come in so few forms; texts of their own differ by document."""
_STORED = 200
"""Characters of an answer that the evidence keeps."""


@dataclass(frozen=True)
class Choices:
    """How many choices each document has (`leaf/document` → number), and the texts of each.

    Without the documents the choices are the labels seen in the answers, the same for all; `seen` is then true.
    """

    counts: Mapping[str, int]
    texts: Mapping[str, list[str]]
    seen: bool

    def label(self, document: str, text: object) -> str | None:
        """The choice that an answer to a document is: its own label, or its place; None where it is none of them."""
        found = self.texts[document]
        if text not in found:
            return None
        return str(text) if self.seen else f"choice {found.index(str(text)) + 1}"


def is_ranked(one: Asked) -> bool:
    """Whether the model chose between given answers; else it wrote its own."""
    return one.kind == "task" and one.metric.startswith("acc")


def recorded_counts(one: Asked) -> dict[str, int]:
    """How many choices each document had (`leaf/document` → number), as it was recorded; {} where it was not."""
    if not one.recorded or any(r.choices is None for r in one.recorded.values()):
        return {}
    counts: dict[str, int] = {}
    for rows in one.seeds.values():
        for leaf, document in rows.select("leaf", "document").unique().iter_rows():
            requests = one.recorded[leaf]
            counts[f"{leaf}/{document}"] = (requests.other_choices or {}).get(document, requests.choices or 0)
    return counts


def choices_of(evidence: Evidence, one: Asked) -> Choices | str:
    """The choices of a ranked task's documents, or why they are not known."""
    import polars as pl

    rows = pl.concat([r.select("leaf", "document", "response", "expected") for r in one.of(one.metric).values()])
    names = [f"{leaf}/{document}" for leaf, document in rows.select("leaf", "document").iter_rows()]
    labels = sorted({str(t) for column in ("response", "expected") for t in rows[column].drop_nulls()})
    documents = evidence.documents(one)
    if isinstance(documents, str):
        # More texts than choices are no labels.
        most = max(recorded_counts(one).values(), default=_LABELS)
        if len(labels) <= most and 2 <= len(labels) <= min(_LABELS, len(set(names)) / 2):
            return Choices(dict.fromkeys(names, len(labels)), dict.fromkeys(names, labels), seen=True)
        return f"its choices are not known: {documents}"
    texts: dict[str, list[str]] = {}
    for leaf, document in rows.select("leaf", "document").unique(maintain_order=True).iter_rows():
        found = _texts(documents, leaf, document)
        if found is None:
            return f"lm-eval lists no choices for the documents of {leaf}"
        texts[f"{leaf}/{document}"] = found
    return Choices({name: len(found) for name, found in texts.items()}, texts, seen=False)


def _texts(documents: Documents, leaf: str, document: str) -> list[str] | None:
    task: LeafTask = documents.leaves[leaf]
    try:
        listed = task.task.doc_to_choice(dict(documents.by_identity[leaf][document]))
    except Exception:  # noqa: BLE001  # a task's own code over its rows; what it raises says that it has no choices
        return None
    if not isinstance(listed, list | tuple) or len(listed) < 2:
        return None
    return [str(text).strip()[:_STORED] for text in listed]
