"""What a cell's tuning has cost so far, and which bound of its budget that reaches.

The cost of a stage or measurement is what it took when it was computed, whoever computed it: a cell that finds its
trials in the store has spent as much as one that computed them, and a sweep that was killed goes on to the same bound.
"""

from dataclasses import dataclass

from harness.store import Store
from harness.suite import Budget, Suite

__all__ = ["Spent", "bound_before", "bound_reached", "bounded"]

_TOKENS = ("train_tokens", "sampled_tokens")
"""Figures of a stage that count the tokens it trained on and those it sampled."""


@dataclass(frozen=True)
class Spent:
    """Hours of workers, tokens trained on and sampled, and the price of judge votes."""

    device_hours: float = 0.0
    tokens: int = 0
    judge_cost: float = 0.0


def bounded(budget: Budget) -> bool:
    """Whether the budget bounds what is spent, and not only the number of trials."""
    return any(bound is not None for bound in (budget.device_hours, budget.tokens, budget.judge_cost))


def bound_before(store: Store, suite: Suite, sweep: str, recipe: str, model: str, trial: int) -> str | None:
    """The bound of its budget that a cell has reached with the batches before this trial's, in words; None: none."""
    budget = suite.budget
    if not bounded(budget):
        return None
    return bound_reached(budget, _spent_by_trials(store, suite, sweep, recipe, model, budget.batch_start(trial)))


def _spent_by_trials(store: Store, suite: Suite, sweep: str, recipe: str, model: str, trials: int) -> Spent:
    """What the first `trials` tuning trials of a cell have cost.

    Stages of the recipes that this one uses belong to those recipes' cells. A stage that
    several trials share counts once. What failed counts with the time until it failed; its tokens are not known.
    """
    if not store.ready():
        return Spent()
    inherited = len(suite.steps(recipe)) - sum(step.recipe == recipe for step in suite.steps(recipe))
    where = [sweep, recipe, model, trials, suite.seeds[0]]
    tokens = " + ".join(f"coalesce(CAST(json_extract(s.metrics, '$.{name}') AS DOUBLE), 0)" for name in _TOKENS)
    trained = store.query(
        f"SELECT coalesce(sum(s.seconds), 0.0), coalesce(sum({tokens}), 0.0) FROM raw.stages s WHERE s.stage IN ("
        "SELECT stage FROM raw.stage_links WHERE sweep = ? AND recipe = ? AND model = ? AND trial < ? AND seed = ? "
        f"AND position >= {inherited})",
        where,
    ).rows()[0]
    linked = (
        "SELECT DISTINCT measurement FROM raw.measurement_links WHERE sweep = ? AND recipe = ? AND model = ? "
        "AND trial < ? AND seed = ? AND phase = 'tune'"
    )
    measured = store.query(
        f"SELECT coalesce(sum(seconds), 0.0) FROM raw.measurements WHERE measurement IN ({linked})", where
    ).rows()[0][0]
    failed = store.query(
        "SELECT coalesce(sum(seconds), 0.0) FROM raw.failure_events WHERE sweep = ? AND recipe = ? AND model = ? "
        "AND trial < ? AND seed = ?",
        where,
    ).rows()[0][0]
    price = suite.measure.judge.cost_per_vote if suite.measure.judge else None
    votes, paid = store.query(
        "SELECT count(*) FILTER (WHERE cost IS NULL), coalesce(sum(cost), 0) FROM raw.judge_votes "
        f"WHERE measurement IN ({linked})",
        where,
    ).rows()[0]
    return Spent(
        device_hours=(trained[0] + measured + failed) / 3600,
        tokens=int(trained[1]),
        judge_cost=votes * (price or 0.0) + paid,
    )


def bound_reached(budget: Budget, spent: Spent) -> str | None:
    """The first bound of the budget that is reached, in words with both figures; None while there is some left."""
    for name, unit in (("device_hours", "device-hours"), ("tokens", "tokens"), ("judge_cost", "of judge votes")):
        bound, used = getattr(budget, name), getattr(spent, name)
        if bound is not None and used >= bound:
            return f"{used:.4g} of {bound:.4g} {unit} spent (budget.{name})"
    return None
