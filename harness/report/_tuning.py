"""The tuning trials of each recipe: their settings, what they reached, and which one was chosen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.report._queries import Contender, Facts, mapping

__all__ = ["Trial", "chosen_trial", "ended_trials", "first_objective", "less_is_better", "tuning_trials"]


@dataclass(frozen=True)
class Trial:
    """One tuning trial; `values` are the objectives and constraints it reached, finite ones only, {} unless complete.

    `broken`: whether it breaks a constraint of the suite.
    """

    number: int
    seed: int
    state: str
    settings: Mapping[str, object]
    values: Mapping[str, float]
    seconds: float | None
    broken: bool


def tuning_trials(facts: Facts, who: Contender) -> list[Trial]:
    """A recipe's tuning trials in the order of their numbers."""
    return facts.once("tuning", lambda: _read(facts))[0].get(who.label, [])


def ended_trials(facts: Facts, who: Contender) -> list[Trial]:
    """Those of them that are not running."""
    return [t for t in tuning_trials(facts, who) if t.state != "running"]


def chosen_trial(facts: Facts, who: Contender) -> int | None:
    """The trial whose settings the final runs have; None before there is one."""
    return facts.once("tuning", lambda: _read(facts))[1].get(who.label)


def first_objective(facts: Facts) -> str | None:
    """The objective by which settings are chosen; None where nothing was reached yet."""
    return next(iter(facts.objectives), None)


def less_is_better(facts: Facts, objective: str) -> bool:
    """Whether the suite minimises an objective."""
    return facts.objectives.get(objective) == "minimize"


def _read(facts: Facts) -> tuple[dict[str, list[Trial]], dict[str, int]]:
    bounds = _bounds(facts)
    found: dict[str, list[Trial]] = {}
    chosen: dict[str, int] = {}
    columns = ("label", "phase", "trial", "seed", "state", "settings", "objectives", "seconds")
    for label, phase, number, seed, state, settings, reached, seconds in facts.trials.select(columns).iter_rows():
        if phase == "final":
            chosen.setdefault(label, number)
            continue
        values = _finite(mapping(reached)) if state == "complete" else {}
        broken = any(name in values and not low <= values[name] <= high for name, (low, high) in bounds.items())
        found.setdefault(label, []).append(Trial(number, seed, state, mapping(settings), values, seconds, broken))
    return {label: sorted(own, key=lambda t: (t.number, t.seed)) for label, own in found.items()}, chosen


def _finite(values: Mapping[str, object]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}


def _bounds(facts: Facts) -> dict[str, tuple[float, float]]:
    """Constraint → the least and the most that a trial may reach."""
    given = facts.settings.get("constraints")
    found = {}
    for name, bound in given.items() if isinstance(given, dict) else ():
        low, high = (bound.get(end) if isinstance(bound, dict) else None for end in ("min", "max"))
        found[str(name)] = (-math.inf if low is None else float(low), math.inf if high is None else float(high))
    return found
