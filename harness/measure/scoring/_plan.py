"""Attention over a packed row of tree segments: each attends to its ancestors (no mask) and to itself (causal).

The two parts are merged exactly by their log-sum-exp (Juravsky et al. 2024, "Hydragen", arXiv:2402.05099): no dense
tree mask, little padding, and keys that many tokens share are read once for all of them.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.measure.scoring._attention import AttentionPlan, KeyValues, attend

__all__ = ["TreePlan"]

_GATHERED_SCORES = 1 << 17
"""Groups with fewer attention scores attend together: their keys are copied, which costs less than a call for each."""


@dataclass
class _Bucket:
    """Runs of packed tokens of similar length, padded on the right, that attend in one call: to themselves, or to keys.

    `keys` [B, M] are places among the packed tokens and, after them, stored ones; `mask` [B, 1, 1, M] hides padding.
    """

    size: int
    gather: Tensor
    source: Tensor
    target: Tensor
    keys: Tensor | None = None
    mask: Tensor | None = None


@dataclass
class _Group:
    """Packed tokens `[low, high)` that attend to one path: slices of this pass and stored keys."""

    low: int
    high: int
    path: list[tuple[int, int] | KeyValues]

    @property
    def size(self) -> int:
        """How many tokens."""
        return self.high - self.low

    @property
    def path_length(self) -> int:
        """How many keys they attend to."""
        return sum(_length(part) for part in self.path)


def _length(part: tuple[int, int] | KeyValues) -> int:
    return part[1] - part[0] if isinstance(part, tuple) else int(part[0][0].shape[2])


def _alike(size: int, length: int) -> bool:
    # Padding up to a third is cheaper than another kernel call; below 16 tokens calls are all that costs.
    return size <= 16 or length >= 0.7 * size


@dataclass
class TreePlan(AttentionPlan):
    """Attention over segments packed into one row.

    `lengths` of the packed segments in order; `groups` of neighbours with a common path; `keep` maps a segment's id to
    its slice whose keys and values later passes need: they appear in `kept`.
    """

    lengths: list[int]
    device: torch.device
    dtype: torch.dtype
    groups: list[_Group] = field(default_factory=list)
    keep: dict[int, tuple[int, int]] = field(default_factory=dict)
    kept: dict[int, KeyValues] = field(default_factory=dict)
    buckets: list[_Bucket | tuple[int, int]] = field(default_factory=list)
    _shared: list[_Bucket] = field(default_factory=list)
    _stored: list[KeyValues] = field(default_factory=list)

    def __post_init__(self) -> None:
        offsets = [0]
        for length in self.lengths:
            offsets.append(offsets[-1] + length)
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        at = 0
        while at < len(order):
            size = self.lengths[order[at]]
            end = at + 1
            while end < len(order) and _alike(size, self.lengths[order[end]]):
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

    def gather_groups(self) -> None:
        """Let small groups of similar size attend together. Call it when every group is added."""
        small = [g for g in self.groups if g.size * g.path_length <= _GATHERED_SCORES]
        order = sorted(small, key=lambda g: (-g.path_length, -g.size))
        at = 0
        while at < len(order):
            end = at + 1
            while end < len(order) and _alike(order[at].path_length, order[end].path_length):
                end += 1
            # Of groups with paths alike, those with as many tokens.
            block = sorted(order[at:end], key=lambda g: -g.size)
            low = 0
            while low < len(block):
                high = low + 1
                while high < len(block) and _alike(block[low].size, block[high].size):
                    high += 1
                if high - low > 1:
                    self._gather(block[low:high])
                low = high
            at = end

    def _gather(self, members: list[_Group]) -> None:
        bucket = self._bucket(max(g.size for g in members), [(g.low, g.size) for g in members])
        longest = max(g.path_length for g in members)
        keys = torch.zeros(len(members), longest, dtype=torch.long)
        mask = torch.zeros(len(members), 1, 1, longest, dtype=self.dtype)
        for row, group in enumerate(members):
            places = torch.cat([self._places(part) for part in group.path])
            keys[row, : len(places)] = places
            mask[row, :, :, len(places) :] = float("-inf")
        bucket.keys = keys.flatten().to(self.device)
        bucket.mask = mask.to(self.device)
        self._shared.append(bucket)
        chosen = {id(g) for g in members}
        self.groups = [g for g in self.groups if id(g) not in chosen]

    def _places(self, part: tuple[int, int] | KeyValues) -> Tensor:
        if isinstance(part, tuple):
            return torch.arange(*part)
        start = sum(self.lengths)
        for stored in self._stored:
            if stored is part:
                return torch.arange(start, start + _length(part))
            start += _length(stored)
        self._stored.append(part)
        return torch.arange(start, start + _length(part))

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
                rows = len(bucket.gather) // bucket.size
                parts = (_rows(x[0], bucket.gather, rows) for x in (query, key, value))
                _put(bucket, *attend(*parts, scale=scale, causal=True), output, sums)
        if self.groups or self._shared:
            shared = torch.zeros_like(output)
            shared_sums = torch.full_like(sums, float("-inf"))
            self._attend_paths(query, key, value, scale, shared, shared_sums)
            # exp(b) / (exp(a) + exp(b)) is the weight of the second part in a softmax over both.
            weight = torch.sigmoid(shared_sums - sums)[..., None]
            output = torch.lerp(output.float(), shared.float(), weight).to(output.dtype)
        return output[None]

    def _attend_paths(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, output: Tensor, sums: Tensor
    ) -> None:
        for group in self.groups:
            pairs = [
                (key[:, :, p[0] : p[1]], value[:, :, p[0] : p[1]]) if isinstance(p, tuple) else p[self.layer]
                for p in group.path
            ]
            keys, values = pairs[0] if len(pairs) == 1 else (torch.cat(x, 2) for x in zip(*pairs, strict=True))
            part, lse = attend(query[:, :, group.low : group.high], keys, values, scale=scale)
            output[group.low : group.high] = part[0].transpose(0, 1)
            sums[group.low : group.high] = lse[0].T
        if not self._shared:
            return
        pools = [
            torch.cat([x, *(s[self.layer][i][0] for s in self._stored)], 1) if self._stored else x
            for i, x in enumerate((key[0], value[0]))
        ]
        for bucket in self._shared:
            if bucket.keys is None:
                raise RuntimeError("a bucket of groups without keys")
            rows = len(bucket.gather) // bucket.size
            parts = (_rows(query[0], bucket.gather, rows), *(_rows(x, bucket.keys, rows) for x in pools))
            _put(bucket, *attend(*parts, scale=scale, mask=bucket.mask), output, sums)


def _rows(packed: Tensor, places: Tensor, rows: int) -> Tensor:
    """[H, N, D] → [rows, H, len(places) / rows, D]."""
    heads, _, width = packed.shape
    return packed.index_select(1, places).view(heads, rows, -1, width).transpose(0, 1)


def _put(bucket: _Bucket, part: Tensor, lse: Tensor, output: Tensor, sums: Tensor) -> None:
    output[bucket.target] = part.transpose(1, 2).flatten(0, 1)[bucket.source]
    sums[bucket.target] = lse.transpose(1, 2).flatten(0, 1)[bucket.source]
