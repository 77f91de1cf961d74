"""What the store knows of a sweep's cells, and what follows from it: the next settings, the stages decided so far."""

import json
from pathlib import Path
from typing import Any

from harness.execute import StageSpec
from harness.resolve import Facts, Run, Settings, chain
from harness.search import Past, best_trial, suggest
from harness.store import Store
from harness.suite import Suite

__all__ = ["history", "known_stages", "next_batch", "owners"]


def history(store: Store, suite: Suite, sweep: str, recipe: str, model: str) -> list[Past]:
    """The finished tuning trials of a cell, as the search needs them."""
    if not store.ready():
        return []
    rows = store.query(
        "SELECT trial, state, settings, objectives FROM trials WHERE sweep = ? AND recipe = ? AND model = ? "
        "AND phase = 'tune' AND state <> 'running' ORDER BY trial",
        [sweep, recipe, model],
    ).rows()
    return [_past(suite, *row) for row in rows]


def _past(suite: Suite, number: int, state: Any, settings: str, objectives: str | None) -> Past:  # noqa: ANN401  # one of Past's states
    values = json.loads(objectives) if objectives else {}
    violations = {}
    for name, bound in suite.constraints.items():
        if name in values:
            violations[name] = (
                (values[name] - bound.max) if bound.max is not None else ((bound.min or 0.0) - values[name])
            )
    have = state == "complete" and all(n in values for n in suite.objectives)
    return Past(
        number=number,
        settings=json.loads(settings),
        state=state,
        values=tuple(values[n] for n in suite.objectives) if have else None,
        violations=violations,
    )


def next_batch(facts: Facts, sweep: str, recipe: str, model: str, past: list[Past]) -> dict[int, dict[str, Any]]:
    """The settings of the cell's first batch that is not wholly finished; empty when the budget is spent."""
    suite = facts.suite
    space, budget = suite.search_space(recipe), suite.budget
    finished = {p.number: p for p in past}
    for start in range(0, budget.trials_per_cell, budget.batch):
        numbers = range(start, min(start + budget.batch, budget.trials_per_cell))
        if all(n in finished for n in numbers):
            continue
        seen = [finished[n] for n in range(start)]
        batch: dict[int, dict[str, Any]] = {}
        for number in numbers:
            if number in finished:
                batch[number] = dict(finished[number].settings)
            else:
                batch[number] = suggest(
                    space,
                    seen,
                    number,
                    seed=f"{sweep}/{recipe}/{model}",
                    sampler=suite.sampler,
                    directions=list(suite.objectives.values()),
                )
            # Within a batch the others count as running, whatever has become of them meanwhile.
            seen = [*seen, Past(number, batch[number], "running")]
        return {n: s for n, s in batch.items() if n not in finished}
    return {}


def known_stages(facts: Facts, results: Path) -> list[StageSpec]:
    """The stages whose settings are decided: fixed ones, trials of the history, and the next batch of each cell."""
    suite, store, sweep = facts.suite, Store(results), facts.suite.sweep_id()
    specs: dict[str, StageSpec] = {}
    for model in suite.models:
        chosen: dict[str, Settings] = {}
        for recipe in suite.recipe_order():
            if any(need not in chosen for need in suite.needs(recipe)):
                continue
            before = {r: s for r, s in chosen.items() if r in owners(suite, recipe)}
            runs: list[tuple[Settings, int]] = []
            if suite.search_space(recipe):
                past = history(store, suite, sweep, recipe, model)
                batch = next_batch(facts, sweep, recipe, model, past)
                runs += [(p.settings, suite.seeds[0]) for p in past]
                runs += [(s, suite.seeds[0]) for s in batch.values()]
                best = None if batch else best_trial(past, list(suite.objectives.values()))
                if best is not None:
                    chosen[recipe] = best.settings
            else:
                chosen[recipe] = {}
            if recipe in chosen:
                runs += [(chosen[recipe], seed) for seed in suite.seeds]
            for settings, seed in runs:
                for spec in chain(facts, Run(recipe, model, seed, {**before, recipe: settings})):
                    specs[spec.key] = spec
    return list(specs.values())


def owners(suite: Suite, recipe: str) -> set[str]:
    """The recipes whose chosen settings a run of this one needs, its own among them."""
    return {recipe, *suite.needs(recipe)}
