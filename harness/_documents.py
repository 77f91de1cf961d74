"""What a document and a figure of it are called, whoever measured them: what is to be paired goes by these names."""

import hashlib
import json
from collections.abc import Collection, Sequence

__all__ = ["canonical_document", "identities", "metric_name", "occurrences", "short_digest"]


def canonical_document(document: object) -> str:
    """The document as the text whose hash identifies it."""
    return json.dumps(document, sort_keys=True, ensure_ascii=True, separators=(",", ":"), default=str)


def short_digest(text: str) -> str:
    """sha256 of a text, 16 hex characters."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def identities(task: str, texts: Sequence[str]) -> list[str]:
    """The ids of a task's documents, given as canonical texts in its order; each occurrence has an id of its own."""
    return [short_digest(f"{task}\n{text}{again}") for text, again in zip(texts, occurrences(texts), strict=True)]


def occurrences(texts: Sequence[str]) -> list[str]:
    """Empty for the first occurrence of a text, `#2` for the second, …: some benchmarks hold a document twice."""
    seen: dict[str, int] = {}
    marks = []
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
        marks.append(f"#{seen[text]}" if seen[text] > 1 else "")
    return marks


def metric_name(metric: str, used: str, filters: Collection[str]) -> str:
    """A metric under one of lm-eval's filters: `exact_match` under `strict-match` is `exact_match_strict`."""
    if used == "none":
        return metric
    short = used.partition("-")[0]
    unique = sum(f.partition("-")[0] == short for f in filters) == 1
    return f"{metric}_{short if unique else used}"
