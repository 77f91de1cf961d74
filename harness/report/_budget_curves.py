"""Tuning fairness: what each recipe's tuning finds at each budget, in trials, device-seconds and tokens."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.report._html import Html, Table, number
from harness.report._plot import Figure, Point, Series, Variant, empty, scatter
from harness.report._queries import Contender, Facts
from harness.report._spent import UNITS, spent
from harness.report._tuning import Trial, ended_trials, first_objective, less_is_better
from harness.report._words import counted
from harness.stats import BudgetCurve, best_so_far, expected_best, expected_best_within

__all__ = ["budget_curves"]

_STARTUP = 10
"""Trials that Optuna's TPE and GP samplers draw at random before they look at any result."""
_BUDGETS = 24
"""Amounts of compute at which a curve is looked at."""
_SHOWN = 12
"""Recipes of a base model whose curves are computed: more lines could not be told apart, and take long."""
_BANDS = 8
"""Bands that can be told apart in one drawing."""
_EXACT = 500
"""Trials up to which all sets of n of them are averaged over exactly; beyond, orders are drawn."""
_ORDERS = 1000
_RESAMPLED = 200_000
"""Trials in all bootstrap resamples of a drawing, about: 1,000 resamples of 200 trials, never fewer than 100."""


@dataclass(frozen=True)
class _Cell:
    """The ended trials of one recipe's search, in its order; the score of one that failed is NaN."""

    who: Contender
    trials: Sequence[Trial]
    scores: Sequence[float]

    @property
    def failed(self) -> int:
        return sum(map(math.isnan, self.scores))


def budget_curves(facts: Facts) -> Figure | Html:
    """The best tuning score after n trials, and within a budget of device-seconds and of tokens, for each recipe."""
    title = "What tuning found at each budget"
    objective = first_objective(facts)
    cells = _cells(facts, objective) if objective is not None else []
    if objective is None or not cells:
        return empty(title, "No tuning trial has finished: nothing is searched in this suite, or it is yet to begin.")
    at_random = _at_random(facts, cells)
    variants, rows = [], []
    models = list(dict.fromkeys(c.who.model for c in cells))
    for model in models:
        own = _foremost([c for c in cells if c.who.model == model], minimize=less_is_better(facts, objective))
        for unit, label in {"trials": "tuning trials", **UNITS}.items():
            curves = _curves(facts, own, objective, unit, at_random=at_random)
            if not curves:
                continue
            drawn = _draw(facts, curves, objective, label, steps=not at_random)
            named = f"{label} · {model}" if len(models) > 1 else label
            log = {} if unit == "trials" else {"xaxis": {**_axis(drawn), "type": "log"}}
            variants.append(Variant(named, drawn.traces, {**drawn.layout, **log, "showlegend": True}))
            rows += [row for cell, curve in curves for row in _rows(cell, curve, label)]
    headers = ["recipe", "budget in", "budget", f"best {objective}", "95 % from", "to", "of trials"]
    caption = _caption(facts, cells, objective, at_random=at_random)
    return Figure("budget-curves", title, caption, variants, Table(headers, rows), "Budget in")


def _axis(variant: Variant) -> dict[str, object]:
    axis = variant.layout["xaxis"]
    return dict(axis) if isinstance(axis, dict) else {}


def _cells(facts: Facts, objective: str) -> list[_Cell]:
    found = []
    for who in facts.recipes():
        ended = ended_trials(facts, who)
        scores = [t.values.get(objective, math.nan) if not t.broken else math.nan for t in ended]
        if any(map(math.isfinite, scores)):
            found.append(_Cell(who, ended, scores))
    return found


def _foremost(cells: Sequence[_Cell], *, minimize: bool) -> list[_Cell]:
    """Those that found the best, in the order of the recipes."""
    sign = 1.0 if minimize else -1.0
    best = sorted(cells, key=lambda c: min(sign * s for s in c.scores if math.isfinite(s)))[:_SHOWN]
    return [c for c in cells if c in best]


def _sampler(facts: Facts) -> str:
    return str(facts.settings.get("sampler") or "tpe")


def _at_random(facts: Facts, cells: Sequence[_Cell]) -> bool:
    """Whether no trial was chosen by the results of others."""
    return _sampler(facts) == "random" or all(len(c.trials) <= _STARTUP for c in cells)


