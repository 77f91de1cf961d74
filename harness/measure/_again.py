"""Measuring a model again, for the noise floor: the same documents, prompts and model, but in other batches.

What a document scores should not depend on which others are computed beside it, nor on the random numbers of a sampled
answer; in floating point, and with sampling, it does (He & Thinking Machines Lab 2025, "Defeating nondeterminism in LLM
inference"). A repeat is made in two parts and in smaller passes, and draws other random numbers.
"""

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

__all__ = ["PARTS", "fewer", "halves_of", "pass_tokens"]

PARTS = (0.5,)
"""Where a repeat divides its documents (`harness.rungs.split`)."""

T = TypeVar("T")


def fewer(size: int) -> int:
    """Another size of a batch: three quarters, so that its parts begin elsewhere."""
    return max(1, size * 3 // 4)


def pass_tokens(model: "PreTrainedModel", repeat: int) -> int | None:
    """Tokens of a forward pass at most; None for a first measurement: what suits the device."""
    from harness.measure.scoring import Budget

    return fewer(Budget.of(model.device).tokens) if repeat else None


def halves_of(items: "Sequence[T]", repeat: int) -> "list[Sequence[T]]":
    """What is computed together: all of a first measurement, every second one of a repeat."""
    return [part for part in (items[0::2], items[1::2]) if part] if repeat else [items]
