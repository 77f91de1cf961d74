"""Which weights of a linear layer become zero: by size alone, by Wanda, by SparseGPT.

Wanda and SparseGPT are llmcompressor's, its functions for one layer: its own loop over the layers would trace the
model, untie its embeddings, put wrappers around its weights and its methods, and leave them there.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Protocol

from harness.errors import InfeasibleError, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Criterion", "Observer", "Pattern", "magnitude", "observers", "zero_fraction"]

Criterion = Literal["magnitude", "wanda", "sparsegpt"]
Pattern = Literal["unstructured", "2:4"]

_BLOCK = 128
"""Columns that SparseGPT decides on together, as in the paper."""
_DAMPENING = 0.01
"""Part of its mean that is added to the Hessian's diagonal, as in the paper."""


class Observer(Protocol):
    """Sees the inputs of one linear layer, then says what its weights become."""

    def see(self, inputs: "Tensor") -> None:
        """Take in the inputs of one row, 1 × tokens × columns."""

    def pruned(self) -> "Tensor":
        """The weights after pruning, rows × columns; the layer is not changed."""


def magnitude(weight: "Tensor", sparsity: float, pattern: Pattern) -> "Tensor":
    """The weights without the smallest, compared over the whole matrix or in fours along a row; rows × columns."""
    import torch

    size = weight.detach().abs()
    if pattern == "2:4":
        size = size.reshape(-1, 4)
        drop = torch.zeros_like(size, dtype=torch.bool).scatter(1, size.topk(2, dim=1, largest=False).indices, True)
    else:
        # By index and not by threshold, which equal weights would pass together.
        least = size.flatten().argsort(stable=True)[: round(sparsity * size.numel())]
        drop = torch.zeros(size.numel(), dtype=torch.bool, device=size.device).index_fill(0, least, True)
    return weight.detach().masked_fill(drop.reshape(weight.shape), 0)


@contextlib.contextmanager
def observers(criterion: Criterion, sparsity: float, pattern: Pattern) -> "Iterator[Callable[[nn.Linear], Observer]]":
    """What makes an observer of a layer.

    Raises:
        UserError: llmcompressor is not installed.
        InfeasibleError: on leaving, if SparseGPT could not invert a Hessian.
    """
    try:
        from llmcompressor.modifiers.pruning.sparsegpt import sgpt_sparsify
        from llmcompressor.modifiers.pruning.wanda import wanda_sparsify
        from loguru import logger
    except ImportError as error:
        raise UserError(
            f"criterion {criterion} is llmcompressor's (0.14), which cannot be imported ({error}); install it with: "
            "pip install 'posttrain-harness[compression]', or use criterion: magnitude"
        ) from error
    ratio = (2, 4) if pattern == "2:4" else (0, 0)

    class Wanda:
        """|weight| · norm of its input, compared along a row (Sun et al. 2023, arXiv:2306.11695)."""

        def __init__(self, layer: "nn.Linear") -> None:
            self.layer, self.rows = layer, 0
            self.squares = wanda_sparsify.make_empty_row_scalars(layer)

        def see(self, inputs: "Tensor") -> None:
            self.squares, self.rows = wanda_sparsify.accumulate_row_scalars(inputs, self.layer, self.squares, self.rows)

        def pruned(self) -> "Tensor":
            _check(self.squares)
            weight: Tensor = wanda_sparsify.sparsify_weight(self.layer, {self.layer: self.squares}, sparsity, *ratio)
            return weight

    class SparseGPT:
        """Column by column, the columns after making up for the error (Frantar & Alistarh 2023, arXiv:2301.00774)."""

        def __init__(self, layer: "nn.Linear") -> None:
            self.layer, self.rows = layer, 0
            self.hessian = sgpt_sparsify.make_empty_hessian(layer)

        def see(self, inputs: "Tensor") -> None:
            self.hessian, self.rows = sgpt_sparsify.accumulate_hessian(inputs, self.layer, self.hessian, self.rows)

        def pruned(self) -> "Tensor":
            _check(self.hessian)
            settings = (sparsity, *ratio, _BLOCK, _DAMPENING)
            # Its return type is wrong: loss and weights.
            found: Any = sgpt_sparsify.sparsify_weight(
                self.layer, {self.layer: self.hessian}, *settings, preserve_sparsity_mask=False
            )
            weight: Tensor = found[1]
            return weight

    # Where a Hessian cannot be inverted, llmcompressor warns and goes on as if it were 1: another method.
    warned: list[str] = []
    logger.enable("llmcompressor")
    sink = logger.add(warned.append, level="WARNING", filter="llmcompressor", format="{message}")
    try:
        yield Wanda if criterion == "wanda" else SparseGPT
    finally:
        logger.remove(sink)
    if warned:
        raise InfeasibleError(f"{criterion}: {warned[0].strip()}")


def _check(statistic: "Tensor") -> None:
    if not bool(statistic.isfinite().all()):
        raise InfeasibleError("the inputs of a layer are not finite on the calibration rows")


def zero_fraction(layers: "list[nn.Linear]") -> float:
    """The part of these layers' weights that is zero."""
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    return zeros / sum(layer.weight.numel() for layer in layers)
