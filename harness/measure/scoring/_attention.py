"""Attention that follows a plan instead of a mask: what transformers calls in every layer, and the kernel under it."""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

__all__ = ["NAME", "AttentionPlan", "KeyValues", "UnsupportedAttentionError", "attend", "tree_attention"]

NAME = "harness_prefix_tree"
"""The name under which transformers knows this attention implementation."""

KeyValues = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values, each [1, KV heads, tokens, width]."""

_MATH_SCORES = 1 << 26
"""Largest number of attention scores held at once where there is no fused kernel that returns the log-sum-exp."""

_BLOCK = 64
"""Queries of a causal segment that are attended from together."""
_LONGEST = 2048
"""From here on the kernel's own blocks are as good."""


class UnsupportedAttentionError(Exception):
    """The model's attention does something a tree of segments cannot express (a window, a cap, sinks)."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention with its log-sum-exp.

    Shapes: query [B, H, N, D]; key and value [B, G, M, D] with H a multiple of G; mask [B, 1, 1, M], added to
    the scores.

    Returns:
        The output [B, H, N, D] in the query's type and the log-sum-exp [B, H, N] in fp32.
    """
    if query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        if causal and mask is None and 2 * _BLOCK <= query.shape[2] == key.shape[2] <= _LONGEST:
            return _attend_causal(query, key, value, scale)
        if not causal:
            return _attend_folded(query, key, value, scale, mask)
        return _flash(query, key, value, scale, causal, mask)
    return _attend_math(query, key, value, scale, causal, mask)


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    if mask is not None:
        mask = mask.expand(len(query), -1, query.shape[2], -1)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=mask, scale=scale
    )
    return output, lse


def _attend_folded(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    # Where every query sees every key, heads that share keys are as good as further queries of one head: the kernel
    # then reads the keys once for all of them, and a single query in bf16 (decoding) takes it a quarter of the time.
    batch, heads, length, width = query.shape
    folded = query.reshape(batch, key.shape[1], -1, width)
    output, lse = _flash(folded, key, value, scale, causal=False, mask=mask)
    return output.reshape(batch, heads, length, width), lse.reshape(batch, heads, length)


def _attend_causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    # The kernel skips what lies ahead of a query in blocks of 512 keys only: below that it computes all of a square of
    # which half is wanted.
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    output = query.new_empty(batch, length, heads, width).transpose(1, 2)
    sums = query.new_empty(batch, heads, length, dtype=torch.float32)
    ahead = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool).triu(1)
    # Columns from `length` on are the block's own tokens, those before it the tokens that all of the block see.
    mask = torch.zeros(_BLOCK, length + _BLOCK, dtype=query.dtype)
    mask[:, length:].masked_fill_(ahead, -math.inf)
    for low in range(0, length, _BLOCK):
        high = min(length, low + _BLOCK)
        size = high - low
        rows = query[:, :, low:high].reshape(batch, groups, -1, width)
        hidden = mask[:size, length - low : length + size].repeat(heads // groups, 1)[None, None]
        part, lse = _flash(rows, key[:, :, :high], value[:, :, :high], scale, causal=False, mask=hidden)
        output[:, :, low:high] = part.reshape(batch, heads, size, width)
        sums[:, :, low:high] = lse.reshape(batch, heads, size)
    return output, sums


def _attend_math(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    groups, size = key.shape[1:3]
    query = query.reshape(batch, groups, heads // groups, length, -1)
    keys, values = key[:, :, None].transpose(-1, -2), value[:, :, None]
    step = max(1, _MATH_SCORES // (batch * heads * size))
    outputs, sums = [], []
    for at in range(0, length, step):
        scores = (query[:, :, :, at : at + step] @ keys).float() * scale
        if mask is not None:
            scores = scores + mask[:, :, None]
        if causal:
            rows = torch.arange(at, at + scores.shape[-2], device=query.device)[:, None]
            scores = scores.masked_fill(torch.arange(size, device=query.device) > rows, float("-inf"))
        lse = scores.logsumexp(-1, keepdim=True)
        outputs.append((scores - lse).exp().to(value.dtype) @ values)
        sums.append(lse[..., 0])
    return torch.cat(outputs, -2).flatten(1, 2), torch.cat(sums, -1).flatten(1, 2)


class AttentionPlan(ABC):
    """What the attention of one forward pass has to do; `layer` counts its calls."""

    layer: int = 0

    @abstractmethod
    def run(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """[1, H, N, D], [1, G, N, D], [1, G, N, D] → [1, N, H, D]."""

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Let the model's attention follow this plan."""
        self.layer = 0
        token = _PLAN.set(self)
        try:
            yield
        finally:
            _PLAN.reset(token)


_PLAN: ContextVar[AttentionPlan] = ContextVar("_PLAN")

# Arguments that leave the result as it is; any other one that is set means a kind of attention not known here.
_HARMLESS = {"position_ids", "output_attentions", "use_cache", "cache_position", "return_dict", "num_items_in_batch"}


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,  # noqa: ANN401 (transformers' attention interface)
) -> tuple[Tensor, None]:
    """The function transformers calls in every layer (see `transformers.AttentionInterface`)."""
    other = {k for k, v in kwargs.items() if k not in _HARMLESS and v is not None and v is not False}
    if kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise UnsupportedAttentionError("attention that is not causal")
    if other - {"is_causal"}:
        raise UnsupportedAttentionError(f"attention with {', '.join(sorted(other))}")
    if attention_mask is not None:
        raise UnsupportedAttentionError("attention with a mask of its own")
    plan = _PLAN.get()
    output = plan.run(query, key, value, query.shape[-1] ** -0.5 if scaling is None else scaling)
    plan.layer += 1
    return output, None
