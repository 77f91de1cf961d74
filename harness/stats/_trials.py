"""The trials of one search, and the best of them: over all sets of n, in given orders, within budgets of compute."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError
from harness.stats._types import Array, finite

__all__ = ["ROUNDING", "Ints", "Trials"]

Ints = NDArray[np.int64]

ROUNDING = 1e-12
"""Sums of costs in another order differ by less, relatively: a budget of just their sum must not lose a trial by it."""


@dataclass(frozen=True)
class Trials:
    """The trials of one search; in ascending order of worth, those that are equally good share a level."""

    shown: Array
    """What the curve shows of each trial: NaN of a failed one where nothing was said of that."""
    level: Ints
    """Trials with a higher level are chosen before those with a lower; failed ones have level 0, others more."""
    costs: Array
    failed: float
    """What one has while no trial has succeeded; NaN where nothing was said of that."""

    @classmethod
    def of(
        cls,
        scores: Sequence[float],
        costs: Sequence[float] | None,
        test: Sequence[float] | None,
        failed: float | None,
        minimize: bool,
    ) -> "Trials":
        """Checked; without costs each trial costs 1. The curves say what the arguments mean."""
        tuned = np.asarray(scores, dtype=np.float64).reshape(-1)
        shown = np.array(scores if test is None else test, dtype=np.float64).reshape(-1)
        if tuned.size == 0 or shown.size != tuned.size:
            raise UserError(f"expected as many test scores as trials, and at least one, got {shown.size}, {tuned.size}")
        if failed is not None:
            finite(np.array([failed], dtype=np.float64), "what one has when all trials failed")
        lost = np.isnan(tuned)
        finite(np.where(lost, 0.0, tuned), "scores")
        finite(np.where(lost, 0.0, shown), "test scores of trials that did not fail")
        if lost.any() and failed is None:
            raise UserError(
                f"{int(lost.sum())} of {lost.size} trials failed: say with `failed` what one has when all have (the "
                "base model's score)"
            )
        otherwise = math.nan if failed is None else float(failed)
        shown[lost] = otherwise
        level = np.zeros(tuned.size, dtype=np.int64)
        level[~lost] = 1 + np.unique(-tuned[~lost] if minimize else tuned[~lost], return_inverse=True)[1]
        return cls(shown, level, _costs(costs, tuned.size), otherwise)

    @property
    def size(self) -> int:
        return int(self.shown.size)

    def best_of(self, counts: Ints) -> Array:
        """Expected best of n = 1 … N without replacement, [resamples, N], of trials taken so many times [resamples, N].

        Of trials of one level any may be the best: they count with their mean.
        """
        order = np.argsort(self.level, kind="stable")
        counts, shown = counts[:, order], self.shown[order]
        starts = np.flatnonzero(np.diff(self.level[order], prepend=-1))
        many = np.add.reduceat(counts, starts, axis=1)
        means = np.add.reduceat(counts * shown, starts, axis=1) / np.maximum(many, 1)
        ordered = np.stack([np.repeat(mean, count) for mean, count in zip(means, many, strict=True)])
        best: Array = ordered @ _chances(self.size).T
        return best

    def running(self, orders: Ints) -> Array:
        """The best after each trial, of trials in these orders [..., N]; the first of equally good ones."""
        n = orders.shape[-1]
        places = np.arange(n)
        ranked = np.maximum.accumulate(self.level[orders] * n + (n - 1 - places), axis=-1)
        best: Array = self.shown[np.take_along_axis(orders, n - 1 - ranked % n, axis=-1)]
        return best

    def within(self, orders: Ints, budgets: Array) -> Array:
        """The mean over the orders [..., orders, N] of the best that is finished within each budget, [..., budgets]."""
        before = np.full((*orders.shape[:-1], 1), self.failed)
        best = np.concatenate([before, self.running(orders)], axis=-1)
        total = np.cumsum(self.costs[orders], axis=-1)
        finished = np.stack([(total <= b * (1 + ROUNDING)).sum(axis=-1) for b in budgets], axis=-1)
        mean: Array = np.take_along_axis(best, finished, axis=-1).mean(axis=-2)
        return mean

    def over_sets(self, budgets: Array) -> Array:
        """The exact mean over all orders of the best that is finished within each budget, [budgets].

        The search ends with a set S of k trials finished when they come first, in any order, and the next overruns: a
        chance of k! (N - k)! / N! · (the share of the others that overrun).
        """
        n = self.size
        member = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
        size, spent = member.sum(axis=1), member @ self.costs
        top = np.where(member, self.level, -1).max(axis=1)
        chosen = member & (self.level == top[:, None])
        best = np.full(2**n, self.failed)
        shown = np.where(chosen, self.shown, 0.0).sum(axis=1)
        best[1:] = shown[1:] / chosen[1:].sum(axis=1)
        first = np.array([1 / math.comb(n, k) for k in range(n + 1)])[size]
        means = []
        for budget in budgets * (1 + ROUNDING):
            overruns = (~member & (spent[:, None] + self.costs > budget)).sum(axis=1)
            share = np.where(size == n, 1.0, overruns / np.maximum(n - size, 1)) * (spent <= budget)
            chance = first * share
            means.append(float((chance * np.where(chance > 0, best, 0.0)).sum()))
        return np.array(means)


@functools.lru_cache(maxsize=8)
def _chances(size: int) -> Array:
    """The chance that the i-th of `size` in ascending order is the best of n drawn without replacement, [n, i]."""
    table = np.zeros((size, size))
    for n in range(1, size + 1):
        ways = math.comb(size, n)
        for i in range(n, size + 1):
            # Whole numbers until the last division: they are too large for floats.
            table[n - 1, i - 1] = math.comb(i - 1, n - 1) / ways
    table.flags.writeable = False
    return table


def _costs(costs: Sequence[float] | None, trials: int) -> Array:
    if costs is None:
        return np.ones(trials)
    spent = finite(np.asarray(costs, dtype=np.float64).reshape(-1), "costs")
    if spent.size != trials or (spent < 0).any():
        raise UserError(f"expected a cost of zero or more for each of {trials} trials, got {spent.tolist()}")
    return spent
