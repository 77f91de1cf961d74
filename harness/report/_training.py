"""Training curves: of each recipe the mean over its final runs with a band, each seed's own, and some tuning runs'."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from harness.report._curves import Curve, Mean, mean_over_seeds, read_curves
from harness.report._html import Html, Table, number
from harness.report._plot import Figure, Point, Series, Variant, empty, scatter
from harness.report._queries import TUNING_CURVES, Facts

__all__ = ["training"]

_MOST_POINTS, _LEAST_POINTS = 300, 20
"""Points that are drawn of a curve."""
_ALL_POINTS = 20_000
"""Points of all curves together: with many curves each gets fewer of them, or no browser would open the page."""
_BANDS = 8
"""Bands that can be told apart in one drawing."""
_FINAL, _SEED, _TUNING = 1.0, 0.5, 0.28
"""How opaque a line is."""
# What a method is judged by comes first in its list; the rest follows by name.
_FIRST = ("reward", "loss", "rewards/margins", "rewards/accuracies", "kl", "accuracy", "entropy")

_T = TypeVar("_T")


@dataclass
class _Drawing:
    """The lines of one method and metric, and their rows in the table."""

    method: str
    metric: str
    most: int
    colours: dict[str, int]
    series: list[Series] = field(default_factory=list)
    rows: list[list[object]] = field(default_factory=list)

    def single(self, name: str, curve: Curve, opacity: float) -> None:
        about = f"{name}: {self.method}, {curve.stage.run}"
        points = [
            Point(step, value, [about, self._at(step, value)])
            for step, value in _thin(list(zip(curve.steps, curve.values, strict=True)), self.most)
        ]
        self._add(name, curve.stage.users, points, opacity)
        self._list(name, curve.stage.run, curve.steps, curve.values, None)

    def mean(self, name: str, users: Sequence[str], mean: Mean, *, band: bool) -> None:
        about = f"{name}: {self.method}, mean of {mean.seeds} seeds"
        points = [
            Point(step, v, [about, self._at(step, v), f"{mean.band} {_span(*b)}"], spread_y=b if band else None)
            for step, v, b in _thin(list(zip(mean.steps, mean.values, mean.bounds, strict=True)), self.most)
        ]
        self._add(name, users, points, _FINAL)
        run = f"mean of {mean.seeds} seeds, {mean.band}"
        self._list(name, run, mean.steps, mean.values, _span(*mean.bounds[-1]))

    def _at(self, step: int, value: float) -> str:
        return f"step {step}: {self.metric} {number(value)}"

    def _add(self, name: str, users: Sequence[str], points: Sequence[Point], opacity: float) -> None:
        colour = self.colours.get(users[0], 1) if len(users) == 1 else 0
        legend = name not in {s.name for s in self.series}
        self.series.append(Series(name, colour, points, 7, opacity, joined=True, legend=legend))

    def _list(self, name: str, run: str, steps: Sequence[int], values: Sequence[float], band: str | None) -> None:
        ends = [values[0], values[-1], band, min(values), max(values)]
        self.rows.append([self.method, self.metric, name, run, len(steps), *ends])

    def variant(self) -> Variant:
        # What matters most was added first, for the legend and the table; drawn last, it lies on top.
        drawn = scatter(self.series[::-1], "step", self.metric)
        layout = {**drawn.layout, "showlegend": True, "legend": {"traceorder": "reversed"}}
        return Variant(f"{self.method} · {self.metric}", drawn.traces, layout)


def training(facts: Facts) -> Figure | Html:
    """A line a recipe with a band over its seeds; one method and metric at a time."""
    import polars as pl

    curves, broken = read_curves(facts)
    if not curves:
        return empty(None, "No stage has logged a training step yet.")
    last = facts.lineage.group_by("step").agg(pl.col("position").max()).iter_rows()
    position = {str(method): int(place) for method, place in last}
    most = max(_LEAST_POINTS, min(_MOST_POINTS, _ALL_POINTS // sum(map(len, curves.values()))))
    colours = {c.label: c.index for c in facts.contenders}
    drawings, bare = [], False
    for method, metric in sorted(curves, key=lambda g: (-position.get(g[0], 0), g[0], _rank(g[1]))):
        drawing = _Drawing(method, metric, most, colours)
        bare |= _draw(drawing, curves[method, metric])
        drawings.append(drawing)
    headers = ["method", "metric", "recipe", "run", "steps", "first", "last", "band at the last", "lowest", "highest"]
    numbers = Table(headers, [row for d in drawings for row in d.rows])
    caption = _caption(facts, bare=bare, broken=broken)
    variants = [d.variant() for d in drawings]
    return Figure("training", "Training curves", caption, variants, numbers, "Method and metric")


def _draw(drawing: _Drawing, curves: Sequence[Curve]) -> bool:
    """Means first, then their seeds, then tuning runs; returns whether the bands were left out, being too many."""
    groups: dict[tuple[str, int], list[Curve]] = {}
    order = {label: place for place, label in enumerate(drawing.colours)}
    for curve in sorted(curves, key=lambda c: (order.get(c.stage.users[0], len(order)), c.stage.trial, c.stage.seed)):
        if curve.stage.final:
            groups.setdefault((curve.stage.users[0], curve.stage.place), []).append(curve)
    firsts = [label for label, _ in groups]
    singles: list[tuple[str, Curve, float]] = []
    means = 0
    for (label, place), own in groups.items():
        users = sorted({u for c in own for u in c.stage.users}, key=lambda u: (order.get(u, len(order)), u))
        name = " + ".join(users) + (f", step {place + 1}" if firsts.count(label) > 1 else "")
        mean = mean_over_seeds(own)
        if mean is not None:
            means += 1
            drawing.mean(name, users, mean, band=len(groups) <= _BANDS)
        singles += [(name, curve, _FINAL if len(own) == 1 else _SEED) for curve in own]
    singles += [(" + ".join(c.stage.users), c, _TUNING) for c in curves if not c.stage.final]
    # A lone seed stands for its recipe, as a mean does.
    for name, curve, opacity in sorted(singles, key=lambda one: -one[2]):
        drawing.single(name, curve, opacity)
    return means > 0 and len(groups) > _BANDS


def _caption(facts: Facts, *, bare: bool, broken: int) -> str:
    import polars as pl

    caption = (
        "What each method logged at each step. A full line is the mean over the seeds of a recipe's final runs, as far "
        "as every seed has logged values (the one seed's own where there is one). The band is Student's 95 % interval "
        "of that mean from three seeds on; two seeds hold none, and the band is what they span. Fainter lines are the "
        "single seeds, the faintest tuning runs. A stage shared by several recipes or trials was trained once and is "
        "drawn once. The table gives each curve's ends; every step is in the store's view training."
    )
    if bare:
        caption += f" Where more than {_BANDS} recipes are drawn together, the bands are in the table only."
    trained = facts.lineage.group_by("step").agg(pl.col("stage").n_unique())["stage"]
    if max(trained.to_list(), default=0) > TUNING_CURVES:
        caption += f" Of a method's tuning runs {TUNING_CURVES} at most are drawn, a random few."
    if broken:
        caption += f" {broken:,} logged values were NaN or infinite and are not drawn."
    return caption


def _thin(points: Sequence[_T], most: int) -> list[_T]:
    """Every so manieth, and the last."""
    stride = max(1, math.ceil(len(points) / most))
    return [*points[::stride], *([points[-1]] if (len(points) - 1) % stride else [])]


def _rank(metric: str) -> tuple[int, str]:
    return (_FIRST.index(metric) if metric in _FIRST else len(_FIRST), metric)


def _span(low: float, high: float) -> str:
    return f"{number(low)} to {number(high)}"
