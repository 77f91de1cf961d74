"""What the data say: each contender's figures, and the differences between contenders, paired by document.

Final figures only: the documents that tuning never saw, the chosen settings, all seeds. Where a benchmark is made of
five tasks or more (MMLU's subjects), its intervals go by these and not by single documents, whose answers within a
subject are alike: cluster-robust, see `harness.stats.cluster_difference`. Fewer tasks are no sample of tasks.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from harness.objectives import ASPECTS, main_metric
from harness.report._plot import Estimate
from harness.report._queries import Contender, Facts
from harness.stats import (
    Difference,
    Verdict,
    cluster_difference,
    cluster_interval,
    crossed_interval,
    holm,
    paired_difference,
    resolved,
)

__all__ = [
    "Comparison",
    "Scores",
    "against_base",
    "against_origin",
    "aspects",
    "bounds_of",
    "changed_share",
    "compare_recipes",
    "estimate",
    "family",
    "main_metrics",
    "measures",
    "objective_estimate",
    "objective_scores",
    "objective_source",
    "over_optimisation",
    "paired",
    "scores_of",
    "shared_documents",
    "subjects_of",
]

_GOLD = ("gold_reward", "rm_reward", "kl")
_SUBJECTS = 5
"""So many tasks under one name, or more, are taken for a sample of such tasks."""
_ROUNDING = 1e-12
"""Less is no difference: as many right answers on either side, summed in another order."""

Scores = dict[str, list[float]]
"""Document → its scores over the seeds, in the order of the seeds. A document is named `task/document`; where several
benchmarks are mixed there is no slash in it."""


@dataclass(frozen=True)
class Comparison:
    """`a` against `b` on one figure; `adjusted_p` by Holm over the family of comparisons it stands in."""

    a: Contender
    b: Contender
    what: str
    difference: Difference
    adjusted_p: float
    verdict: Verdict


def _by_seed(facts: Facts, who: Contender, group: str, metric: str) -> dict[int, dict[str, float]]:
    """Seed → document → score, on the target of the comparison."""
    key = ("by_seed", who.label, group, metric)
    return facts.once(key, lambda: _read_by_seed(facts, who, group, metric))


def _read_by_seed(facts: Facts, who: Contender, group: str, metric: str) -> dict[int, dict[str, float]]:
    import polars as pl

    mine = facts.documents.filter(
        (pl.col("label") == who.label)
        & (pl.col("group") == group)
        & (pl.col("metric") == metric)
        & (pl.col("target") == facts.target_of(who))
    )
    found: dict[int, dict[str, float]] = {}
    measurements: set[str] = set()
    for (seed,), part in sorted(mine.group_by("seed"), key=lambda kv: str(kv[0])):
        # The base model's one measurement stands under every seed; it is one, not several.
        keys = set(part["measurement"].to_list())
        if not keys <= measurements:
            found[int(seed)] = {
                f"{t}/{d}": float(s) for t, d, s in part.select("task", "document", "score").iter_rows()
            }
        measurements |= keys
    return found


def scores_of(facts: Facts, who: Contender, group: str, metric: str) -> Scores:
    """A contender's final scores of one figure: document → scores over the seeds; {} for none."""
    key = ("scores_of", who.label, group, metric)
    return facts.once(key, lambda: _crossed(_by_seed(facts, who, group, metric)))


def _crossed(seeds: dict[int, dict[str, float]]) -> Scores:
    """Documents that every seed has answered; while a sweep runs, some seeds lack some."""
    if not seeds:
        return {}
    common = set.intersection(*(set(s) for s in seeds.values()))
    return {d: [s[d] for s in seeds.values()] for d in sorted(common)}


def bounds_of(metric: str) -> tuple[float, float]:
    """The range a metric cannot leave; an interval beyond it would say nothing more."""
    if metric in ("helpfulness", "multi_turn"):
        return 1.0, 10.0
    shares = metric in ("gold_reward", "harmlessness", "over_refusal") or metric.startswith(("acc", "exact_match"))
    return (0.0, 1.0) if shares else (-math.inf, math.inf)


def subjects_of(documents: Iterable[str]) -> dict[str, str]:
    """Document → the task of its benchmark that it belongs to; {} where too few tasks stand under the name."""
    found = {d: d.rpartition("/")[0] for d in documents}
    return found if len(set(found.values())) >= _SUBJECTS else {}


def _estimate(scores: Scores, metric: str = "") -> Estimate | None:
    if not scores:
        return None
    subjects = subjects_of(scores)
    found = cluster_interval(scores, subjects) if subjects else crossed_interval(scores)
    least, most = bounds_of(metric)
    # One document has no interval: its bounds stay unknown.
    low, high = (b if math.isnan(b) else min(max(b, least), most) for b in (found.low, found.high))
    return Estimate(found.value, low, high, found.n)


def estimate(facts: Facts, who: Contender, group: str, metric: str) -> Estimate | None:
    """The mean over final documents and seeds with its 95 % interval; None where nothing was measured."""
    key = ("estimate", who.label, group, metric)
    return facts.once(key, lambda: _estimate(scores_of(facts, who, group, metric), metric))


