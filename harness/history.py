"""What the store knows of a sweep's cells, and what follows from it: the settings that come next."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.resolve import Facts
from harness.search import Past, suggest
from harness.store import Store
from harness.suite import Suite

__all__ = ["ended_finals", "history", "next_batch", "owners", "past_trial", "training_rungs"]


def history(store: Store, suite: Suite, sweep: str, recipe: str, model: str) -> list[Past]:
    """The tuning trials of a cell, as the search needs them; `running` are also those that are to be run again."""
    if not store.ready():
        return []
    rows = store.query(
        "SELECT trial, state, settings, objectives FROM trials WHERE sweep = ? AND recipe = ? AND model = ? "
        "AND phase = 'tune' ORDER BY trial",
        [sweep, recipe, model],
    ).rows()
    reached = _reached(store, suite, sweep, recipe, model)
    return [
        past_trial(suite, number, state, json.loads(settings), json.loads(values or "{}"), reached.get(number, {}))
        for number, state, settings, values in rows
    ]


def _reached(store: Store, suite: Suite, sweep: str, recipe: str, model: str) -> dict[int, dict[int, float]]:
    """Pruned trial → rung → its value there, turned so that the objective's direction is better."""
    if suite.early_stopping is None:
        return {}
    training = suite.early_stopping.training
    against = training is not None and training.direction != next(iter(suite.objectives.values()))
    of_training = len(training_rungs(suite, recipe))
    found: dict[int, dict[int, float]] = {}
    rows = store.query(
        "SELECT trial, rung, value FROM rungs WHERE sweep = ? AND recipe = ? AND model = ?", [sweep, recipe, model]
    ).rows()
    for trial, rung, value in rows:
        found.setdefault(trial, {})[rung] = -value if against and rung <= of_training else value
    return found


def training_rungs(suite: Suite, recipe: str) -> list[tuple[int, float]]:
    """The training rungs of a recipe's trials, in order: the searched step's position, and the fraction of its steps.

    Their numbers count from 1; those of documents come after them.
    """
    training = suite.early_stopping.training if suite.early_stopping else None
    searched = [p for p, step in enumerate(suite.steps(recipe)) if step.recipe == recipe and step.spaces]
    return [(position, at) for position in searched for at in training.rungs] if training else []


def past_trial(
    suite: Suite,
    number: int,
    state: Any,  # noqa: ANN401  # one of Past's states
    settings: Mapping[str, Any],
    values: Mapping[str, float],
    intermediate: Mapping[int, float] | None = None,
) -> Past:
    """A trial as the search needs it, from the values of its objectives and constraints."""
    violations = {}
    for name, bound in suite.constraints.items():
        if name in values:
            violations[name] = (
                (values[name] - bound.max) if bound.max is not None else ((bound.min or 0.0) - values[name])
            )
    have = state == "complete" and all(n in values for n in suite.objectives)
    return Past(
        number=number,
        settings=settings,
        state=state,
        values=tuple(values[n] for n in suite.objectives) if have else None,
        violations=violations,
        intermediate=intermediate or {} if state == "pruned" else {},
    )


def ended_finals(store: Store, sweep: str) -> dict[tuple[object, ...], str]:
    """(recipe, model, trial, seed) of the final runs that ended without a result → the state they ended in."""
    rows = store.query(
        "SELECT recipe, model, trial, seed, state FROM trials WHERE sweep = ? AND phase = 'final' "
        "AND state IN ('failed', 'infeasible', 'pruned')",
        [sweep],
    ).rows()
    return {tuple(run): state for *run, state in rows}


def next_batch(facts: Facts, recipe: str, model: str, past: Sequence[Past]) -> dict[int, dict[str, Any]]:
    """The settings of the cell's first batch that is not wholly finished; empty when the budget is spent.

    A trial that `past` has as running keeps the settings it has there.
    """
    suite = facts.suite
    space, budget = suite.search_space(recipe), suite.budget
    finished = {p.number: p for p in past if p.state != "running"}
    recorded = {p.number: p.settings for p in past}
    for start in range(0, budget.trials_per_cell, budget.batch):
        numbers = range(start, min(start + budget.batch, budget.trials_per_cell))
        if all(n in finished for n in numbers):
            continue
        seen = [finished[n] for n in range(start)]
        batch: dict[int, dict[str, Any]] = {}
        for number in numbers:
            if number in recorded:
                # A trial that was begun, or is to be tried again, is that trial still.
                batch[number] = dict(recorded[number])
            else:
                batch[number] = suggest(
                    space,
                    seen,
                    number,
                    # Nothing else of the suite: a changed one begins with the same trials, and finds their results.
                    seed=f"{suite.name}/{recipe}/{model}",
                    sampler=suite.sampler,
                    directions=list(suite.objectives.values()),
                )
            # Within a batch the others count as running, whatever has become of them meanwhile.
            seen = [*seen, Past(number, batch[number], "running")]
        return {n: s for n, s in batch.items() if n not in finished}
    return {}


def owners(suite: Suite, recipe: str) -> set[str]:
    """The recipes whose chosen settings a run of this one needs, its own among them."""
    return {recipe, *suite.needs(recipe)}
