"""What each tuning trial of a recipe cost: seconds of workers, and tokens trained on and sampled.

As `harness.spending` counts it for the budget: a stage or measurement costs what it took when it was computed, whoever
computed it, and stages of a recipe that this one uses belong to that recipe. What failed counts with the time until it
failed; its tokens are not known.
"""

from collections.abc import Sequence

from harness.report._queries import Contender, Facts, mapping
from harness.report._tuning import Trial

__all__ = ["UNITS", "spent"]

UNITS = {"device_s": "device-seconds", "tokens": "tokens trained on and sampled"}
"""The kinds of cost, and what their axis is called."""

_TOKENS = ("train_tokens", "sampled_tokens")

_Run = tuple[str, int, int]


def spent(facts: Facts, who: Contender, trials: Sequence[Trial], unit: str, *, split: bool) -> list[float]:
    """What each of these trials cost in a unit of `UNITS`, in their order.

    Args:
        trials: of this recipe.
        split: a stage that several of them share is split evenly between them; else the first bears all of it, as in
            the search that was run.
    """
    stages, own, alone = _tables(facts)
    inherited = _inherited(facts, who.recipe)
    runs = [(who.label, t.number, t.seed) for t in trials]
    used = [sorted({s for place, s in own.get(run, ()) if place >= inherited}) for run in runs]
    users: dict[str, int] = {}
    for stage in (s for one in used for s in one):
        users[stage] = users.get(stage, 0) + 1
    seen: set[str] = set()
    costs = []
    for run, mine in zip(runs, used, strict=True):
        cost = alone.get(run, 0.0) if unit == "device_s" else 0.0
        for stage in mine:
            whole = stages.get(stage, {}).get(unit, 0.0)
            cost += whole / users[stage] if split else 0.0 if stage in seen else whole
        seen.update(mine)
        costs.append(cost)
    return costs


def _tables(
    facts: Facts,
) -> tuple[dict[str, dict[str, float]], dict[_Run, list[tuple[int, str]]], dict[_Run, float]]:
    """Stage → what it cost; run → its stages with their positions; run → seconds of measuring and of what failed."""
    return facts.once("spent", lambda: _read_tables(facts))


def _read_tables(
    facts: Facts,
) -> tuple[dict[str, dict[str, float]], dict[_Run, list[tuple[int, str]]], dict[_Run, float]]:
    stages = {
        stage: {"device_s": seconds or 0.0, "tokens": _tokens(mapping(metrics))}
        for stage, seconds, metrics in facts.stages.select("stage", "seconds", "metrics").iter_rows()
    }
    own: dict[_Run, list[tuple[int, str]]] = {}
    for label, trial, seed, place, stage in facts.lineage.select(
        "label", "trial", "seed", "position", "stage"
    ).iter_rows():
        own.setdefault((label, trial, seed), []).append((place, stage))
    alone: dict[_Run, float] = {}
    for frame in (facts.measuring, facts.failures):
        for label, trial, seed, seconds in frame.select("label", "trial", "seed", "seconds").iter_rows():
            alone[label, trial, seed] = alone.get((label, trial, seed), 0.0) + (seconds or 0.0)
    return stages, own, alone


def _tokens(metrics: dict[str, object]) -> float:
    return float(sum(v for name in _TOKENS if isinstance(v := metrics.get(name), int | float)))


def _inherited(facts: Facts, recipe: str) -> int:
    """How many steps of a recipe are those of the recipes it uses."""
    recipes = facts.settings.get("recipes")
    count, seen = 0, {recipe}
    while isinstance(recipes, dict):
        steps = recipes.get(recipe)
        first = steps[0] if isinstance(steps, list) and steps else None
        used = first.get("use") if isinstance(first, dict) else None
        if not isinstance(used, str) or used in seen or not isinstance(recipes.get(used), list):
            break
        count += sum(not (isinstance(step, dict) and "use" in step) for step in recipes[used])
        seen.add(used)
        recipe = used
    return count
