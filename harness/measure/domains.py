"""Held-out loss on domains: how well a model still foretells the answers of each, by which forgetting is measured.

Each document is a prompt with its answer, encoded as training encodes it, so that the loss of a domain is what training
on it brings down.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.data import Half, half_of
from harness.errors import UserError
from harness.measure._again import halves_of, pass_tokens
from harness.method import LoadedModel
from methods._rows import encode

__all__ = ["DomainDocument", "domain_documents", "domain_fingerprint", "domain_overlap", "measure_domain"]

Row = dict[str, object]
Turns = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class DomainDocument:
    """A prompt and its answer, as turns, with its identity and half."""

    prompt: Turns
    completion: Turns
    identity: str
    half: Half


def _turns(row: Mapping[str, Any], name: str) -> list[dict[str, str]]:
    return [{"role": str(t["role"]), "content": str(t["content"])} for t in row[name]]


def domain_documents(rows: Iterable[Mapping[str, Any]], limit: int | None = None) -> list[DomainDocument]:
    """The first rows of a set of kind instructions, each once.

    Raises:
        UserError: there are none.
    """
    found: dict[str, DomainDocument] = {}
    for row in rows:
        if limit is not None and len(found) == limit:
            break
        prompt, completion = _turns(row, "prompt"), _turns(row, "completion")
        text = json.dumps([prompt, completion], sort_keys=True, ensure_ascii=True)
        identity = hashlib.sha256(f"domain\n{text}".encode()).hexdigest()[:16]
        found.setdefault(identity, DomainDocument(prompt, completion, identity, half_of(text)))
    if not found:
        raise UserError("the dataset has no rows")
    return list(found.values())


def domain_fingerprint(rows: Iterable[Mapping[str, Any]], limit: int | None = None) -> str:
    """sha256 (32 hex characters) over the documents within the limit: for the measurement's key."""
    identities = "\n".join(d.identity for d in domain_documents(rows, limit))
    return hashlib.sha256(identities.encode()).hexdigest()[:32]


def domain_overlap(documents: Iterable[DomainDocument], trained: Iterable[Mapping[str, Any]]) -> int:
    """How many documents are rows of a training set, answer and all."""
    known = {(str(_turns(row, "prompt")), str(_turns(row, "completion"))) for row in trained}
    return sum((str(list(d.prompt)), str(list(d.completion))) in known for d in documents)


def measure_domain(
    loaded: LoadedModel,
    documents: Sequence[DomainDocument],
    halves: Iterable[Half],
    *,
    progress: Callable[[int, int], None] | None = None,
    repeat: int = 0,
) -> list[Row]:
    """The model's loss on each document of these halves.

    Metrics, a row each and document:
        loss: mean over the answer's tokens, its end included, of -log p (nats per token).
        token_accuracy: part of the answer's tokens that are the likeliest in their place, in [0, 1].

    Args:
        repeat: number of the repeat, for the noise floor: other than 0, documents meet in other batches.

    Returns:
        Rows of the table `samples` without the measurement's key.

    Raises:
        UserError: no chat template, or a document that is longer than the model's window.
        MeasurementError: a loss is NaN or infinite.
    """
    from harness.measure.scoring import Engine

    wanted = set(halves)
    asked = [d for d in documents if d.half in wanted]
    if not asked:
        return []
    encoded = [encode(loaded.tokenizer, d.prompt, d.completion) for d in asked]
    window = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(prompt) + len(answer) for prompt, answer in encoded)
    if window is not None and longest > window:
        raise UserError(f"a document has {longest} tokens, more than the model's window of {window}; take it out")
    # A token each: the engine computes every shared position once, so that one pass gives all of a document.
    places = [(d, k) for d, (_, answer) in enumerate(encoded) for k in range(len(answer))]
    engine = Engine(loaded.model, pass_tokens(loaded.model, repeat))
    sums, right = [0.0] * len(asked), [0] * len(asked)
    for part in halves_of(places, repeat):
        pairs = [([*encoded[d][0], *encoded[d][1][: k + 1]], 1) for d, k in part]
        for (d, _), (value, best) in zip(part, engine.score(pairs, progress), strict=True):
            sums[d] += value
            right[d] += best
    rows: list[Row] = []
    for d, document in enumerate(asked):
        prompt = json.dumps(list(document.prompt), sort_keys=True, ensure_ascii=False)
        shared: Row = {
            "document": document.identity,
            "half": document.half,
            "prompt_hash": hashlib.sha256(json.dumps(encoded[d][0]).encode()).hexdigest()[:16],
            "response": None,
            "expected": "\n".join(t["content"] for t in document.completion),
            "prompt": prompt if len(document.prompt) > 1 else document.prompt[0]["content"],
        }
        tokens = len(encoded[d][1])
        rows.append({**shared, "metric": "loss", "score": -sums[d] / tokens})
        rows.append({**shared, "metric": "token_accuracy", "score": right[d] / tokens})
    return rows
