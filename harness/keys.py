"""Content keys: the same inputs give the same key, on every machine and after every restart."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence

__all__ = ["canonical", "content_key"]


def canonical(value: object) -> object:
    """A JSON-ready form in which equal values are equal text.

    Mappings are sorted by key, tuples become lists. `1` and `1.0` stay different: settings are typed by a method's
    `Params` before they reach a key.

    Raises:
        TypeError: a type without a canonical form.
        ValueError: NaN or infinity, which no setting may be.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a key cannot hold {value!r}")
        return value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): canonical(value[k]) for k in sorted(value, key=str)}
    if isinstance(value, Sequence):
        return [canonical(v) for v in value]
    raise TypeError(f"a key cannot hold a {type(value).__name__}")


def content_key(kind: str, **fields: object) -> str:
    """sha256 (hex, 32 characters) over the canonical fields; `kind` keeps stages and measurements apart."""
    text = json.dumps([kind, canonical(fields)], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
