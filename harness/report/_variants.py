"""What a variant gives in latency and memory against the recipe it begins with, target by target, as ratios."""

from typing import TYPE_CHECKING

from harness.report._html import Html, Table, number
from harness.report._plot import Figure, Point, Series, bars, empty
from harness.report._queries import Contender, Facts

if TYPE_CHECKING:
    import numpy as np

__all__ = ["variants"]

_RESAMPLES = 1000
_RATIOS = {
    "e2e_ms": ("speed-up of a request", True),
    "ttft_ms": ("of the first token", True),
    "tpot_ms": ("of further tokens", True),
    "weight_mb": ("weights in memory", False),
    "weight_disk_mb": ("weights on disk", False),
    "peak_rss_mb": ("peak memory", False),
}
"""Metric → what its ratio is called, and whether less is more: then the ratio is turned round."""

Ratio = tuple[float, float, float]
"""The ratio of the medians, and its 95 % bootstrap interval."""


def variants(facts: Facts) -> Figure | Html:
    """Ratios of each recipe to the one it begins with, both profiled on the same target in this sweep."""
    title = "What each step gave, against the recipe it begins with"
    if facts.repeats.is_empty():
        return empty(title, facts.why_none("profile", "been profiled"))
    targets = list(dict.fromkeys(facts.repeats["target"].to_list()))
    rows: list[list[object]] = []
    shared = False
    speed: dict[str, tuple[Contender, list[Point]]] = {}
    for who in facts.recipes():
        origin = facts.origin_of(who)
        if origin is None:
            continue
        for target in targets:
            beside = _beside(facts, origin, target)
            pair = (who, target), (origin, beside)
            if _one_profile(facts, *pair):
                shared = True
                continue
            found = {m: _ratio(facts, *pair, m, turned=t) for m, (_, t) in _RATIOS.items()}
            if all(r is None for r in found.values()):
                continue
            begun = origin.label if beside == target else f"{origin.label} on {beside}"
            rows.append([who.label, begun, target, *(_text(r) for r in found.values())])
            if (ratio := found["e2e_ms"]) is not None:
                lines = [f"{who.label} on {target}", f"speed-up {_text(ratio)} over {begun}"]
                point = Point(target, ratio[0], lines, spread_y=ratio[1:])
                speed.setdefault(who.label, (who, []))[1].append(point)
    if not rows:
        alike = "No step changed the model's shape: each recipe shares its profiles with the one it begins with."
        none = "No recipe and the one it begins with were both profiled on one target so far."
        return empty(title, alike if shared else none)
    caption = (
        "Ratios of medians over the repeats, with 95 % bootstrap intervals: a speed-up above 1 is faster, a weight "
        "or memory ratio below 1 is smaller. Both models were profiled on the same machine in this sweep, on the same "
        "target (an exported model against the other where that one is compared), one after another, so what changed "
        "between the two runs is in the ratio and not in the interval. A step that only trains changes no shape "
        "and is left out: both models share one profile."
    )
    drawing = bars([Series(w.label, w.index, p) for w, p in speed.values()], "speed-up", "speed-up of a request")
    headers = ["recipe", "begins with", "target", *(f"{name}, ×" for name, _ in _RATIOS.values())]
    return Figure("variants", title, caption, [drawing], Table(headers, rows))


def _beside(facts: Facts, origin: Contender, target: str) -> str:
    """The target on which a recipe's origin was profiled: the same, or where it does not run there its own."""
    mine = facts.repeats.filter(facts.repeats["label"] == origin.label)["target"]
    return target if target in set(mine.to_list()) else facts.target_of(origin)


def _samples(facts: Facts, who: Contender, target: str, metric: str) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    import polars as pl

    mine = facts.repeats.filter(
        (pl.col("label") == who.label) & (pl.col("target") == target) & (pl.col("metric") == metric)
    )
    # The first batch size as the suite lists it stands for the others; what is measured at loading has one setting.
    setting = facts.first_batch()
    exact = mine.filter(pl.col("setting") == setting)
    return (mine if exact.is_empty() else exact)["value"].to_numpy()


def _one_profile(facts: Facts, who: tuple[Contender, str], origin: tuple[Contender, str]) -> bool:
    """Whether both are one measurement: no two would repeat each other to the last bit."""
    own, other = (_samples(facts, *place, "e2e_ms") for place in (who, origin))
    return len(own) > 0 and own.tolist() == other.tolist()


def _ratio(
    facts: Facts, who: tuple[Contender, str], origin: tuple[Contender, str], metric: str, *, turned: bool
) -> Ratio | None:
    import numpy as np

    own, other = (_samples(facts, *place, metric) for place in (who, origin))
    if not len(own) or not len(other) or not np.median(own) or not np.median(other):
        return None
    generator = np.random.default_rng(0)
    draws = [np.median(v[generator.integers(0, len(v), (_RESAMPLES, len(v)))], axis=1) for v in (own, other)]
    value, spread = np.median(own) / np.median(other), draws[0] / draws[1]
    if turned:
        value, spread = 1 / value, 1 / spread
    low, high = np.quantile(spread, [0.025, 0.975])
    return float(value), float(low), float(high)


def _text(ratio: Ratio | None) -> str | None:
    if ratio is None:
        return None
    value, low, high = ratio
    return number(value) if low == high else f"{number(value)} [{number(low)}, {number(high)}]"
