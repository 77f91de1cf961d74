"""What quality costs in latency and memory: the Pareto front over recipes and targets, and the quality gate."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.keys import content_key
from harness.pareto import front, membership
from harness.report._compare import objective_scores, objective_source
from harness.report._html import Html, Table, number
from harness.report._plot import Figure, Point, Series, empty, scatter
from harness.report._queries import Contender, Facts
from harness.report._volume import BEYOND, volume_lost
from harness.targets import Target

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["front_sentences", "tradeoffs"]

_RESAMPLES = 1000
_FEWEST = 2
_SHOWN = 4
"""Members of the front that are named in words."""
_AXES = {"e2e_ms": "end-to-end latency, ms", "memory": "peak memory, MiB", "weight_mb": "weights in memory, MiB"}


@dataclass(frozen=True)
class _Variant:
    """A recipe on a target: bootstrap draws [1 + resamples] of its quality and costs, the estimate itself first."""

    who: Contender
    target: str
    quality: "npt.NDArray[np.float64]"
    costs: "dict[str, npt.NDArray[np.float64]]"
    ratio: "npt.NDArray[np.float64]"
    speedup: "npt.NDArray[np.float64]"

    @property
    def name(self) -> str:
        return f"{self.who.label} on {self.target}"


@dataclass(frozen=True)
class _Front:
    """The variants; of those that pass the gate the share of resamples on the front, and who is on it.

    `lost`: recipe → the share of the hypervolume that the front has only by it, with its interval.
    """

    objective: str
    variants: "list[_Variant]"
    gate: float
    shares: dict[str, float]
    members: set[str]
    lost: dict[str, tuple[float, float, float]]


def _front(facts: Facts) -> _Front | None:
    """What the page says of the front, computed once; None without a quality to compare."""
    key = ("front",)
    return facts.once(key, lambda: _make_front(facts))


def _make_front(facts: Facts) -> _Front | None:
    objective = _quality_objective(facts)
    found = None
    if objective is not None:
        variants = _variants(facts, objective)
        found = _compared(facts, variants, objective)
    return found


def front_sentences(facts: Facts) -> list[str]:
    """Which variants are on the front, the surest first; nothing where latency and quality were not both measured."""
    found = None if facts.repeats.is_empty() else _front(facts)
    if found is None or len(found.variants) < _FEWEST or not found.members:
        return []
    if len({float(v.costs["e2e_ms"][0]) for v in found.variants}) < _FEWEST:
        # All share one profile: there is nothing to trade quality for.
        return []
    passing = sum(v.ratio[0] >= found.gate for v in found.variants)
    own = sorted((v for v in found.variants if v.name in found.members), key=lambda v: -found.shares[v.name])
    parts = [f"{v.name} ({_gain(v)}on it in {found.shares[v.name]:.0%} of resamples)" for v in own[:_SHOWN]]
    more = f" and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
    return [
        f"Of {len(found.variants)} variants (recipe and target) {passing} keep {found.gate:.1%} of the base model's "
        f"{found.objective.replace('_', ' ')}. Of these, on the Pareto front of quality, latency and memory: "
        f"{'; '.join(parts)}{more}."
    ]


def _gain(variant: _Variant) -> str:
    speed = float(variant.speedup[0])
    return "" if math.isnan(speed) else f"{number(speed, 2)} times as fast as base, "


def tradeoffs(facts: Facts) -> Figure | Html:
    """Quality against latency, memory and weights, a mark for each recipe on each target."""
    title = "Quality against latency and memory"
    if facts.repeats.is_empty():
        return empty(title, facts.why_none("profile", "been profiled"))
    found = _front(facts)
    if found is None:
        return empty(title, "No quality was measured beside the profiles: the suite needs tasks, gold or judge.")
    objective, variants, gate = found.objective, found.variants, found.gate
    if len(variants) < _FEWEST:
        return empty(title, "Fewer than two recipes have both a final quality and a profile so far.")
    shares = found.shares
    drawings = []
    for axis, label in _AXES.items():
        shown = [v for v in variants if axis in v.costs]
        if not shown:
            continue
        series, seen = [], set()
        for v in shown:
            passes = v.ratio[0] >= gate
            spread = _interval(v.quality)
            lines = [
                v.name,
                f"{objective} {number(v.quality[0])} [{number(spread[0])}, {number(spread[1])}]",
                f"{label} {number(v.costs[axis][0])}",
                f"on the front in {shares[v.name]:.0%} of resamples" if v.name in shares else "not compared",
                "passes the quality gate" if passes else "fails the quality gate",
            ]
            point = Point(float(v.costs[axis][0]), float(v.quality[0]), lines, _interval(v.costs[axis]), spread)
            series.append(
                Series(v.who.label, v.who.index, [point], 12, hollow=not passes, legend=v.who.label not in seen)
            )
            seen.add(v.who.label)
        drawn = scatter(series, label, objective)
        drawings.append(type(drawn)(label, drawn.traces, {**drawn.layout, "showlegend": True}))
    caption = (
        f"Higher and further left is better. A mark is a recipe on a target: the mean {objective} over the final "
        "documents, the median latency over the repeats of one request at the first batch size. Bars are 95 % "
        "bootstrap intervals. Hollow marks fail the quality gate: less than "
        f"{gate:.1%} of the untouched base model's quality on target {facts.target}, so their speed does not count. "
        "The front is that of quality, latency and memory together, among the variants that pass; its share is that of "
        f"{_RESAMPLES} bootstrap resamples (documents, the same for all, and repeats) in which the variant is on it. "
        "What the front would lose without a recipe is its share of the hypervolume, the volume in quality, latency "
        f"and memory that the compared variants dominate, up to a corner {BEYOND:.0%} of their range beyond the worst."
    )
    return Figure("tradeoffs", title, caption, drawings, _table(facts, found), "Cost")


def _gate(facts: Facts) -> float:
    measure = facts.settings.get("measure")
    found = measure.get("quality_gate") if isinstance(measure, dict) else None
    return float(found) if isinstance(found, int | float) else 0.99


def _quality_objective(facts: Facts) -> str | None:
    names = [*facts.objectives, "score", "gold_reward", "helpfulness"]
    return next(
        (
            name
            for name in names
            if name != "kl"
            and objective_source(facts, name)
            and any(objective_scores(facts, who, name) for who in facts.contenders)
        ),
        None,
    )


def _targets(facts: Facts) -> dict[str, str]:
    """Target → the target whose quality is its own: the one of the same numerics that was scored."""
    listed = facts.settings.get("targets")
    measured = sorted(set(facts.documents["target"].to_list()))
    if not isinstance(listed, list):
        # A sweep recorded without its targets: each scored one stands for itself.
        return {name: name for name in measured}
    numerics = {t.name: content_key("numerics", **t.numerics()) for t in map(Target.model_validate, listed)}
    scored: dict[str, str] = {}
    for name, key in numerics.items():
        if name in measured:
            scored.setdefault(key, name)
    return {name: scored[key] for name, key in numerics.items() if key in scored}


def _variants(facts: Facts, objective: str) -> list[_Variant]:
    import numpy as np

    generator = np.random.default_rng(0)
    views = {scored: facts.on_target(scored) for scored in _targets(facts).values()}
    scores = {
        (who.label, target): found
        for who in facts.contenders
        for target, scored in _targets(facts).items()
        if (found := objective_scores(views[scored], who, objective))
    }
    # Only documents that all answered: a resample must be the same for every variant.
    common = sorted(set.intersection(*(set(s) for s in scores.values()))) if scores else []
    if not common:
        return []
    picks = generator.integers(0, len(common), (_RESAMPLES, len(common)))
    latency = facts.first_batch()
    draws: dict[tuple[str, str], Any] = {}
    for key, found in scores.items():
        values = np.array([np.mean(found[d]) for d in common])
        draws[key] = np.concatenate([[values.mean()], values[picks].mean(1)])
    costs = {key: _costs(facts, *key, latency, generator) for key in scores}
    variants = []
    for who in facts.contenders:
        base = facts.base_of(who) or who
        reference = draws.get((base.label, facts.target))
        for target in _targets(facts):
            key = (who.label, target)
            if key not in draws or "e2e_ms" not in costs[key] or reference is None:
                continue
            own = costs.get((base.label, facts.target), {}).get("e2e_ms")
            speedup = np.full(1, np.nan) if own is None else own / costs[key]["e2e_ms"]
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = draws[key] / reference
            variants.append(_Variant(who, target, draws[key], costs[key], ratio, speedup))
    return variants


def _costs(facts: Facts, label: str, target: str, setting: str, generator: "np.random.Generator") -> dict[str, Any]:
    import numpy as np
    import polars as pl

    mine = facts.repeats.filter((pl.col("label") == label) & (pl.col("target") == target))
    found: dict[str, Any] = {}
    for axis, names in {
        "e2e_ms": ("e2e_ms",),
        "memory": ("peak_cuda_mb", "peak_rss_mb"),
        "weight_mb": ("weight_mb",),
    }.items():
        for name in names:
            rows = mine.filter((pl.col("metric") == name) & pl.col("setting").is_in([setting, "load"]))
            exact = rows.filter(pl.col("setting") == setting)
            values = (rows if exact.is_empty() else exact)["value"].to_numpy()
            if len(values):
                picked = values[generator.integers(0, len(values), (_RESAMPLES, len(values)))]
                found[axis] = np.concatenate([[np.median(values)], np.median(picked, 1)])
                break
    return found


def _compared(facts: Facts, variants: list[_Variant], objective: str) -> _Front:
    import numpy as np

    sign = 1.0 if facts.objectives.get(objective) == "minimize" else -1.0
    gate = _gate(facts)
    shown = [v for v in variants if v.ratio[0] >= gate and "memory" in v.costs]
    if not shown:
        return _Front(objective, variants, gate, {}, set(), {})
    # [1 + resamples, variants, axes]
    points = np.stack([np.stack([sign * v.quality, v.costs["e2e_ms"], v.costs["memory"]], -1) for v in shown], 1)
    names = [v.name for v in shown]
    shares = dict(zip(names, membership(points[1:]).tolist(), strict=True))
    members = {name for name, yes in zip(names, front(points[0]), strict=True) if yes}
    lost = volume_lost(points, [v.who.label for v in shown])
    return _Front(objective, variants, gate, shares, members, lost)


def _interval(draws: "npt.NDArray[np.float64]") -> tuple[float, float]:
    import numpy as np

    low, high = np.nanquantile(draws[1:], [0.025, 0.975]) if len(draws) > 1 else (np.nan, np.nan)
    return float(low), float(high)


def _span(draws: "npt.NDArray[np.float64]") -> str:
    low, high = _interval(draws)
    return f"{number(float(draws[0]))} [{number(low)}, {number(high)}]"


def _table(facts: Facts, found: _Front) -> Table:
    rows: list[list[object]] = []
    for v in found.variants:
        on = None
        if v.name in found.shares:
            on = f"{'yes' if v.name in found.members else 'no'}, {found.shares[v.name]:.0%}"
        rows.append(
            [
                v.who.label,
                v.target,
                _span(v.quality),
                _span(v.ratio),
                "passes" if v.ratio[0] >= found.gate else "fails",
                number(float(v.costs["e2e_ms"][0])),
                _span(v.speedup),
                number(float(v.costs["memory"][0])) if "memory" in v.costs else None,
                number(float(v.costs["weight_mb"][0])) if "weight_mb" in v.costs else None,
                on,
                None if on is None else "{:.0%} [{:.0%}, {:.0%}]".format(*found.lost[v.who.label]),
            ]
        )
    return Table(
        [
            "recipe",
            "target",
            f"{found.objective}, 95 %",
            "of the base model's",
            f"gate {found.gate:.1%}",
            "latency, ms",
            f"speed-up over base on {facts.target}",
            "peak memory, MiB",
            "weights, MiB",
            "on the front",
            "front's loss without the recipe, 95 %",
        ],
        rows,
    )
