"""Causal attention for PPO's two shapes of work, quicker on a CPU than torch's fused kernel, equal up to rounding.

Measured with a 135M Llama (9 heads over 3), bfloat16, one thread. Training on 16 x 92 tokens: 38 ms a layer forward and
backward with the fused kernel, 15 ms with plain matrix products. Decoding a batch of 32 over 92 positions: repeating
keys and values for the query heads takes 0.73 ms a layer, grouping the query heads 0.25 ms.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["PLAIN_LIMIT", "plain_attention", "quick_attention"]

_NAME = "harness_ppo"

PLAIN_LIMIT = 256
"""Above this many keys the score matrices that plain attention keeps for the backward pass cost too much memory."""


def plain_attention(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """Attention by plain matrix products: [B, H, T, D], [B, K, M, D], [B, K, M, D] → [B, T, H, D].

    `hidden`, [B or 1, T, M], says what each query may not attend to.
    """
    rows, heads, length, width = query.shape
    kv_heads, size = key.shape[1:3]
    # The query heads of one key head stand where query positions would: no key or value is copied.
    grouped = query.reshape(rows, kv_heads, -1, width)
    scores = (grouped @ key.transpose(2, 3)).view(rows, kv_heads, -1, length, size).float() * scale
    weights = scores.masked_fill(hidden[:, None, None], float("-inf")).softmax(-1).to(value.dtype)
    return (weights.view(rows, kv_heads, -1, size) @ value).view(rows, heads, length, width).transpose(1, 2)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,  # noqa: ANN401 -- the interface's own keyword arguments, handed on untouched
) -> tuple[Tensor, Tensor | None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, length, width = query.shape
    groups = key.shape[1]
    plain = dropout == 0.0 and is_causal is not False and not any(v is not None for k, v in kwargs.items() if k in _ODD)
    if plain and length == 1 and attention_mask is not None:
        # The query heads of one key head stand where query positions would: no key or value is copied.
        grouped = query.reshape(rows, groups, heads // groups, width)
        out = torch.nn.functional.scaled_dot_product_attention(
            grouped.to(value.dtype), key.to(value.dtype), value, attn_mask=attention_mask, scale=scaling
        )
        return out.reshape(rows, 1, heads, width), None
    if (
        plain
        and attention_mask is None
        and query.device.type == "cpu"
        and 1 < length <= PLAIN_LIMIT
        and key.shape[2] == length
    ):
        future = torch.ones(1, length, length, dtype=torch.bool, device=query.device).triu(1)
        return plain_attention(query, key, value, future, width**-0.5 if scaling is None else scaling), None
    result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )
    return result


_ODD = frozenset({"position_bias", "softcap", "s_aux"})
"""Arguments of attention variants that the plain paths do not compute."""


@contextlib.contextmanager
def quick_attention(*models: Any) -> Iterator[None]:  # noqa: ANN401 -- transformers models are untyped here
    """Let these models use it within the block; a model that does not run on `sdpa` keeps its own attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    switched = [
        m for m in models if m.config._attn_implementation == "sdpa" and getattr(m, "_supports_attention_backend", 0)
    ]
    try:
        for model in switched:
            model.set_attn_implementation(_NAME)
        yield
    finally:
        for model in switched:
            model.set_attn_implementation("sdpa")
