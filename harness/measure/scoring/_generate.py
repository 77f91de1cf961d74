"""Batched decoding: shared prefixes computed and stored once, a finished row leaves the batch at once."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.measure.scoring._attention import AttentionPlan, KeyValues, attend
from harness.measure.scoring._forward import Budget, forward, kv_bytes, run_passes
from harness.measure.scoring._tree import TokenTree, build_tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["GREEDY", "Generated", "Sampling", "choose", "generate_tree"]

_MAX_ROWS = 64
_SPARE = 0.75
"""The batch is rebuilt without its finished rows once fewer than this share are alive: a rebuild copies the cache."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. `top_k` 0 and `top_p` 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling()


@dataclass(frozen=True)
class Generated:
    """The new tokens, the ending one included; `ended` is False where the length limit cut them off."""

    tokens: list[int]
    ended: bool


def choose(logits: Tensor, sampling: Sampling, uniforms: Callable[[], list[float]]) -> list[int]:
    """The next token of every row of logits [B, V]. A row draws from its own random numbers, one a token."""
    if sampling.temperature == 0:
        chosen: list[int] = logits.argmax(-1).tolist()
        return chosen
    scores = logits.float() / sampling.temperature
    if sampling.top_k:
        lowest = scores.topk(min(sampling.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < lowest, -math.inf)
    if sampling.top_p < 1:
        ranked, order = scores.sort(descending=True)
        before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        scores = scores.masked_fill(dropped, -math.inf)
    # Inverse transform in fp64: an fp32 running sum over 50,000 tokens would lose the tail.
    sums = scores.softmax(-1).double().cumsum(-1)
    at = torch.tensor(uniforms(), dtype=torch.float64, device=sums.device)[:, None] * sums[:, -1:]
    sampled: list[int] = torch.searchsorted(sums, at, right=True).clamp(max=sums.shape[-1] - 1)[:, 0].tolist()
    return sampled


@dataclass
class _Row:
    """One sequence being written: its place among the requests, shared path, own tokens so far and what it wrote."""

    index: int
    path: tuple[int, ...]
    cached: int
    own: int
    limit: int
    random: Random
    new: list[int] = field(default_factory=list)


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


def _batch_cache(rows: Sequence[_Row], tree: TokenTree, stored: dict[int, KeyValues]) -> KeyValues:
    capacity = max(r.own + r.limit for r in rows)
    cache: KeyValues = []
    for layer in range(len(next(iter(stored.values())))):
        pair = []
        for part in (0, 1):
            sample = stored[next(iter(stored))][layer][part]
            whole = sample.new_zeros(len(rows), sample.shape[1], capacity, sample.shape[3])
            for i, row in enumerate(rows):
                source = stored[tree.last[row.index]][layer][part]
                whole[i, :, : row.own] = source[0, :, : row.own]
            pair.append(whole)
        cache.append((pair[0], pair[1]))
    return cache


def _path_cache(path: tuple[int, ...], stored: dict[int, KeyValues]) -> KeyValues:
    if len(path) == 1:
        return stored[path[0]]
    layers = zip(*(stored[s] for s in path), strict=True)
    return [(torch.cat([p[0] for p in layer], 2), torch.cat([p[1] for p in layer], 2)) for layer in layers]


def _groups(rows: Sequence[_Row], paths: dict[tuple[int, ...], KeyValues]) -> list[tuple[int, int, KeyValues]]:
    found = []
    low = 0
    while low < len(rows):
        high = low
        while high < len(rows) and rows[high].path == rows[low].path:
            high += 1
        if rows[low].path:
            found.append((low, high, paths[rows[low].path]))
        low = high
    return found


@dataclass(frozen=True)
class _Rules:
    ends: frozenset[int]
    stop: Callable[[list[int]], bool] | None
    sampling: Sampling

    def ended(self, row: _Row) -> bool:
        return row.new[-1] in self.ends or (self.stop is not None and self.stop(row.new))

    def step(self, rows: Sequence[_Row], logits: Tensor) -> None:
        for row, token in zip(
            rows, choose(logits, self.sampling, lambda: [r.random.random() for r in rows]), strict=True
        ):
            row.new.append(token)


def _decode(
    model: "PreTrainedModel",
    rows: list[_Row],
    logits: Tensor,
    tree: TokenTree,
    stored: dict[int, KeyValues],
    rules: _Rules,
) -> Iterator[tuple[int, Generated]]:
    # Rows with a common path stand side by side, so that its keys are read once for all of them.
    order = sorted(range(len(rows)), key=lambda i: (rows[i].path, i))
    rows, logits = [rows[i] for i in order], logits[order]
    cache = _batch_cache(rows, tree, stored)
    paths = {p: _path_cache(p, stored) for p in {r.path for r in rows} if p}
    for path in {s for r in rows for s in (*r.path, tree.last[r.index])}:
        del stored[path]
    lengths = torch.tensor([r.own for r in rows], device=model.device)
    plan = _DecodePlan(cache, lengths, _groups(rows, paths))
    alive = list(range(len(rows)))
    while True:
        rules.step([rows[i] for i in alive], logits)
        still = []
        for i in alive:
            ended = rules.ended(rows[i])
            if ended or len(rows[i].new) >= rows[i].limit:
                yield rows[i].index, Generated(rows[i].new, ended)
            else:
                still.append(i)
        alive = still
        if not alive:
            return
        if len(alive) < _SPARE * len(rows):
            chosen = torch.tensor(alive, device=model.device)
            rows = [rows[i] for i in alive]
            need = max(r.own + r.limit for r in rows)
            cache = [(k[chosen, :, :need], v[chosen, :, :need]) for k, v in cache]
            plan = _DecodePlan(cache, plan.lengths[chosen], _groups(rows, paths))
            alive = list(range(len(rows)))
        tokens = torch.tensor([r.new[-1] for r in rows], device=model.device)
        positions = torch.tensor([r.cached for r in rows], device=model.device) + plan.lengths
        every = forward(model, plan, tokens, positions, torch.arange(len(rows), device=model.device))
        logits = every[torch.tensor(alive, device=model.device)]
        # A finished row that is still in the batch writes over its own last place: it must not outgrow the cache.
        moving = torch.zeros(len(rows), dtype=torch.long, device=model.device)
        moving[torch.tensor(alive, device=model.device)] = 1
        plan.lengths = plan.lengths + moving
        plan.refresh()


def generate_tree(
    model: "PreTrainedModel",
    contexts: Sequence[Sequence[int]],
    limits: Sequence[int],
    budget: Budget,
    *,
    ends: frozenset[int] = frozenset(),
    stop: Callable[[list[int]], bool] | None = None,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] | None = None,
) -> Iterator[tuple[int, Generated]]:
    """Continue every context; yields (index of the context, what was generated) as they finish.

    Args:
        contexts: token ids, none empty.
        limits: the largest number of new tokens of each.
        ends: tokens that end a sequence.
        stop: whether the new tokens so far end it, asked after each.
        seeds: of each context's random numbers (its index by default): nothing else in the batch decides what is drawn.
    """
    rules = _Rules(ends, stop, sampling)
    # In sorted order contexts with a common beginning are neighbours, and meet in one batch.
    order = sorted(range(len(contexts)), key=lambda i: tuple(contexts[i]))
    most = budget.cache_bytes // kv_bytes(model)
    while order:
        size = 1
        while size < min(_MAX_ROWS, len(order)) and _cached_tokens(contexts, limits, order[: size + 1]) <= most:
            size += 1
        batch, order = order[:size], order[size:]
        yield from _generate_batch(model, contexts, limits, batch, budget, rules, seeds or range(len(contexts)))