def main_metrics(facts: Facts) -> list[tuple[str, str]]:
    """The benchmarks that have final scores, in the suite's order, each with the metric it goes by."""
    return facts.once(("main_metrics",), lambda: _main_metrics(facts))


def _main_metrics(facts: Facts) -> list[tuple[str, str]]:
    import polars as pl

    rows = facts.documents.filter(~pl.col("group").is_in(["gold", "judge"])).select("group", "metric").unique()
    metrics: dict[str, list[str]] = {}
    for group, metric in rows.iter_rows():
        metrics.setdefault(group, []).append(metric)
    measure = facts.settings.get("measure")
    tasks = measure.get("tasks") if isinstance(measure, dict) else None
    order = list(tasks) if isinstance(tasks, dict) else []
    names = [t for t in order if t in metrics] + sorted(set(metrics) - set(order))
    return [(name, main_metric(metrics[name])) for name in names]


def aspects(facts: Facts) -> list[str]:
    """The judged aspects that have final scores."""
    import polars as pl

    found = facts.documents.filter(pl.col("group") == "judge")["metric"].unique().to_list()
    return sorted(found, key=lambda a: (a not in ASPECTS, ASPECTS.index(a) if a in ASPECTS else 0, a))


def objective_source(facts: Facts, objective: str) -> list[tuple[str, str]]:
    """The (task, metric) pairs whose documents make up an objective; empty where no documents do (latency, memory)."""
    if objective in _GOLD:
        return [("gold", objective)]
    if objective in ASPECTS:
        return [("judge", objective)]
    domains = [(group, metric) for group, metric in main_metrics(facts) if group.startswith("domain.")]
    if objective == "score":
        return [one for one in main_metrics(facts) if one not in domains]
    if objective == "domain_loss":
        return domains
    if (objective, "loss") in domains:
        return [(objective, "loss")]
    group, dot, metric = objective.rpartition(".")
    return [(group, metric)] if dot else []


def objective_scores(facts: Facts, who: Contender, objective: str) -> Scores:
    """The documents behind a contender's objective, weighted so that every task counts the same; {} for none."""
    key = ("objective_scores", who.label, objective)
    return facts.once(key, lambda: _objective_scores(facts, who, objective))


def _objective_scores(facts: Facts, who: Contender, objective: str) -> Scores:
    pairs = objective_source(facts, objective)
    parts = [scores_of(facts, who, group, metric) for group, metric in pairs]
    if len(parts) <= 1:
        return parts[0] if parts else {}
    if not all(parts) or len({len(next(iter(p.values()))) for p in parts}) != 1:
        return {}
    total = sum(len(p) for p in parts)
    # Every task weighs the same in the mean, however many documents it has.
    weights = [total / (len(parts) * len(p)) for p in parts]
    return {
        f"{group}:{d}".replace("/", ":"): [w * v for v in values]
        for (group, _), p, w in zip(pairs, parts, weights, strict=True)
        for d, values in p.items()
    }


def objective_estimate(facts: Facts, who: Contender, objective: str) -> Estimate | None:
    """A contender's final value of an objective; None where it has none, or where no documents make it up."""
    pairs = objective_source(facts, objective)
    if len(pairs) == 1:
        return estimate(facts, who, *pairs[0])
    key = ("objective_estimate", who.label, objective)
    return facts.once(key, lambda: _estimate(objective_scores(facts, who, objective)))


def paired(a: Scores, b: Scores) -> Difference | None:
    """The difference over the documents that both have; None where there is none."""
    if a.keys() != b.keys():
        common = a.keys() & b.keys()
        a, b = {d: a[d] for d in common}, {d: b[d] for d in common}
    if not a:
        return None
    subjects = subjects_of(a)
    found = cluster_difference(a, b, subjects) if subjects else paired_difference(a, b)
    return replace(found, value=0.0) if abs(found.value) < _ROUNDING else found


def changed_share(a: Scores, b: Scores) -> float:
    """The share of the documents that both have whose score, mean over the seeds, is not the same; NaN for none."""
    shared = a.keys() & b.keys()
    if not shared:
        return math.nan
    return sum(sum(a[d]) / len(a[d]) != sum(b[d]) / len(b[d]) for d in shared) / len(shared)


def shared_documents(facts: Facts, a: Contender, b: Contender, objective: str) -> tuple[int, int]:
    """How many documents both were scored on, and how many either was: less than all means a partial comparison."""
    first, second = (objective_scores(facts, who, objective) for who in (a, b))
    return len(first.keys() & second.keys()), len(first.keys() | second.keys())


def family(found: Sequence[tuple[Contender, Contender, str, Difference]]) -> list[Comparison]:
    """The differences as one family of comparisons: corrected together."""
    adjusted = holm([d.p for *_, d in found])
    return [
        Comparison(a, b, what, difference, p, resolved(difference, p))
        for (a, b, what, difference), p in zip(found, adjusted, strict=True)
    ]


