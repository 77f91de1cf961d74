"""Whether an exported model says what the model it was made from says: a few sequences through both."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.runtimes import open_runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from harness.runtimes import Runtime

__all__ = ["Agreement", "Reference", "compare", "reference_logits", "runtime_logits", "seeded_sequences"]

_LENGTHS = (24, 17, 9, 2)
"""Of the sequences, which are one left-padded batch."""

_DECODED = 1
"""Tokens at the end of each sequence that are given one pass each, behind the cache of those before."""


@dataclass(frozen=True)
class Agreement:
    """How two models' logits at the same places differ.

    Attributes:
        largest: the largest difference.
        relative: root mean square of the differences, over that of the logits' distances from their mean.
        greedy: share of the places where both have the same largest logit.
    """

    largest: float
    relative: float
    greedy: float


def seeded_sequences(vocabulary: int, seed: int) -> "list[NDArray[np.int64]]":
    """Random token ids, of unequal lengths."""
    draw = np.random.default_rng(seed)
    return [draw.integers(vocabulary, size=length) for length in _LENGTHS]


def reference_logits(model: "PreTrainedModel", sequences: "list[NDArray[np.int64]]") -> "NDArray[np.float32]":
    """torch's logits of every place [tokens in all, vocabulary]: each sequence by itself, without padding or cache."""
    import torch

    with torch.inference_mode():
        found = [model(input_ids=torch.from_numpy(s)[None], use_cache=False).logits[0].float() for s in sequences]
    whole: NDArray[np.float32] = torch.cat(found).numpy()
    return whole


def runtime_logits(runtime: "Runtime", sequences: "list[NDArray[np.int64]]") -> "NDArray[np.float32]":
    """The same from an exported model: one left-padded batch, and the last token of each behind the cache."""
    width = max(map(len, sequences))
    tokens = np.zeros((len(sequences), width), np.int64)
    mask = np.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        tokens[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = 1
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    first = width - _DECODED
    cache = runtime.empty(len(sequences))
    logits, cache = runtime.forward(tokens[:, :first], mask[:, :first], positions[:, :first], np.arange(first), cache)
    parts = [logits]
    for at in range(first, width):
        step = slice(at, at + 1)
        logits, cache = runtime.forward(tokens[:, step], mask[:, : at + 1], positions[:, step], np.arange(1), cache)
        parts.append(logits)
    whole: NDArray[np.float32] = np.concatenate(parts, axis=1)[mask == 1]
    return whole


def compare(right: "NDArray[np.float32]", found: "NDArray[np.float32]") -> Agreement:
    """Logits [places, vocabulary] of the model and of its export. Not finite ones give an infinite difference."""
    difference = np.abs(found.astype(np.float64) - right)
    if not np.isfinite(difference).all():
        return Agreement(float("inf"), float("inf"), 0.0)
    spread = right - right.mean(axis=1, keepdims=True, dtype=np.float64)
    return Agreement(
        largest=float(difference.max()),
        relative=float(np.sqrt((difference**2).mean() / (spread**2).mean())),
        greedy=float((found.argmax(axis=1) == right.argmax(axis=1)).mean()),
    )


class Reference:
    """torch's logits of the sequences of a seed, to which any number of exports is compared."""

    def __init__(self, model: "PreTrainedModel", seed: int) -> None:
        self.sequences = seeded_sequences(model.config.get_text_config().vocab_size, seed)
        self.logits = reference_logits(model, self.sequences)

    def agreement(self, folder: Path, backend: str) -> Agreement:
        """Open what was written in its own runtime, and compare it.

        Raises:
            UserError: the runtime is not installed, or cannot load it.
        """
        return compare(self.logits, runtime_logits(open_runtime(folder, backend), self.sequences))

    def agreement_read_back(self, folder: Path, file: str) -> Agreement:
        """Read a GGUF file with transformers' reader instead, and compare that."""
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        return compare(self.logits, reference_logits(model.eval(), self.sequences))
