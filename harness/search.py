"""Optuna as a pure function of the stored history: no study is kept anywhere, so a killed sweep resumes identically.

Each call rebuilds an in-memory study from the rows of the cell and asks it once, with a sampler seeded from the suite,
the cell and the trial's number. Trials are asked for in closed batches: a trial sees the results of earlier batches and
the settings, not the results, of its own batch, so that the order in which workers finish decides nothing.
"""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from harness.suite import Space

if TYPE_CHECKING:
    import optuna

__all__ = ["Past", "best_trial", "distribution", "suggest"]

Setting = bool | int | float | str | None
Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Past:
    """A trial as the history holds it. `values` are the objectives in the suite's order, None unless complete."""

    number: int
    settings: Mapping[str, Setting]
    state: Literal["running", "complete", "failed", "infeasible", "pruned"]
    values: tuple[float, ...] | None = None
    violations: Mapping[str, float] = field(default_factory=dict)
    """Constraint → amount by which it is broken; ≤ 0 is feasible."""
    intermediate: Mapping[int, float] = field(default_factory=dict)
    """Of a pruned trial: number of a rung that it reached → its value there, better in the objective's direction."""

    @property
    def usable(self) -> bool:
        """Whether it is complete and all its values are finite."""
        return self.state == "complete" and self.values is not None and all(math.isfinite(v) for v in self.values)


def distribution(space: Space) -> "optuna.distributions.BaseDistribution":
    """The search space as Optuna has it."""
    import optuna.distributions as d

    if space.values is not None:
        return d.CategoricalDistribution(space.values)
    if space.integer:
        return d.IntDistribution(int(space.low), int(space.high), log=space.log, step=int(space.step or 1))
    return d.FloatDistribution(space.low, space.high, log=space.log, step=space.step)


def _sampler(name: str, seed: int) -> "optuna.samplers.BaseSampler":
    import optuna

    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    if name == "gp":
        return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    raise ValueError(f"unknown sampler {name!r}")


def suggest(
    space: Mapping[str, Space],
    history: Sequence[Past],
    number: int,
    *,
    seed: str,
    sampler: str,
    directions: Sequence[Direction],
) -> dict[str, Setting]:
    """The settings of trial `number`.

    Args:
        space: flat setting names (`dpo.beta`) → search space; empty gives `{}`.
        history: trials with smaller numbers; running ones count as running. Pruned ones are worse than all complete
            ones; among them, those of later rungs are better, then those of better values.
        seed: what makes this cell's draws its own (suite and cell); combined with `number`.

    The same arguments give the same settings, in any process.
    """
    if not space:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    study = optuna.create_study(
        directions=list(directions), sampler=_sampler(sampler, int.from_bytes(digest[:4], "big"))
    )
    distributions = {name: distribution(s) for name, s in sorted(space.items())}
    states = optuna.trial.TrialState
    for past in sorted(history, key=lambda p: p.number):
        if past.number >= number:
            continue
        other = {"running": states.RUNNING, "pruned": states.PRUNED}
        state = states.COMPLETE if past.usable else other.get(past.state, states.FAIL)
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=dict(past.settings),
                distributions=distributions,
                values=list(past.values or ()) if past.usable else None,
                constraints=dict(past.violations) if past.usable and past.violations else None,
                # Optuna ranks pruned trials by their last value for a single objective only.
                intermediate_values=dict(past.intermediate) if len(directions) == 1 else None,
            )
        )
    trial = study.ask(distributions)
    return dict(trial.params)


def best_trial(history: Sequence[Past], directions: Sequence[Direction]) -> Past | None:
    """The complete, feasible trial to run with every seed: best by the first objective, then the next.

    With several objectives that is one end of the Pareto front, the end the suite names first. Ties go to the
    earlier trial. When no trial meets the constraints, the one that breaks them least.
    """
    complete = [past for past in history if past.usable]
    if not complete:
        return None
    signs = [-1.0 if d == "maximize" else 1.0 for d in directions]

    def rank(past: Past) -> tuple[float, list[float], int]:
        broken = sum(max(0.0, v) for v in past.violations.values())
        return broken, [s * v for s, v in zip(signs, past.values or (), strict=True)], past.number

    return min(complete, key=rank)
