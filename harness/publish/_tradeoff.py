"""Quality against latency, memory or cost: a mark for each entry, filled where no other is better in both."""

import math

import numpy as np

from harness.pareto import front
from harness.publish._aggregates import PROFILE
from harness.publish._board import Board
from harness.publish._cards import Card
from harness.publish._frame import as_float, figure_name
from harness.report._html import Html, Table, number
from harness.report._plot import Figure, Point, Series, Variant, empty, scatter

__all__ = ["tradeoff"]

_TASKS = 8
"""Tasks that one may choose: those that most entries have."""
_FEWEST = 2
_Row = dict[str, object]


def tradeoff(board: Board) -> Figure | Html:
    """The figure, or why there is none."""
    title = "Quality against cost"
    rows = board.rows.to_dicts()
    costs = _costs(board, rows)
    figures: dict[tuple[str, str], dict[str, _Row]] = {}
    for row in rows:
        if row["better"] != "none":
            figures.setdefault((str(row["task"]), str(row["metric"])), {})[str(row["entry"])] = row
    chosen = sorted(figures, key=lambda n: (-len(figures[n]), n[1] != "gold_reward", n[1] == "kl", n))[:_TASKS]
    recipes = sorted({c.recipe for c in board.cards.values() if c.steps})
    colours = {name: place for place, name in enumerate(recipes, start=1)}
    variants, numbers = [], []
    for name in chosen:
        for axis, values in costs.items():
            shown = {k: r for k, r in figures[name].items() if k in values}
            if len(shown) < _FEWEST or len({values[k][0] for k in shown}) < _FEWEST:
                continue
            variant, lines = _drawn(board, figure_name(*name), shown, axis, values, colours)
            variants.append(variant)
            numbers += lines
    if not variants:
        return empty(None, "Fewer than two entries have both a figure and a cost so far.")
    caption = (
        "A mark is an entry. Higher and further left is better, lower where less of the figure is better. Filled marks "
        "are on the Pareto front: no other entry is better in one and no worse in the other. Vertical bars are 95 % "
        "intervals, horizontal ones the least and the most of the repeats: the front is that of the estimates, and "
        "may be another one. Latency and memory are those of one machine each (the mark names it). The time of the "
        "recipe is that of all its trials, stages and measurements together."
    )
    headers = ["figure", "cost", "entry", "target", "value", "cost of it", "on the front"]
    return Figure("tradeoff", title, caption, variants, Table(headers, numbers), "Figure and cost")


def _costs(board: Board, rows: list[_Row]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Axis → entry → what it costs, with the least and most of the repeats."""
    profiles = {(str(r["entry"]), str(r["metric"])): r for r in rows if r["task"] == PROFILE}
    axes: dict[str, dict[str, tuple[float, float, float]]] = {
        "end-to-end latency, ms": {},
        "peak memory, MiB": {},
        "weights in memory, MiB": {},
        "time of the recipe, worker hours": {},
    }
    latency, memory, weights, time = axes.values()
    for key, card in board.cards.items():
        for found, metrics in (
            (latency, [f"e2e_ms ({card.batch})"]),
            (memory, [f"peak_cuda_mb ({card.batch})", f"peak_rss_mb ({card.batch})"]),
            (weights, ["weight_mb (model)"]),
        ):
            row = next((profiles[key, m] for m in metrics if (key, m) in profiles), None)
            if row is not None:
                found[key] = (as_float(row["value"]), as_float(row["low"]), as_float(row["high"]))
        hours = card.budget.device_seconds / 3600
        time[key] = (hours, hours, hours)
    return axes


def _drawn(
    board: Board,
    figure: str,
    shown: dict[str, _Row],
    axis: str,
    costs: dict[str, tuple[float, float, float]],
    colours: dict[str, int],
) -> tuple[Variant, list[list[object]]]:
    keys = sorted(shown)
    less = shown[keys[0]]["better"] == "lower"
    points = np.array([[(1 if less else -1) * as_float(shown[k]["value"]), costs[k][0]] for k in keys])
    on_front = dict(zip(keys, front(points).tolist(), strict=True))
    series: list[Series] = []
    named: set[str] = set()
    lines: list[list[object]] = []
    for key in keys:
        card, row, cost = board.cards[key], shown[key], costs[key]
        hover = [
            f"{card.label} on {card.target}",
            f"{figure} {number(as_float(row['value']))}",
            f"{axis} {number(cost[0])}",
            "on the front" if on_front[key] else "not on the front",
            *_machine(card),
        ]
        spread = as_float(row["low"]), as_float(row["high"])
        point = Point(
            cost[0],
            as_float(row["value"]),
            hover,
            cost[1:] if cost[1] < cost[2] else None,
            None if any(map(math.isnan, spread)) else spread,
        )
        name = card.recipe
        colour = colours.get(name, 0)
        series.append(Series(name, colour, [point], 12, hollow=not on_front[key], legend=name not in named))
        named.add(name)
        lines.append(
            [figure, axis, card.label, card.target, as_float(row["value"]), cost[0], bool(on_front[key])],
        )
    drawn = scatter(series, axis, figure)
    return Variant(f"{figure} and {axis}", drawn.traces, {**drawn.layout, "showlegend": True}), lines


def _machine(card: Card) -> list[str]:
    for _, facts in card.environment:
        machine = facts.get("machine")
        if isinstance(machine, dict):
            return [", ".join(f"{k} {machine[k]}" for k in ("gpu", "gpus", "cpu", "cores") if machine.get(k))]
    return []
