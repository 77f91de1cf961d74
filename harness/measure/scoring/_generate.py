"""Continuous batching: shared prefixes computed and stored once, a finished row gives its place to the next."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.measure.scoring._attention import KeyValues
from harness.measure.scoring._decode import Batch, Row
from harness.measure.scoring._forward import Budget, kv_bytes, run_passes
from harness.measure.scoring._sampling import GREEDY, Sampling, choose
from harness.measure.scoring._tree import TokenTree, build_tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Generated", "generate_tree"]

_MAX_ROWS = 64
_REFILL = 8
"""New rows enter once one place of so many is free: computing their prompts together is what a pass is good at, and a
batch is copied when its rows change."""
_SHRINK = 4
"""As above, where no row waits."""


@dataclass(frozen=True)
class Generated:
    """The new tokens, the ending one included; `ended` is False where the length limit cut them off."""

    tokens: list[int]
    ended: bool


@dataclass(frozen=True)
class _Rules:
    ends: frozenset[int]
    stop: Callable[[list[int]], bool] | None
    sampling: Sampling

    def write(self, rows: Sequence[Row], logits: Tensor) -> tuple[list[int], list[tuple[int, Generated]]]:
        """A token each; returns the places of the rows that go on, and what the others have written."""
        tokens = choose(logits, self.sampling, lambda: [r.random.random() for r in rows])
        going, done = [], []
        for place, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            row.new.append(token)
            ended = token in self.ends or (self.stop is not None and self.stop(row.new))
            if ended or len(row.new) >= row.limit:
                done.append((row.index, Generated(row.new, ended)))
            else:
                going.append(place)
        return going, done


class _Waiting:
    """Rows that have not begun, in the order of the tree, and the keys and values that they and those at work share."""

    def __init__(self, model: "PreTrainedModel", tree: TokenTree, rows: Sequence[Row], budget: Budget) -> None:
        self._model, self._tree, self._budget = model, tree, budget
        self._rows = deque(rows)
        self._most = budget.cache_bytes // kv_bytes(model)
        self._uses = Counter(s for r in rows for s in r.path)
        self.stored: dict[int, KeyValues] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def _tokens(self, rows: Sequence[Row]) -> int:
        shared = {s for r in rows for s in r.path}
        return len(rows) * max(r.size for r in rows) + sum(len(self._tree.segments[s].tokens) for s in shared)

    def take(self, beside: Sequence[Row]) -> tuple[list[Row], list[Tensor]]:
        """The rows that fit beside those at work (one at least if there are none), begun: with the logits of each."""
        taken: list[Row] = []
        while self._rows and len(beside) + len(taken) < _MAX_ROWS:
            more = [*beside, *taken, self._rows[0]]
            if len(more) > 1 and self._tokens(more) > self._most:
                break
            taken.append(self._rows.popleft())
        if not taken:
            return [], []
        # A leaf is computed for its logits even where another row has left its keys.
        wanted = sorted(({s for r in taken for s in r.path} - set(self.stored)) | {r.leaf for r in taken})
        places = [(r.leaf, r.own - 1) for r in taken]
        logits: dict[tuple[int, int], Tensor] = {}
        for found, values in run_passes(self._model, self._tree, places, self._budget, keep=self.stored, only=wanted):
            logits.update(zip(found, values.clone(), strict=True))
        return taken, [logits[p] for p in places]

    def release(self, working: Sequence[Row]) -> None:
        """Drop what neither these rows nor those that wait will read."""
        needed = {s for r in (*working, *self._rows) for s in r.path}
        for segment in set(self.stored) - needed:
            del self.stored[segment]


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
    tree = build_tree(contexts, max_segment=budget.tokens)
    asked = []
    for i, context in enumerate(contexts):
        path = tree.path(tree.last[i])
        start = tree.segments[path[-1]].start
        random = Random(i if seeds is None else seeds[i])
        asked.append(Row(i, tuple(path[:-1]), path[-1], start, len(context) - start, limits[i], random))
    # In the tree's order rows with a common beginning are neighbours, and meet in one batch.
    waiting = _Waiting(model, tree, sorted(asked, key=lambda r: (r.leaf, r.own, r.index)), budget)
    batch: Batch | None = None
    alive: list[int] = []
    while True:
        working = [batch.rows[i] for i in alive] if batch is not None else []
        places = len(batch.rows) if batch is not None else 0
        free = places - len(alive)
        if free * (_REFILL if waiting else _SHRINK) >= places:
            fresh, logits = waiting.take(working)
            if fresh:
                going, done = rules.write(fresh, torch.stack(logits))
                yield from done
                fresh = [fresh[i] for i in going]
            rows = [*working, *fresh]
            if not rows and not waiting:
                return
            if fresh or free * _SHRINK >= places:
                batch = Batch(model, rows, waiting.stored, batch) if rows else None
                alive = list(range(len(rows)))
            waiting.release(rows)
        if batch is not None:
            going, done = rules.write([batch.rows[i] for i in alive], batch.step(alive))
            yield from done
            alive = [alive[i] for i in going]
