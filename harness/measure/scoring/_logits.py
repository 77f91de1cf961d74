"""Logits written into memory that is used again: on a CPU, fresh memory costs as much as computing them does."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

from harness.measure.scoring._products import plain_linear, product

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["logits_buffer", "written_into"]


def logits_buffer(model: "PreTrainedModel", rows: int) -> Tensor | None:
    """Memory for this many rows of logits, or None where the model's head is not a plain matrix on a CPU."""
    head = _plain_head(model)
    return head.weight.new_empty(rows, head.out_features, requires_grad=False) if head is not None and rows else None


def _plain_head(model: "PreTrainedModel") -> nn.Linear | None:
    head = model.get_output_embeddings()
    return head if isinstance(head, nn.Linear) and plain_linear(head) and head.bias is None else None


@contextlib.contextmanager
def written_into(model: "PreTrainedModel", buffer: Tensor | None) -> Iterator[None]:
    """Within this, the model's head writes its logits into `buffer`, if there is one: they hold until its next use."""
    head = _plain_head(model) if buffer is not None else None
    if buffer is None or head is None:
        yield
        return
    weight = head.weight.detach()

    def forward(hidden: Tensor) -> Tensor:
        flat = hidden.flatten(0, -2)
        return product(flat, weight, out=buffer[: len(flat)]).view(*hidden.shape[:-1], -1)

    vars(head)["forward"] = forward
    try:
        yield
    finally:
        del vars(head)["forward"]
