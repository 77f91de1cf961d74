"""Which document of ours a sample of lm-eval is about.

Our `document` is a hash of the task's name and of the document in canonical JSON (`harness._documents`). A sample
holds the document itself, after the task's `process_docs`, which is what we hash too. JSON gives back every text,
number, list and null as it was, so that the same hash can be made from it; lm-eval's `doc_hash`, a sha256 over the
document as JSON in its own layout, says whether it is still the one that was evaluated. Two exceptions:

- a task whose code changes its documents while they are scored logs the changed ones, and none fits its `doc_hash`.
  Such a task is paired by `doc_hash`: the runs of lm-eval with each other, but not with our own measurements;
- what JSON has no form for (numpy's numbers, sets, keys that are no texts) is written differently by lm-eval and by us.
  Documents from `datasets` hold none of it.

A run of chosen documents only (`--samples`) may lack the first of two equal ones: the second then passes for it.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from harness._documents import occurrences, short_digest

__all__ = ["fits", "identities_by_hash"]


def fits(document: Any, doc_hash: str) -> bool:  # noqa: ANN401  # any JSON value
    """Whether this is the document that lm-eval took the hash of."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() == doc_hash


def identities_by_hash(hashes: Sequence[str]) -> list[str]:
    """Ids made of lm-eval's own hashes: equal between its runs, and to ours only where a board was read back."""
    found = zip(hashes, occurrences(hashes), strict=True)
    return [short_digest(f"{one}{again}") if again else one[:16] for one, again in found]
