"""Attention over a packed row of tree segments: each attends to itself (causal) and to its ancestors (no mask).

The parts are merged exactly by their log-sum-exp (Juravsky et al. 2024, "Hydragen", arXiv:2402.05099): no dense tree
mask, little padding, and keys that many tokens share are read once for all of them. Segments stand in depth-first
order, so the descendants of each are neighbours, and one kernel call lets all of them attend to it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.measure.scoring._attention import AttentionPlan, KeyValues, attend

__all__ = ["TreePlan"]

_GATHERED_SCORES = 1 << 17
"""Calls with fewer attention scores are made together: their keys are copied, which costs less than a call for each."""

_Part = tuple[int, int] | KeyValues
"""Keys and values: a slice of this pass, or stored ones of an earlier pass."""


@dataclass(frozen=True)
class _Rows:
    """Runs of packed tokens, padded to one length: `gather` [rows * length] are their places, padding repeats the last.

    `source` are the places of real tokens among the gathered ones, and `target` their places in the pack.
    """

    count: int
    gather: Tensor
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class _Keys:
    """Keys of as many rows: `gather` [rows * length] counts packed tokens and, after them, stored ones.

    `mask` [rows, 1, 1, length] hides the padding; None where there is none.
    """

    gather: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class _Shared:
    """Packed tokens `[low, high)` that attend to all of some ancestors."""

    low: int
    high: int
    parts: list[_Part]

    @property
    def size(self) -> int:
        """How many tokens."""
        return self.high - self.low

    @property
    def key_count(self) -> int:
        """How many keys they attend to."""
        return sum(_length(part) for part in self.parts)


def _length(part: _Part) -> int:
    return part[1] - part[0] if isinstance(part, tuple) else int(part[0][0].shape[2])


def _alike(size: int, length: int) -> bool:
    # Padding up to a third is cheaper than another kernel call; below 16 tokens calls are all that costs.
    return size <= 16 or length >= 0.7 * size


@dataclass
class TreePlan(AttentionPlan):
    """Attention over segments packed into one row.

    `lengths` of the packed segments in order; `keep` maps a segment's id to its slice whose keys and values later
    passes need: they appear in `kept`.
    """

    lengths: list[int]
    device: torch.device
    dtype: torch.dtype
    keep: dict[int, tuple[int, int]] = field(default_factory=dict)
    kept: dict[int, KeyValues] = field(default_factory=dict)
    _own: list[_Rows | tuple[int, int]] = field(default_factory=list)
    _single: list[_Shared] = field(default_factory=list)
    _together: list[tuple[_Rows, _Keys]] = field(default_factory=list)
    _stored: list[KeyValues] = field(default_factory=list)

    def __post_init__(self) -> None:
        offsets = [0]
        for length in self.lengths:
            offsets.append(offsets[-1] + length)
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        at = 0
        while at < len(order):
            end = at + 1
            while end < len(order) and _alike(self.lengths[order[at]], self.lengths[order[end]]):
                end += 1
            members = sorted(order[at:end])
            if len(members) == 1:
                self._own.append((offsets[members[0]], offsets[members[0] + 1]))
            else:
                self._own.append(self._rows([(offsets[m], offsets[m + 1]) for m in members]))
            at = end

    def _rows(self, members: list[tuple[int, int]]) -> _Rows:
        starts = torch.tensor([low for low, _ in members])
        lengths = torch.tensor([high - low for low, high in members])
        steps = torch.arange(int(lengths.max()))
        gather = (starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)).flatten()
        source = (steps < lengths[:, None]).flatten().nonzero()[:, 0]
        return _Rows(len(members), *(t.to(self.device) for t in (gather, source, gather[source])))

    def share(self, low: int, high: int, parts: list[_Part]) -> None:
        """Let the packed tokens `[low, high)` attend to these ancestors too. Two ranges are nested or apart."""
        self._single.append(_Shared(low, high, parts))

    def gather(self) -> None:
        """Join small calls of similar size. Call it when every range is there."""
        levels: dict[int, list[_Shared]] = {}
        around: list[_Shared] = []
        for call in sorted(self._single, key=lambda c: (c.low, -c.high)):
            while around and around[-1].high <= call.low:
                around.pop()
            around.append(call)
            # Ranges of one level are apart: no token is written twice by one joined call.
            if call.size * call.key_count <= _GATHERED_SCORES:
                levels.setdefault(len(around), []).append(call)
        for calls in levels.values():
            self._gather_level(sorted(calls, key=lambda c: (-c.key_count, -c.size)))

    def _gather_level(self, order: list[_Shared]) -> None:
        at = 0
        while at < len(order):
            end = at + 1
            while end < len(order) and _alike(order[at].key_count, order[end].key_count):
                end += 1
            # Of calls with as many keys, those with as many tokens.
            block = sorted(order[at:end], key=lambda c: -c.size)
            low = 0
            while low < len(block):
                high = low + 1
                while high < len(block) and _alike(block[low].size, block[high].size):
                    high += 1
                if high - low > 1:
                    self._join(sorted(block[low:high], key=lambda c: c.low))
                low = high
            at = end

    def _join(self, members: list[_Shared]) -> None:
        longest = max(c.key_count for c in members)
        keys = torch.zeros(len(members), longest, dtype=torch.long)
        mask = torch.zeros(len(members), 1, 1, longest, dtype=self.dtype)
        for row, call in enumerate(members):
            places = torch.cat([self._places(part) for part in call.parts])
            keys[row, : len(places)] = places
            mask[row, :, :, len(places) :] = float("-inf")
        padded = any(c.key_count < longest for c in members)
        rows = self._rows([(c.low, c.high) for c in members])
        self._together.append((rows, _Keys(keys.flatten().to(self.device), mask.to(self.device) if padded else None)))
        chosen = {id(c) for c in members}
        self._single = [c for c in self._single if id(c) not in chosen]

    def _places(self, part: _Part) -> Tensor:
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
        merges = bool(self._single or self._together)
        output = query.new_empty(length, heads, width, dtype=torch.float32 if merges else query.dtype)
        sums = query.new_empty(length, heads, dtype=torch.float32)
        for run in self._own:
            if isinstance(run, tuple):
                low, high = run
                near = (x[:, :, low:high] for x in (query, key, value))
                part, lse = _flat(*attend(*near, scale=scale, causal=True))
                output[low:high] = part
                sums[low:high] = lse
            else:
                near = (_take(x, run.gather, run.count) for x in (query, key, value))
                part, lse = _flat(*attend(*near, scale=scale, causal=True))
                output.index_copy_(0, run.target, part.index_select(0, run.source).to(output.dtype))
                sums.index_copy_(0, run.target, lse.index_select(0, run.source))
        for call in self._single:
            keys, values = self._path(call.parts, key, value)
            part, lse = _flat(*attend(query[:, :, call.low : call.high], keys, values, scale=scale))
            _merge(output[call.low : call.high], sums[call.low : call.high], part, lse)
        if self._together:
            pools = [
                torch.cat([x, *(s[self.layer][i] for s in self._stored)], 2) if self._stored else x
                for i, x in enumerate((key, value))
            ]
            for rows, shared in self._together:
                parts = (_take(query, rows.gather, rows.count), *(_take(x, shared.gather, rows.count) for x in pools))
                part, lse = _flat(*attend(*parts, scale=scale, mask=shared.mask))
                mine, own = output.index_select(0, rows.target), sums.index_select(0, rows.target)
                _merge(mine, own, part.index_select(0, rows.source), lse.index_select(0, rows.source))
                output.index_copy_(0, rows.target, mine)
                sums.index_copy_(0, rows.target, own)
        return output.to(query.dtype)[None]

    def _path(self, parts: list[_Part], key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [
            (key[:, :, p[0] : p[1]], value[:, :, p[0] : p[1]]) if isinstance(p, tuple) else p[self.layer] for p in parts
        ]
        if len(pairs) == 1:
            return pairs[0]
        return torch.cat([k for k, _ in pairs], 2), torch.cat([v for _, v in pairs], 2)


def _take(packed: Tensor, places: Tensor, rows: int) -> Tensor:
    """[1, H, N, D] → [rows, H, len(places) / rows, D]."""
    # Projections make [N, H, D]: in that order a token is one run of memory.
    heads, _, width = packed.shape[1:]
    return packed[0].transpose(0, 1).index_select(0, places).view(rows, -1, heads, width).transpose(1, 2)


def _flat(output: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """[B, H, N, D] and [B, H, N] → [B * N, H, D] and [B * N, H]."""
    return output.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)


def _merge(output: Tensor, sums: Tensor, part: Tensor, lse: Tensor) -> None:
    """Add attention to further keys, in place: `output` [N, H, D] and its log-sum-exp `sums` [N, H] are fp32."""
    # exp(b) / (exp(a) + exp(b)) is the weight of the second part in a softmax over both.
    output.lerp_(part.float(), torch.sigmoid(lse - sums)[..., None])
    torch.logaddexp(sums, lse, out=sums)
