"""What stages logged while they trained: whose each curve is, and the mean of a recipe's over its seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.report._queries import Facts

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Curve", "Mean", "Stage", "mean_over_seeds", "read_curves"]

_T_FROM = 3
"""Seeds from which on a t interval says something."""


@dataclass(frozen=True)
class Stage:
    """Whose training this was. A stage that several runs share was trained once; it goes by the first that used it.

    `place`: the step's position in the first user's recipe, which may train twice alike; -1 where it is not known.
    """

    users: tuple[str, ...]
    final: bool
    trial: int
    seed: int
    place: int

    @property
    def run(self) -> str:
        """The run in words."""
        return f"{'final' if self.final else 'tuning'} run, trial {self.trial}, seed {self.seed}"


@dataclass(frozen=True)
class Curve:
    """What one stage logged of one metric, finite values only, in the order of the steps."""

    stage: Stage
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Mean:
    """Over seeds, at the steps that all of them have; `bounds` are the band's ends at each, `band` says which."""

    steps: Sequence[int]
    values: Sequence[float]
    bounds: Sequence[tuple[float, float]]
    seeds: int
    band: str


def read_curves(facts: Facts) -> tuple[dict[tuple[str, str], list[Curve]], int]:
    """The curves by method and metric, and how many logged values were NaN or infinite."""
    import polars as pl

    once = facts.training.unique(["stage", "metric", "step"], keep="first")
    known = once.filter(pl.col("value").is_finite()).sort("method", "metric", "stage", "step")
    stages = _stages(facts)
    curves: dict[tuple[str, str], list[Curve]] = {}
    # One frame for all of them: a frame each would take longer than everything else.
    parts = known.group_by("method", "metric", "stage", maintain_order=True).agg("step", "value")
    for method, metric, stage, steps, values in parts.iter_rows():
        curves.setdefault((method, metric), []).append(Curve(stages[stage], steps, values))
    return curves, once.height - known.height


def mean_over_seeds(curves: Sequence[Curve]) -> Mean | None:
    """The mean of several seeds' curves; None for one seed, or where no step is common to all.

    Its band is Student's t interval of the mean at each step by itself from three seeds on; two seeds hold none, and
    the band is what they span.
    """
    common = sorted(set.intersection(*(set(c.steps) for c in curves)))
    if len(curves) < 2 or not common:
        return None
    own = [dict(zip(c.steps, c.values, strict=True)) for c in curves]
    table = np.array([[values[step] for step in common] for values in own])
    centre, low, high, band = table.mean(axis=0), table.min(axis=0), table.max(axis=0), "lowest to highest"
    if len(curves) >= _T_FROM:
        from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

        half = float(stdtrit(len(curves) - 1, 0.975)) * table.std(axis=0, ddof=1) / math.sqrt(len(curves))
        low, high, band = centre - half, centre + half, "95 % t interval"
    bounds = list(zip(low.tolist(), high.tolist(), strict=True))
    return Mean(common, centre.tolist(), bounds, len(curves), band)


def _stages(facts: Facts) -> dict[str, Stage]:
    order = {c.label: place for place, c in enumerate(facts.contenders)}
    places = _places(facts.lineage)
    runs: dict[tuple[str, str], list[tuple[bool, int, int, int, str]]] = {}
    columns = ("stage", "method", "label", "trial", "seed", "phase")
    for stage, method, label, trial, seed, phase in facts.training.select(columns).unique().iter_rows():
        runs.setdefault((stage, method), []).append(
            (phase != "final", order.get(label, len(order)), trial, seed, label)
        )
    found = {}
    for (stage, method), used in runs.items():
        tuning, _, trial, seed, _ = min(used)
        users = tuple(dict.fromkeys(label for _, label in sorted((place, label) for _, place, _, _, label in used)))
        own = places.get((users[0], method), {})
        several = len(set(own.values())) > 1
        # A stage that never completed has no place; where its recipe has the method once, it is that one's.
        place = own.get(stage, -1) if several else next(iter(own.values()), -1)
        found[stage] = Stage(users, not tuning, trial, seed, place)
    return found


def _places(lineage: "pl.DataFrame") -> dict[tuple[str, str], dict[str, int]]:
    """Recipe and method → stage → its position there, the first where one stage has several."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    rows = lineage.select("label", "step", "stage", "position").unique().sort("position")
    for label, method, stage, place in rows.iter_rows():
        found.setdefault((label, method), {}).setdefault(stage, place)
    return found