def _cached_tokens(contexts: Sequence[Sequence[int]], limits: Sequence[int], batch: Sequence[int]) -> int:
    # An upper bound that needs no tree: sorted, what all share is what the first and the last share.
    first, last = contexts[batch[0]], contexts[batch[-1]]
    common = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return common + len(batch) * max(len(contexts[i]) - common + limits[i] for i in batch)


def _generate_batch(
    model: "PreTrainedModel",
    contexts: Sequence[Sequence[int]],
    limits: Sequence[int],
    batch: Sequence[int],
    budget: Budget,
    rules: _Rules,
    seeds: Sequence[int],
) -> Iterator[tuple[int, Generated]]:
    tree = build_tree([contexts[i] for i in batch], max_segment=budget.tokens)
    rows = []
    for n, i in enumerate(batch):
        path = tree.path(tree.last[n])
        start = tree.segments[path[-1]].start
        rows.append(_Row(n, tuple(path[:-1]), start, len(contexts[i]) - start, limits[i], Random(seeds[i])))
    places = [(tree.last[n], row.own - 1) for n, row in enumerate(rows)]
    stored: dict[int, KeyValues] = {}
    first: dict[tuple[int, int], Tensor] = {}
    for found, logits in run_passes(model, tree, places, budget, keep=stored):
        first.update(zip(found, logits, strict=True))
    for n, generated in _decode(model, rows, torch.stack([first[p] for p in places]), tree, stored, rules):
        yield batch[n], generated
