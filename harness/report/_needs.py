"""How much more data would resolve what a sweep left open: `harness power`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.report._compare import main_metrics, paired, scores_of, subjects_of
from harness.report._queries import Contender, Facts, read_facts
from harness.stats import detectable, needed, needed_groups, variances

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["SEEDS", "Need", "data_needed"]

SEEDS = (2, 3, 5)
"""Numbers of seeds for which the documents are counted."""


@dataclass(frozen=True)
class Need:
    """What it takes to resolve an effect between two recipes on one figure.

    `documents` gives the number for each of `SEEDS`, None where no number is enough; it is empty where nothing is known
    of the variance. Where the figure goes by `subjects`, these documents are spread over as many of them, and
    `more_subjects` gives the number of subjects with as many documents each as now. `assumed` is whether the variance
    over seeds had to be taken from other pairs of the sweep, this one having a single seed; `unseen` whether all
    documents differed by the same, so that the variance is what may have been missed.
    """

    a: Contender
    b: Contender
    what: str
    have: int
    seeds: tuple[int, int]
    detectable: float
    documents: Mapping[int, int | None]
    assumed: bool
    unseen: bool = False
    subjects: int = 0
    more_subjects: Mapping[int, int | None] = field(default_factory=dict)


def data_needed(store: "Store", sweep: str, effect: float) -> list[Need]:
    """For every pair of recipes on one base model and every benchmark and gold figure of a sweep.

    The sweep is the pilot: the variances over documents and seeds are its own. The level is that of one comparison; of
    several, ask for a smaller effect or more than the least number.

    Args:
        store: ingested already.
        sweep: the sweep's id.
        effect: the difference that would matter, in the unit of the figure.

    Raises:
        UserError: no such sweep, an effect that is not above zero, or no two recipes with final scores.
    """
    if not effect > 0 or math.isinf(effect):
        raise UserError(f"--effect: expected a difference above 0, such as 0.02, got {effect}")
    facts = read_facts(store, sweep)
    found = [
        (a, b, group, metric)
        for a, b in combinations(facts.contenders, 2)
        if a.model == b.model
        for group, metric in [*main_metrics(facts), ("gold", "gold_reward")]
    ]
    needs = [need for one in found if (need := _need(facts, *one, effect)) is not None]
    if not needs:
        raise UserError(f"{sweep} has no two recipes with final scores yet: it cannot serve as a pilot")
    return needs


def _need(facts: Facts, a: Contender, b: Contender, group: str, metric: str, effect: float) -> Need | None:
    first, second = (scores_of(facts, who, group, metric) for who in (a, b))
    shared = first.keys() & second.keys()
    difference = paired(first, second)
    if difference is None or len(shared) < 2:
        return None
    subjects = subjects_of(shared)
    parts = variances({d: first[d] for d in shared}, {d: second[d] for d in shared}, subjects or None)
    of_seeds = tuple(0.0 if who.is_base else v for who, v in zip((a, b), parts.seeds, strict=True))
    unknown = any(math.isnan(v) for v in of_seeds)
    others = _seed_variances(facts, group, metric) if unknown else []
    parts = replace(parts, seeds=_filled(of_seeds, sum(others) / len(others) if others else 0.0))
    what = metric if group == "gold" else f"{group} {metric}"
    known = not math.isnan(parts.document + parts.group)
    return Need(
        a,
        b,
        what,
        difference.n,
        difference.seeds,
        detectable(difference),
        needed(effect, parts, SEEDS) if known else {},
        assumed=unknown,
        unseen=parts.unseen,
        subjects=parts.groups,
        more_subjects=needed_groups(effect, parts, len(shared) / parts.groups, SEEDS) if known and subjects else {},
    )


def _filled(parts: Sequence[float], value: float) -> tuple[float, float]:
    first, second = (value if math.isnan(v) else v for v in parts)
    return first, second


def _seed_variances(facts: Facts, group: str, metric: str) -> list[float]:
    """The variances over seeds of the recipes that have several."""
    found = []
    for who in facts.recipes():
        scores = scores_of(facts, who, group, metric)
        seeds = len(next(iter(scores.values()), []))
        if seeds > 1:
            means = [sum(s[i] for s in scores.values()) / len(scores) for i in range(seeds)]
            centre = sum(means) / seeds
            found.append(sum((m - centre) ** 2 for m in means) / (seeds - 1))
    return found