def compare_recipes(facts: Facts, objective: str) -> list[Comparison]:
    """Every pair of recipes of the same base model on the objective: one family, the question's own.

    The first of a pair is the one with the better mean.
    """
    key = ("compare_recipes", objective)
    return facts.once(key, lambda: _compare_recipes(facts, objective))


def _compare_recipes(facts: Facts, objective: str) -> list[Comparison]:
    sign = -1.0 if facts.objectives.get(objective) == "minimize" else 1.0
    found = []
    for pair in combinations(facts.recipes(), 2):
        if pair[0].model != pair[1].model:
            continue
        for first, second in (pair, pair[::-1]):
            difference = paired(*(objective_scores(facts, w, objective) for w in (first, second)))
            if difference is not None and sign * difference.value >= 0:
                found.append((first, second, objective, difference))
                break
    return family(found)


def against_base(facts: Facts, objective: str | None = None) -> list[Comparison]:
    """Every recipe against its base model: on the objective, or (without one) on each of the `measures`.

    Each is a family of its own.
    """
    key = ("against_base", objective)
    return facts.once(key, lambda: _against_base(facts, objective))


def against_origin(facts: Facts) -> list[Comparison]:
    """Every recipe that begins with another one against that one, on each of the `measures`: one family."""
    key = ("against_origin",)
    return facts.once(key, lambda: _against_origin(facts))


def _against_origin(facts: Facts) -> list[Comparison]:
    pairs = [(who, o) for who in facts.recipes() if (o := facts.origin_of(who)) is not None and not o.is_base]
    return _by_measure(facts, pairs)


def measures(facts: Facts) -> list[tuple[str, str]]:
    """The benchmarks and judged aspects, each with its metric, but for one that is the first objective itself.

    That one is compared as the objective: were it here too, one difference would have two corrected p values.
    """
    return facts.once(("measures",), lambda: _measures(facts))


def _measures(facts: Facts) -> list[tuple[str, str]]:
    objective = next(iter(facts.objectives), None)
    own = [] if objective is None else objective_source(facts, objective)
    every = [*main_metrics(facts), *(("judge", aspect) for aspect in aspects(facts))]
    return [one for one in every if [one] != own]


def _by_measure(facts: Facts, pairs: Sequence[tuple[Contender, Contender]]) -> list[Comparison]:
    """The first of each pair against the second, on each of the `measures`."""
    found = []
    for first, second in pairs:
        for group, metric in measures(facts):
            difference = paired(*(scores_of(facts, w, group, metric) for w in (first, second)))
            if difference is not None:
                found.append((first, second, metric if group == "judge" else f"{group} {metric}", difference))
    return family(found)


def _against_base(facts: Facts, objective: str | None) -> list[Comparison]:
    pairs = [(who, base) for who in facts.recipes() if (base := facts.base_of(who)) is not None]
    if objective is None:
        return _by_measure(facts, pairs)
    found = []
    for who, base in pairs:
        difference = paired(*(objective_scores(facts, w, objective) for w in (who, base)))
        if difference is not None:
            found.append((who, base, objective, difference))
    return family(found)


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def over_optimisation(facts: Facts, who: Contender) -> tuple[Estimate, Estimate, Estimate] | None:
    """How much further a recipe moved by its reward model than by the truth, in deviations of the base model's scores.

    For each seed, document and score: (recipe - base) / (standard deviation of the base model over documents), by the
    same seed's reward model, since each reward model has a scale of its own.

    Returns:
        The gain by the reward model, the gain by the gold reward, and the first minus the second (each with its 95 %
        interval); None where base or recipe were not scored by a common reward model.
    """
    base = facts.base_of(who)
    if base is None or who.is_base:
        return None
    gains: dict[str, dict[int, dict[str, float]]] = {}
    for metric in ("rm_reward", "gold_reward"):
        mine, theirs = _by_seed(facts, who, "gold", metric), _by_seed(facts, base, "gold", metric)
        for seed in mine:
            # Gold needs no seed in common: its scale is one. A reward model does.
            reference = theirs.get(seed) or (next(iter(theirs.values()), None) if metric == "gold_reward" else None)
            if reference is None or (scale := _deviation(list(reference.values()))) == 0:
                continue
            shared = mine[seed].keys() & reference.keys()
            moved = {d: (mine[seed][d] - reference[d]) / scale for d in shared}
            if moved:
                gains.setdefault(metric, {})[seed] = moved
    if len(gains) < 2:
        return None
    seeds = gains["rm_reward"].keys() & gains["gold_reward"].keys()
    parts = [{s: gains[m][s] for s in sorted(seeds)} for m in ("rm_reward", "gold_reward")]
    gap = {
        s: {d: parts[0][s][d] - parts[1][s][d] for d in parts[0][s].keys() & parts[1][s].keys()} for s in sorted(seeds)
    }
    found = [_estimate(_crossed(p)) for p in (*parts, gap)]
    if found[0] is None or found[1] is None or found[2] is None:
        return None
    return found[0], found[1], found[2]
