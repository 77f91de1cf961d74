"""The objectives of a trial, from what the store holds of its tuning half."""

from collections.abc import Iterable

from harness.errors import MeasurementError
from harness.measure.tasks import leaf_tasks
from harness.resolve import ItemKind
from harness.store import Store
from harness.suite import Suite

__all__ = ["MAIN_METRICS", "kinds_of", "main_metric", "objective_values"]

MAIN_METRICS = ("acc_norm", "exact_match_flexible", "exact_match", "acc")
"""The figure a task goes by when several are scored: the first of these it has, else its first metric by name."""

_OF_PROFILE = {"latency_ms": "e2e_ms", "peak_memory_mb": "peak_rss_mb", "weight_mb": "weight_mb"}


def kinds_of(names: Iterable[str]) -> frozenset[ItemKind]:
    """The kinds of measurement that these objectives and constraints need."""
    kinds: set[ItemKind] = set()
    for name in names:
        if name in ("gold_reward", "rm_reward", "kl"):
            kinds.add("gold")
        elif name in ("helpfulness", "harmlessness"):
            kinds.add("judge")
        elif name in _OF_PROFILE:
            kinds.add("profile")
        else:
            kinds.add("task")
    return frozenset(kinds)


def main_metric(metrics: Iterable[str]) -> str:
    """The metric a task goes by among those it has."""
    have = sorted(metrics)
    return next((m for m in MAIN_METRICS if m in have), have[0])


def objective_values(
    store: Store, suite: Suite, sweep: str, recipe: str, model: str, trial: int, seed: int
) -> dict[str, float]:
    """The values of the suite's objectives and constraints for a tuning trial.

    Raises:
        MeasurementError: one of them has no rows.
    """
    where = [sweep, recipe, model, trial, seed]
    scores = store.query(
        'SELECT task, metric, "value", n FROM scores WHERE sweep = ? AND recipe = ? AND model = ? AND trial = ? '
        "AND seed = ? AND phase = 'tune' AND split = 'tune'",
        where,
    ).rows()
    values: dict[str, float] = {}
    for name in [*suite.objectives, *suite.constraints]:
        if name in values:
            continue
        found = _value(store, suite, name, scores, where)
        if found is None:
            raise MeasurementError(f"no measured value for the objective {name!r}")
        values[name] = found
    return values


def _value(
    store: Store, suite: Suite, name: str, scores: list[tuple[str, str, float, int]], where: list[object]
) -> float | None:
    if name in _OF_PROFILE:
        return _profiled(store, suite, _OF_PROFILE[name], where)
    if name == "score":
        parts = [_task(scores, task, None) for task in suite.measure.tasks]
        known = [p for p in parts if p is not None]
        return sum(known) / len(known) if len(known) == len(parts) and known else None
    if "." in name:
        task, _, metric = name.rpartition(".")
        return _task(scores, task, metric)
    kind = "gold" if name in ("gold_reward", "rm_reward", "kl") else "judge"
    return next((v for t, m, v, _ in scores if t == kind and m == name), None)


def _task(scores: list[tuple[str, str, float, int]], task: str, metric: str | None) -> float | None:
    leaves = set(leaf_tasks(task))
    mine = [(m, v, n) for t, m, v, n in scores if t in leaves]
    if not mine:
        return None
    wanted = metric or main_metric({m for m, _, _ in mine})
    chosen = [(v, n) for m, v, n in mine if m == wanted]
    total = sum(n for _, n in chosen)
    return sum(v * n for v, n in chosen) / total if total else None


def _profiled(store: Store, suite: Suite, metric: str, where: list[object]) -> float | None:
    if suite.measure.profile is None:
        return None
    setting = f"batch={suite.measure.profile.batch_sizes[0]}"
    rows = store.query(
        'SELECT p.setting, p."value" FROM profiles p '
        "JOIN raw.measurement_links t USING (artifact, target, measurement) "
        "WHERE t.sweep = ? AND t.recipe = ? AND t.model = ? AND t.trial = ? AND t.seed = ? AND t.phase = 'tune' "
        "AND p.target = ? AND p.metric = ? ORDER BY p.setting",
        [*where, suite.quality_targets(str(where[1]))[0].name, metric],
    ).rows()
    # Weights are measured once at loading and not per batch: that figure has a setting of its own.
    exact = [v for s, v in rows if s == setting]
    return exact[0] if exact else (rows[0][1] if rows else None)
