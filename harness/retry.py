"""Running failures again: the trials and final runs of a sweep that ended without a result are opened anew.

Opened means a row that says `running` with the settings they had: the sweep that follows goes through them as through
any trial it finds begun. The rows of their failures stay.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from harness.errors import UserError
from harness.execute import Result
from harness.plan import Plan
from harness.provenance import environment
from harness.store import Store

__all__ = ["Ended", "close_unused", "find_ended", "reopen"]

_KINDS = tuple(k for k in get_args(Result.model_fields["state"].annotation) if k != "complete")

_ENDED = """
    SELECT t.recipe, t.model, t.trial, t.seed, t.phase, t.state,
        CASE WHEN t.state = 'failed' AND f.kind = 'crash' THEN 'crash' ELSE t.state END AS kind, t.settings, t.seconds
    FROM trials t LEFT JOIN (
        SELECT recipe, model, trial, seed, arg_max(kind, (batch, batch_row)) AS kind FROM raw.failure_events
        WHERE sweep = $sweep GROUP BY ALL
    ) f USING (recipe, model, trial, seed)
    WHERE t.sweep = $sweep AND t.state IN ('failed', 'infeasible', 'pruned') ORDER BY ALL
"""
_OPEN = "SELECT recipe, model, trial, seed, phase FROM trials WHERE sweep = ? AND state = 'running'"
_FOUND = "SELECT DISTINCT recipe, model FROM trials WHERE sweep = ? AND phase = 'tune' AND state = 'complete'"


@dataclass(frozen=True)
class Ended:
    """A tuning trial or final run that ended without a result. `kind` tells a crash of the machinery from `failed`."""

    recipe: str
    model: str
    trial: int
    seed: int
    phase: str
    state: str
    kind: str
    settings: str
    seconds: float | None

    def words(self) -> str:
        """One line about it."""
        what = f"trial {self.trial}" if self.phase == "tune" else f"final run, seed {self.seed}"
        return f"{self.recipe} on {self.model}, {what}: {self.kind}"

    @property
    def run(self) -> tuple[str, str, int, int, str]:
        """What names it within its sweep."""
        return self.recipe, self.model, self.trial, self.seed, self.phase


def find_ended(
    store: Store,
    plan: Plan,
    *,
    recipe: str | None = None,
    model: str | None = None,
    kind: str | None = None,
    trial: int | None = None,
) -> list[Ended]:
    """What there is to run again. Ingest before.

    Tuning trials that were infeasible or pruned are passed over unless asked for by kind or number: the search has
    learned from them. Where no trial of a cell came to a result, all of its trials count.

    Raises:
        UserError: the suite has no such recipe or model, there is no such kind, or the sweep has never run.
    """
    recipes = ["base", *plan.suite.recipe_order()]
    for option, given, there in (
        ("--recipe", recipe, recipes),
        ("--model", model, plan.suite.models),
        ("--kind", kind, _KINDS),
    ):
        if given is not None and given not in there:
            raise UserError(f"{option}: expected one of {', '.join(there)}; got {given!r}")
    known: list[str] = []
    if store.ready():
        known = store.query("SELECT sweep FROM suites WHERE suite = ?", [plan.suite.name])["sweep"].to_list()
    if plan.sweep not in known:
        earlier = f" (there are sweeps of other versions of this suite: {', '.join(known)})" if known else ""
        raise UserError(f"this suite has not run in {store.results} yet{earlier}: run `harness sweep` first")
    ended = [Ended(*row) for row in store.query(_ENDED, {"sweep": plan.sweep}).rows()]
    found = set(store.query(_FOUND, [plan.sweep]).rows())
    asked = kind is not None or trial is not None
    return [
        one
        for one in ended
        if recipe in (None, one.recipe)
        and model in (None, one.model)
        and kind in (None, one.kind)
        and trial in (None, one.trial)
        and (asked or one.phase == "final" or one.state == "failed" or (one.recipe, one.model) not in found)
    ]


def reopen(store: Store, sweep: str, ended: Sequence[Ended]) -> None:
    """Open them anew. Call only while no other command is at work there."""
    _events(store, sweep, [(one, "running", None) for one in ended])


def close_unused(store: Store, sweep: str, ended: Sequence[Ended]) -> None:
    """Give those back their state that the sweep has not gone through: final runs of settings no longer chosen."""
    store.ingest()
    still = set(store.query(_OPEN, [sweep]).rows())
    _events(store, sweep, [(one, one.state, one.seconds) for one in ended if one.run in still])


def _events(store: Store, sweep: str, changes: Sequence[tuple[Ended, str, float | None]]) -> None:
    rows = [
        {
            "sweep": sweep,
            "recipe": one.recipe,
            "model": one.model,
            "trial": one.trial,
            "seed": one.seed,
            "phase": one.phase,
            "state": state,
            "settings": json.loads(one.settings),
            "objectives": None,
            "artifact": None,
            "reward_artifact": None,
            "seconds": seconds,
            "at": environment().now(),
        }
        for one, state, seconds in changes
    ]
    store.append("trial_events", rows)