def _curves(
    facts: Facts, cells: Sequence[_Cell], objective: str, unit: str, *, at_random: bool
) -> list[tuple[_Cell, BudgetCurve]]:
    """Each recipe's curve; none where nothing of this unit was counted."""
    minimize = less_is_better(facts, objective)
    reached = [s for c in cells for s in c.scores if math.isfinite(s)]
    # The untouched model has no score on the tuning documents: a failed trial is worth no more than the worst of all.
    worst = max(reached) if minimize else min(reached)
    resamples = max(100, min(1000, _RESAMPLED // sum(len(c.trials) for c in cells)))
    costs = {c.who.label: _costs(facts, c, unit, split=at_random) for c in cells}
    found: list[tuple[_Cell, BudgetCurve]] = []
    for cell in cells:
        failed, own = worst if cell.failed else None, costs[cell.who.label]
        if not any(own):
            continue
        if not at_random:
            curve = best_so_far(cell.scores, own, failed=failed, minimize=minimize)
        elif unit == "trials" and len(own) <= _EXACT:
            curve = expected_best(cell.scores, failed=failed, minimize=minimize, resamples=resamples)
        else:
            curve = expected_best_within(
                cell.scores,
                own,
                _budgets(own, list(costs.values())),
                failed=failed,
                minimize=minimize,
                resamples=resamples,
                orders=_ORDERS,
            )
        found.append((cell, curve))
    return found


def _budgets(costs: Sequence[float], every: Sequence[Sequence[float]]) -> list[float]:
    """Amounts of compute from the dearest trial to what all of them cost, between these the same for all recipes.

    With less than the dearest trial some order finishes none, and the curve would not be of what was found.
    """
    first, total = max(costs), sum(costs)
    least, most = min(max(c) for c in every if any(c)), max(map(sum, every))
    amounts = np.geomspace(least, most, _BUDGETS)
    if set(costs) == {1.0}:
        amounts = np.unique(np.rint(amounts))
    return sorted({first, *(b for b in amounts.tolist() if first < b < total), total})


def _costs(facts: Facts, cell: _Cell, unit: str, *, split: bool) -> list[float]:
    if unit == "trials":
        return [1.0] * len(cell.trials)
    return spent(facts, cell.who, cell.trials, unit, split=split)


def _draw(
    facts: Facts, curves: Sequence[tuple[_Cell, BudgetCurve]], objective: str, label: str, *, steps: bool
) -> Variant:
    series = []
    for cell, curve in curves:
        points = []
        for budget, low, value, high in zip(curve.budgets, curve.low, curve.value, curve.high, strict=True):
            if not math.isfinite(value) or (budget <= 0 and label != "tuning trials"):
                continue
            lines = [cell.who.label, f"{label} {_plain(budget)}", f"best {objective} {number(value)}"]
            known = any(map(math.isfinite, (low, high)))
            band = f"95 % {number(low)} to {number(high)}"
            spread = (low, high) if known and len(curves) <= _BANDS else None
            points.append(Point(budget, value, [*lines, band] if known else lines, spread_y=spread))
        if points:
            series.append(Series(cell.who.label, cell.who.index, points, 7, joined=True, steps=steps))
    return scatter(series, label, f"best {objective}, tuning documents")


def _rows(cell: _Cell, curve: BudgetCurve, label: str) -> list[list[object]]:
    """At 1, 2, 4, … trials, at every fourth amount of compute, and at the end: all of them are drawn."""
    n = len(curve.budgets)
    kept = {2**k - 1 for k in range(n.bit_length())} if label == "tuning trials" else set(range(0, n, 4))
    return [
        [
            cell.who.label,
            label,
            _plain(curve.budgets[i]),
            curve.value[i],
            _end(curve.low[i]),
            _end(curve.high[i]),
            curve.trials,
        ]
        for i in sorted(kept | {n - 1})
        if i < n and math.isfinite(curve.value[i])
    ]


def _plain(budget: float) -> str:
    return f"{budget:,.0f}" if budget >= 10 or budget == int(budget) else f"{budget:.2g}"


def _end(bound: float) -> object:
    return bound if math.isfinite(bound) else "unknown"


def _caption(facts: Facts, cells: Sequence[_Cell], objective: str, *, at_random: bool) -> str:
    sampler = _sampler(facts)
    if at_random:
        said = (
            f"The {objective} that the best of so many tuning trials would have, as an expectation over which trials "
            "those are: unbiased for random search (Tang et al. 2020), so recipes with unequal numbers of trials "
            "compare at an equal number. Within an amount of compute, trials are taken in random order and the search "
            "stops at the first that would overrun it. The bands are 95 % bootstrap bands over the trials; where too "
            "few trials bound the better side, the band ends at the curve."
        )
        if sampler != "random":
            said += f" The sampler is {sampler}, which draws its first {_STARTUP} trials at random: here, all of them."
    else:
        said = (
            f"The best {objective} so far in the one search that was run, in its order. The sampler ({sampler}) "
            "chooses a trial by the results before it: averaging over orders would describe no search, and one search "
            "shows no spread, so there is no band. Another search of the same recipe would go otherwise."
        )
    said += " Scores are of the tuning documents, by which settings are chosen, and flattered by that (see optimism)."
    if (failed := sum(c.failed for c in cells)) > 0:
        said += (
            f" {counted(failed, 'trial')} that failed, were infeasible, pruned, or broke a constraint count as trials, "
            "with what they cost, and as no better than the worst that finished: the untouched model, which one would "
            "have instead, is not measured on tuning documents."
        )
    shared = "is split between them" if at_random else "counts to the first"
    said += (
        " Device-seconds are what a trial's own stages and measurements took when they were computed, whoever computed "
        f"them; what several trials share {shared}."
    )
    known = {c.who.label for c in cells}
    without = [w.label for w in facts.recipes() if w.label not in known and ended_trials(facts, w)]
    if without:
        said += f" No trial has finished within the constraints yet: {', '.join(without[:_BANDS])}"
        said += f" and {len(without) - _BANDS} more." if len(without) > _BANDS else "."
    if len(facts.objectives) > 1:
        said += f" Of the objectives, {objective} decides which trial is chosen."
    largest = max(Counter(c.who.model for c in cells).values())
    if largest > _SHOWN:
        said += f" Of each base model's recipes the {_SHOWN} that found the best are shown."
    if at_random and largest > _BANDS:
        said += f" Where more than {_BANDS} recipes are drawn together, the bands are in the table only."
    return said
