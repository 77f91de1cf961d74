"""Attention over a packed row of tree segments: each attends to its ancestors (no mask) and to itself (causal).

The two parts are merged exactly by their log-sum-exp (Juravsky et al. 2024, "Hydragen", arXiv:2402.05099): no dense
tree mask, no padding outside the small self part, shared keys read once for all who share them.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["NAME", "AttentionPlan", "KeyValues", "TreePlan", "UnsupportedAttentionError", "attend", "tree_attention"]

NAME = "harness_prefix_tree"
"""The name under which transformers knows this attention implementation."""

KeyValues = list[tuple[Tensor, Tensor]]
"""Per layer: keys and values, each [1, KV heads, tokens, width]."""

_MATH_SCORES = 1 << 26
"""Largest number of attention scores held at once where there is no fused kernel that returns the log-sum-exp."""


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
        if mask is not None:
            mask = mask.expand(-1, -1, query.shape[2], -1)
        output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        return output, lse
    return _attend_math(query, key, value, scale, causal, mask)


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


@dataclass
class _Bucket:
    """Segments of similar length that attend to themselves together, padded on the right."""

    size: int
    gather: Tensor
    source: Tensor
    target: Tensor


@dataclass
class _Group:
    """Packed tokens `[low, high)` that attend to one path: slices of this pass and stored keys."""

    low: int
    high: int
    path: list[tuple[int, int] | KeyValues]


@dataclass
class TreePlan(AttentionPlan):
    """Attention over segments packed into one row.

    `lengths` of the packed segments in order; `groups` of neighbours with a common path; `keep` maps a segment's id to
    its slice whose keys and values later passes need: they appear in `kept`.
    """

    lengths: list[int]
    device: torch.device
    groups: list[_Group] = field(default_factory=list)
    keep: dict[int, tuple[int, int]] = field(default_factory=dict)
    kept: dict[int, KeyValues] = field(default_factory=dict)
    buckets: list[_Bucket | tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        offsets = [0]
        for length in self.lengths:
            offsets.append(offsets[-1] + length)
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        at = 0
        while at < len(order):
            size = self.lengths[order[at]]
            end = at + 1
            # Padding up to a third is cheaper than another kernel call; below 16 tokens calls are all that costs.
            while end < len(order) and self.lengths[order[end]] >= (0 if size <= 16 else 0.7 * size):
                end += 1
            members = sorted(order[at:end])
            if len(members) == 1:
                self.buckets.append((offsets[members[0]], offsets[members[0] + 1]))
            else:
                self.buckets.append(self._bucket(size, [(offsets[m], self.lengths[m]) for m in members]))
            at = end

    def _bucket(self, size: int, members: list[tuple[int, int]]) -> _Bucket:
        starts = torch.tensor([m[0] for m in members])
        lengths = torch.tensor([m[1] for m in members])
        steps = torch.arange(size)
        inside = steps < lengths[:, None]
        gather = (starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)).flatten()
        source = inside.flatten().nonzero()[:, 0]
        return _Bucket(size, *(t.to(self.device) for t in (gather, source, gather[source])))

    def add_group(self, low: int, high: int, path: list[tuple[int, int] | KeyValues]) -> None:
        """Let the packed tokens `[low, high)` attend to a path: slices of this pass, or stored keys and values."""
        self.groups.append(_Group(low, high, path))

    def run(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `AttentionPlan.run`."""
        heads, length, width = query.shape[1], query.shape[2], value.shape[-1]
        for segment, (low, high) in self.keep.items():
            self.kept.setdefault(segment, []).append((key[:, :, low:high].clone(), value[:, :, low:high].clone()))
        output = query.new_empty(length, heads, width)
        sums = query.new_empty(length, heads, dtype=torch.float32)
        for bucket in self.buckets:
            if isinstance(bucket, tuple):
                low, high = bucket
                parts = (x[:, :, low:high] for x in (query, key, value))
                part, lse = attend(*parts, scale=scale, causal=True)
                output[low:high] = part[0].transpose(0, 1)
                sums[low:high] = lse[0].T
            else:
                parts = (
                    x[0].index_select(1, bucket.gather).view(x.shape[1], -1, bucket.size, x.shape[-1]).transpose(0, 1)
                    for x in (query, key, value)
                )
                part, lse = attend(*parts, scale=scale, causal=True)
                output[bucket.target] = part.transpose(1, 2).flatten(0, 1)[bucket.source]
                sums[bucket.target] = lse.transpose(1, 2).flatten(0, 1)[bucket.source]
        if self.groups:
            shared = torch.zeros_like(output)
            shared_sums = torch.full_like(sums, float("-inf"))
            for group in self.groups:
                pairs = [
                    (key[:, :, p[0] : p[1]], value[:, :, p[0] : p[1]]) if isinstance(p, tuple) else p[self.layer]
                    for p in group.path
                ]
                keys, values = pairs[0] if len(pairs) == 1 else (torch.cat(x, 2) for x in zip(*pairs, strict=True))
                part, lse = attend(query[:, :, group.low : group.high], keys, values, scale=scale)
                shared[group.low : group.high] = part[0].transpose(0, 1)
                shared_sums[group.low : group.high] = lse[0].T
            # exp(b) / (exp(a) + exp(b)) is the weight of the second part in a softmax over both.
            weight = torch.sigmoid(shared_sums - sums)[..., None]
            output = torch.lerp(output.float(), shared.float(), weight).to(output.dtype)
        return output[None]
