"""Which document of ours a sample of lm-eval is about.

Our `document` is a hash of the task's name and of the document in canonical JSON (`harness.measure.tasks`). A sample
holds the document itself, after the task's `process_docs`, which is what we hash too. JSON gives back every text,
number, list and null as it was, so that the same hash can be made from it; lm-eval's `doc_hash`, a sha256 over the
document as JSON in its own layout, says whether it is still the one that was evaluated. Two exceptions:

- a task whose code changes its documents while they are scored logs the changed ones, and none fits its `doc_hash`.
  Such a task is paired by `doc_hash`: the runs of lm-eval with each other, but not with our own measurements;
- what JSON has no form for (numpy's numbers, sets, keys that are no texts) is written differently by lm-eval and by us.
  Documents from `datasets` hold none of it.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

__all__ = ["canonical_document", "fits", "identities", "identities_by_hash", "short_digest"]


def canonical_document(document: object) -> str:
    """The document as the text whose hash identifies it; as `harness.measure.tasks` has it."""
    return json.dumps(document, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def short_digest(text: str) -> str:
    """sha256 of a text, 16 hex characters."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fits(document: Any, doc_hash: str) -> bool:  # noqa: ANN401  # any JSON value
    """Whether this is the document that lm-eval took the hash of."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() == doc_hash


def identities(task: str, texts: Sequence[str]) -> list[str]:
    """Our ids of documents, given as canonical texts in the task's order; each occurrence of one has an id of its own.

    A run of chosen documents only (`--samples`) may lack the first of two equal ones: the second then passes for it.
    """
    return [short_digest(f"{task}\n{text}{again}") for text, again in zip(texts, _occurrences(texts), strict=True)]


def identities_by_hash(hashes: Sequence[str]) -> list[str]:
    """Ids made of lm-eval's own hashes: equal between runs of lm-eval, and never equal to ours."""
    found = zip(hashes, _occurrences(hashes), strict=True)
    return [short_digest(f"{one}{again}") if again else one[:16] for one, again in found]


def _occurrences(texts: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    marks = []
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
        marks.append(f"#{seen[text]}" if seen[text] > 1 else "")
    return marks
