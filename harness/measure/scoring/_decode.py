"""A decoding batch: its rows, their keys and values, and one step of all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness._soft_prompt import soft_prompt
from harness.measure.scoring._attention import AttentionPlan, KeyValues, attend
from harness.measure.scoring._forward import forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Batch", "Row"]


@dataclass
class Row:
    """One sequence being written.

    Attributes:
        index: its place among the contexts.
        path: the segments before its last one, whose keys and values it may share with other rows.
        leaf: its last segment, of which it has the first `own` tokens.
        start: the position of the first of these.
        limit: the largest number of new tokens.
        new: what it wrote so far.
    """

    index: int
    path: tuple[int, ...]
    leaf: int
    start: int
    own: int
    limit: int
    random: Random
    new: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The largest number of tokens of its own whose keys and values are held."""
        return self.own + self.limit


@dataclass
class _DecodePlan(AttentionPlan):
    """One token a row: keys of the row's own tokens [B, G, capacity, D] a layer, and paths shared by runs of rows."""

    own: KeyValues
    lengths: Tensor
    groups: list[tuple[int, int, KeyValues]]
    mask: Tensor = field(init=False)
    used: int = field(init=False)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Follow a change of `lengths`, which count the own tokens before the present one."""
        self.used = int(self.lengths.max()) + 1
        keys = self.own[0][0]
        hidden = torch.arange(self.used, device=keys.device) > self.lengths[:, None]
        self.mask = torch.zeros(hidden.shape, dtype=keys.dtype, device=keys.device)
        self.mask = self.mask.masked_fill(hidden, -math.inf)[:, None, None]

    def run(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `AttentionPlan.run`; the packed tokens are the rows."""
        keys, values = self.own[self.layer]
        rows = torch.arange(len(self.lengths), device=keys.device)
        keys[rows, :, self.lengths] = key[0].transpose(0, 1)
        values[rows, :, self.lengths] = value[0].transpose(0, 1)
        output, sums = attend(
            query[0].transpose(0, 1)[:, :, None],
            keys[:, :, : self.used],
            values[:, :, : self.used],
            scale=scale,
            mask=self.mask,
        )
        output, sums = output[:, :, 0], sums[:, :, 0]
        if self.groups:
            shared = torch.zeros_like(output)
            shared_sums = torch.full_like(sums, -math.inf)
            for low, high, path in self.groups:
                part, lse = attend(query[:, :, low:high], *path[self.layer], scale=scale)
                shared[low:high] = part[0].transpose(0, 1)
                shared_sums[low:high] = lse[0].T
            weight = torch.sigmoid(shared_sums - sums)[..., None]
            output = torch.lerp(output.float(), shared.float(), weight).to(query.dtype)
        return output[None]


class Batch:
    """Rows that write a token each a step.

    Args:
        stored: keys and values of every segment in the rows' paths, and of the leaves of the rows `before` lacks.
        before: a batch from which the other rows are carried over.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        rows: Sequence[Row],
        stored: Mapping[int, KeyValues],
        before: "Batch | None" = None,
    ) -> None:
        # Rows with a common path stand side by side, so that its keys are read once for all of them.
        self.rows = sorted(rows, key=lambda r: (r.path, r.index))
        self._model = model
        first = soft_prompt(model)
        self._paths = {r.path: _joined(r.path, stored, first) for r in self.rows if r.path or first}
        if before is not None:
            self._paths |= {p: before._paths[p] for p in self._paths if p in before._paths}
        device = model.device
        held = {r.index: n for n, r in enumerate(before.rows)} if before is not None else {}
        lengths = [before.length(held[r.index]) if before and r.index in held else r.own for r in self.rows]
        cache = self._cache(stored, before, held, lengths)
        self._plan = _DecodePlan(cache, torch.tensor(lengths, device=device), self._groups())

    def length(self, place: int) -> int:
        """How many tokens of its own a row holds."""
        return int(self._plan.lengths[place])

    def _cache(
        self, stored: Mapping[int, KeyValues], before: "Batch | None", held: Mapping[int, int], lengths: Sequence[int]
    ) -> KeyValues:
        capacity = max(r.size for r in self.rows)
        sample = before._plan.own if before is not None else stored[self.rows[0].leaf]
        cache: KeyValues = []
        for layer, pair in enumerate(sample):
            made = []
            for part, like in enumerate(pair):
                whole = like.new_zeros(len(self.rows), like.shape[1], capacity, like.shape[3])
                for n, (row, length) in enumerate(zip(self.rows, lengths, strict=True)):
                    old = before is not None and row.index in held
                    source = like[held[row.index]] if old else stored[row.leaf][layer][part][0]
                    whole[n, :, :length] = source[:, :length]
                made.append(whole)
            cache.append((made[0], made[1]))
        return cache

    def _groups(self) -> list[tuple[int, int, KeyValues]]:
        found = []
        low = 0
        while low < len(self.rows):
            path = self.rows[low].path
            high = low
            while high < len(self.rows) and self.rows[high].path == path:
                high += 1
            if path in self._paths:
                found.append((low, high, self._paths[path]))
            low = high
        return found

    def step(self, alive: Sequence[int]) -> Tensor:
        """Feed each row's newest token; returns the logits [len(alive), V] of the rows at these places."""
        device = self._model.device
        tokens = torch.tensor([r.new[-1] for r in self.rows], device=device)
        positions = torch.tensor([r.start for r in self.rows], device=device) + self._plan.lengths
        places = torch.tensor(list(alive), device=device)
        logits = forward(self._model, self._plan, tokens, positions, places)
        # A finished row that is still here writes over its own last place: it must not outgrow the cache.
        moving = torch.zeros(len(self.rows), dtype=torch.long, device=device)
        moving[places] = 1
        self._plan.lengths = self._plan.lengths + moving
        self._plan.refresh()
        return logits


def _joined(path: tuple[int, ...], stored: Mapping[int, KeyValues], first: KeyValues | None) -> KeyValues:
    parts = [*([] if first is None else [first]), *(stored[s] for s in path)]
    if len(parts) == 1:
        return parts[0]
    layers = zip(*parts, strict=True)
    return [(torch.cat([p[0] for p in layer], 2), torch.cat([p[1] for p in layer], 2)) for layer in layers]
