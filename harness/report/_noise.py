"""The noise floor: what measuring the same model a second time changes, beside which a difference is to be read.

A suite with `measure.noise_floor` measures its base model twice, with other batches and other random numbers. Greedy
answers flip where rounding decides between two tokens or choices, sampled ones because they are drawn anew. The second
measurement is in no score; only the view `noise` sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.objectives import main_metric
from harness.report._html import Html, Table, join, number, table, tag
from harness.report._queries import Facts
from harness.stats import Interval, wilson

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["Noise", "flips_of", "noise", "noise_table"]

_NOISE = """
    SELECT recipe, model, target, task, metric, n, changed, mean_absolute, largest, moved FROM noise
    WHERE sweep = $sweep ORDER BY model, target, task, metric
"""


@dataclass(frozen=True)
class Noise:
    """One figure of a model that was measured twice, over the documents of both measurements.

    `group` is the name under which the suite asked for the task. `flips` is the share of documents whose score changed,
    with Wilson's 95 % interval, which is never ± 0. `mean_absolute` and `largest` are of the absolute differences by
    document; `moved` is the second mean minus the first. All in the unit of the metric.
    """

    label: str
    model: str
    target: str
    group: str
    metric: str
    flips: Interval
    mean_absolute: float
    largest: float
    moved: float


def noise(store: "Store", facts: Facts) -> list[Noise]:
    """The figures of a sweep that were measured twice, in the order of model, target and the suite's tasks.

    The leaves of a group are taken together, as its score takes them: every document weighs the same.
    """
    rows = store.query(_NOISE, {"sweep": facts.sweep})
    groups = dict(facts.scores.select("task", "group").unique().iter_rows())
    labels = {(c.recipe, c.model): c.label for c in facts.contenders}
    order = {group: place for place, group in enumerate(_asked(facts))}
    parts: dict[tuple[str, str, str, str, str], list[tuple[int, int, float, float, float]]] = {}
    for recipe, model, target, task, metric, *figures in rows.iter_rows():
        key = labels.get((recipe, model), recipe), model, target, groups.get(task, task), metric
        parts.setdefault(key, []).append((figures[0], figures[1], figures[2], figures[3], figures[4]))
    found = [_noise(key, leaves) for key, leaves in parts.items()]
    return sorted(found, key=lambda n: (n.model, n.target, order.get(n.group, len(order)), n.group, n.metric))


def _asked(facts: Facts) -> list[str]:
    measure = facts.settings.get("measure")
    tasks = measure.get("tasks") if isinstance(measure, dict) else None
    return list(tasks) if isinstance(tasks, dict) else []


def _noise(key: tuple[str, str, str, str, str], leaves: Sequence[tuple[int, int, float, float, float]]) -> Noise:
    documents = sum(n for n, *_ in leaves)
    label, model, target, group, metric = key
    return Noise(
        label=label,
        model=model,
        target=target,
        group=group,
        metric=metric,
        flips=wilson(sum(changed for _, changed, *_ in leaves), documents),
        mean_absolute=sum(n * mean for n, _, mean, *_ in leaves) / documents,
        largest=max(largest for *_, largest, _ in leaves),
        moved=sum(n * moved for n, *_, moved in leaves) / documents,
    )


def flips_of(found: Sequence[Noise], group: str, metric: str, *, model: str, target: str = "") -> Noise | None:
    """The noise of one figure on a base model, on this target if it was measured twice there, else on its first."""
    same = [n for n in found if (n.group, n.metric, n.model) == (group, metric, model)]
    return next((n for n in same if n.target == target), same[0] if same else None)


def noise_table(facts: Facts, found: Sequence[Noise]) -> Html | None:
    """The noise floor of a sweep as `noise` gives it; None where its suite asks for none and none was measured."""
    measure = facts.settings.get("measure")
    if not found and not (isinstance(measure, dict) and measure.get("noise_floor")):
        return None
    heading = tag("h3", "Noise floor")
    if not found:
        return join(heading, tag("p", "The base model has not been measured a second time yet.", class_="fine"))
    why = (
        "The same base model measured twice, with other batches and other random numbers: what changes then, "
        "re-measuring alone changes. A flip is a document whose score changed. The second measurement is in no score."
    )
    targets, models = len({n.target for n in found}) > 1, len({n.model for n in found}) > 1
    shown = ["model"] * models + ["target"] * targets
    headers = [*shown, "task", "metric", "documents", "flip rate", "mean |difference|", "largest", "mean moved by"]
    rows = [
        [
            *([one.label] if models else []),
            *([one.target] if targets else []),
            one.group,
            _metric(one, found),
            one.flips.n,
            f"{one.flips.value:.1%} [{one.flips.low:.1%}, {one.flips.high:.1%}]",
            one.mean_absolute,
            one.largest,
            one.moved,
            _meaning(one),
        ]
        for one in found
    ]
    return join(heading, tag("p", why), table(Table([*headers, "what it means"], rows)))


def _metric(one: Noise, found: Sequence[Noise]) -> Html | str:
    """The metric, strong where its task goes by it."""
    mine = [n.metric for n in found if (n.model, n.target, n.group) == (one.model, one.target, one.group)]
    several = len(mine) > 1 and one.group not in ("gold", "judge")
    return tag("strong", one.metric) if several and main_metric(mine) == one.metric else one.metric


def _meaning(one: Noise) -> str:
    if one.flips.value == 0:
        return (
            f"No score changed. Of other documents, up to {one.flips.high:.1%} might (95 %): {one.flips.n} do not "
            "show less."
        )
    return (
        f"A difference of means below {number(one.mean_absolute)} is within what re-measuring alone does, had all its "
        "changes gone one way."
    )
