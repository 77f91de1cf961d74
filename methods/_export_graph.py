"""A causal language model as one graph with its cache of keys and values as inputs and outputs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from harness.errors import UserError

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from transformers import PreTrainedModel

__all__ = ["CachedGraph", "capture"]


class CachedGraph(nn.Module):
    """The model's forward pass over tokens behind any past, by explicit positions and an explicit mask.

    Prefill is the same graph with a past of no token. Attention is restricted by a mask made here, and not by the
    model's own, so that one graph serves every past, every padding and every length.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        logit_rows: Tensor,
        past: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Shapes as in `harness.runtimes.CONTROLS`; past: key and value of each layer, [B, heads, P, width].

        Returns:
            Logits [B, K, vocabulary], then key and value of each layer, [B, heads, P + T, width].
        """
        cache = DynamicCache(config=self.model.config)
        for layer, key, value in zip(cache.layers, past[::2], past[1::2], strict=True):
            # Not through `update`: it begins by joining a tensor of no dimension, which OpenVINO cannot read.
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value
        length, total = input_ids.shape[1], attention_mask.shape[1]
        own = torch.arange(length)[:, None] + (total - length)
        seen = (torch.arange(total)[None] <= own)[None, None] & (attention_mask != 0)[:, None, None]
        # The smallest number and not -inf: a row of padding sees nothing, and would be NaN.
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logit_rows,
        )
        present = [part for layer in output.past_key_values.layers for part in (layer.keys, layer.values)]
        return output.logits, *present


def capture(model: "PreTrainedModel") -> tuple["ExportedProgram", int, int]:
    """The model's graph, with batch, past and length left open, its layers, and the heads of keys and values of each.

    Raises:
        UserError: its cache is not one of plain growing keys and values, or torch cannot trace it.
    """
    cache = DynamicCache(config=model.config)
    odd = sorted({type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer})
    if odd:
        raise UserError(
            f"export: {type(model).__name__} keeps a cache of {', '.join(odd)}; only full attention is exported"
        )
    example, dynamic = _example(model, len(cache.layers))
    try:
        with torch.no_grad():
            program = torch.export.export(CachedGraph(model).eval(), example, dynamic_shapes=dynamic, strict=False)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        # What torch raises for code that it cannot trace depends on the code.
        raise UserError(f"export: torch cannot trace {type(model).__name__} into one graph: {error}") from error
    return program, len(cache.layers), example[-1][0].shape[1]


def _example(model: "PreTrainedModel", layers: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Example inputs, of sizes that torch does not take for constants, and which of their axes are open."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    batch, past, length = 2, 3, 5
    parts = [torch.zeros(batch, heads, past, width) for _ in range(2 * layers)]
    example = (
        torch.ones(batch, length, dtype=torch.long),
        torch.ones(batch, past + length, dtype=torch.long),
        torch.arange(past, past + length).repeat(batch, 1),
        torch.arange(length - 1),
        parts,
    )
    open_ = torch.export.Dim.DYNAMIC
    both = {0: open_, 1: open_}
    return example, (both, both, both, {0: open_}, [{0: open_, 2: open_}] * len(parts))
