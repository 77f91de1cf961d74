"""The objectives of a trial, from what the store holds of its tuning half."""

from collections.abc import Collection, Iterable

from harness.errors import MeasurementError
from harness.execute import ItemKind
from harness.measure.tasks import leaf_tasks
from harness.store import Store
from harness.suite import Suite

__all__ = ["ASPECTS", "MAIN_METRICS", "kinds_of", "main_metric", "values_of"]

MAIN_METRICS = ("acc_norm", "exact_match_flexible", "exact_match", "acc")
"""The figure a task goes by when several are scored: the first of these it has, else its first metric by name."""

ASPECTS = ("helpfulness", "harmlessness", "over_refusal", "multi_turn")
"""What judges rate, in the order of reports."""

_OF_PROFILE = {"latency_ms": "e2e_ms", "peak_memory_mb": "peak_rss_mb", "weight_mb": "weight_mb"}

# As the view `scores` has it, but for these measurements alone: a trial does not wait for the averages of all others.
_FIGURES = """
    SELECT CASE WHEN m.kind IN ('task', 'domain') THEN m.task ELSE m.kind END AS task, f.metric, f."value", f.n FROM (
        SELECT measurement, metric, avg(score) AS "value", count(*) AS n FROM (
            SELECT measurement, metric, score FROM raw.samples
            WHERE half = 'tune' AND list_contains($keys, measurement)
            UNION ALL
            SELECT measurement, aspect AS metric, avg(score) AS score FROM raw.judge_votes
            WHERE half = 'tune' AND score IS NOT NULL AND list_contains($keys, measurement)
            GROUP BY measurement, aspect, document
        ) GROUP BY measurement, metric
    ) f JOIN raw.measurements m USING (measurement) ORDER BY task, f.metric, measurement
"""


def kinds_of(names: Iterable[str]) -> frozenset[ItemKind]:
    """The kinds of measurement that these objectives and constraints need."""
    kinds: set[ItemKind] = set()
    for name in names:
        if name in ("gold_reward", "rm_reward", "kl"):
            kinds.add("gold")
        elif name in ASPECTS:
            kinds.add("judge")
        elif name in _OF_PROFILE:
            kinds.add("profile")
        elif name == "domain_loss" or name.startswith("domain."):
            kinds.add("domain")
        else:
            kinds.add("task")
    return frozenset(kinds)


def main_metric(metrics: Iterable[str]) -> str:
    """The metric a task goes by among those it has."""
    have = sorted(metrics)
    return next((m for m in MAIN_METRICS if m in have), have[0])


def values_of(store: Store, suite: Suite, recipe: str, measurements: Collection[str]) -> dict[str, float]:
    """The values of the suite's objectives and constraints that these measurements of a recipe's model give.

    Raises:
        MeasurementError: one of them has no rows.
    """
    keys = list(measurements)
    scores = store.query(_FIGURES, {"keys": keys}).rows()
    values: dict[str, float] = {}
    for name in [*suite.objectives, *suite.constraints]:
        if name in values:
            continue
        if name in _OF_PROFILE:
            found = _profiled(store, suite, recipe, _OF_PROFILE[name], keys)
        else:
            found = _value(suite, name, scores)
        if found is None:
            raise MeasurementError(f"no measured value for the objective {name!r}")
        values[name] = found
    return values


def _value(suite: Suite, name: str, scores: list[tuple[str, str, float, int]]) -> float | None:
    if name == "score":
        parts = [_task(scores, task, None) for task in suite.measure.tasks]
        known = [p for p in parts if p is not None]
        return sum(known) / len(known) if len(known) == len(parts) and known else None
    if name == "domain_loss":
        losses = [v for t, m, v, _ in scores if t.startswith("domain.") and m == "loss"]
        return sum(losses) / len(losses) if len(losses) == len(suite.measure.domains) else None
    if name.startswith("domain."):
        return next((v for t, m, v, _ in scores if t == name and m == "loss"), None)
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


def _profiled(store: Store, suite: Suite, recipe: str, metric: str, measurements: list[str]) -> float | None:
    if suite.measure.profile is None:
        return None
    setting = f"batch={suite.measure.profile.batch_sizes[0]}"
    rows = store.query(
        'SELECT setting, median("value") FROM raw.profile_samples WHERE list_contains($keys, measurement) '
        "AND measurement IN (SELECT measurement FROM raw.measurement_links WHERE target = $target) "
        "AND metric = $metric GROUP BY setting ORDER BY setting",
        {"keys": measurements, "target": suite.quality_targets(recipe)[0].name, "metric": metric},
    ).rows()
    # Weights are measured once at loading and not per batch: that figure has a setting of its own.
    exact = [v for s, v in rows if s == setting]
    return exact[0] if exact else (rows[0][1] if rows else None)
