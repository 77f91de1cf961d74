"""The forgetting matrix: the loss on each domain after each step of a recipe, and what later steps took away.

Backward transfer is that of Lopez-Paz & Ranzato 2017 (arXiv:1706.08840), with the loss in place of the accuracy, so
that its sign is the same: what a domain gains by the steps after its own. Average forgetting is that of Chaudhry et al.
2018 (arXiv:1801.10112): how far the end lies from the best that an earlier step had. Both are means over the domains
that a step before the last has trained, of differences by document and seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report._html import Html, Table, join, number, table, tag
from harness.report._plot import empty
from harness.report._queries import Contender, Facts
from harness.report._words import span
from harness.stats import Interval, crossed_interval

if TYPE_CHECKING:
    import polars as pl

    from harness.store import Store

__all__ = ["Way", "backward_transfer", "forgetting", "lost", "ways"]

Scores = Mapping[str, Sequence[float]]
"""Document → its scores over the seeds."""

_DOCUMENTS = """
    WITH steps AS (
        SELECT DISTINCT recipe, model, seed, step, step_name, artifact, domain, measurement FROM forgetting
        WHERE sweep = $sweep
    )
    SELECT f.recipe, f.model, f.seed, f.step, f.step_name, f.artifact, f.domain, f.measurement, s.metric, s.document,
        s.score
    FROM steps f JOIN raw.samples s USING (measurement) WHERE s.half = 'final'
"""
_STEPS = (0.05, 0.2, 0.4)
"""Change of the loss, as a share of the base model's, from which a cell has the next shade."""
_LEAST = 2
"""Steps from which on there is something to forget."""

_MATRIX = (
    "Held-out loss (nats per token of the answer) on each domain's final documents, with its 95 % interval over "
    "documents and seeds: less is better. Rows follow a recipe's steps, from the base model on. Blue: less than the "
    "base model's; orange: more. ◆ marks the domain that the step has just trained."
)
_SUMMARY = (
    "Backward transfer is what the domains gained by the steps after their own (below 0: lost), average forgetting how "
    "far the end lies above the best loss that an earlier step had (which, being the best of several, flatters that "
    "step a little). Means over the domains trained before the last step, paired by document and seed, with 95 % "
    "intervals; bold where an interval excludes 0."
)


@dataclass(frozen=True)
class Way:
    """One recipe from one base model through its steps: 0 is the base model.

    `trained[step]` is the domain whose training set the step took, "" for none of them. `losses[metric][step, domain]`
    are the final documents' scores over the seeds.
    """

    who: Contender
    steps: Sequence[str]
    trained: Sequence[str]
    domains: Sequence[str]
    scores: Mapping[str, Mapping[tuple[int, str], Scores]]

    @property
    def last(self) -> int:
        """The number of its last step."""
        return len(self.steps) - 1

    def learned(self) -> dict[str, int]:
        """Domain → the last step that trained it, of those trained before the last step."""
        found = {name: step for step, name in enumerate(self.trained) if name}
        return {name: step for name, step in found.items() if step < self.last}


def ways(store: "Store", facts: Facts) -> list[Way]:
    """The recipes of a sweep that have been measured after two steps or more, in the page's order."""
    import polars as pl

    rows = store.query(_DOCUMENTS, {"sweep": facts.sweep})
    sets = dict(facts.stages.select("stage", "dataset").iter_rows())
    found = []
    for who in facts.recipes():
        mine = rows.filter((pl.col("recipe") == who.recipe) & (pl.col("model") == who.model))
        if mine.is_empty() or int(str(mine["step"].max())) < _LEAST:
            continue
        names = dict(mine.select("step", "step_name").unique().iter_rows())
        made = dict(mine.select("step", "artifact").unique(maintain_order=True).iter_rows())
        order = sorted(names)
        datasets = [sets.get(made[step]) for step in order]
        shown = [n if d is None else f"{n} on {d}" for n, d in zip((names[s] for s in order), datasets, strict=True)]
        asked = _domains(facts)
        domains = sorted(mine["domain"].unique(), key=lambda d: (list(asked).index(d) if d in asked else len(asked), d))
        trained = [next((d for d in domains if s and _set(s) == _set(asked.get(d, ""))), "") for s in datasets]
        scores = {str(m): _scores(part) for (m,), part in mine.group_by("metric")}
        # While a sweep runs, what one step has may be there before what another has.
        if order == list(range(len(order))):
            found.append(Way(who, shown, trained, domains, scores))
    return found


def _domains(facts: Facts) -> dict[str, str]:
    measure = facts.settings.get("measure")
    asked = measure.get("domains") if isinstance(measure, dict) else None
    return {str(k): str(v) for k, v in asked.items()} if isinstance(asked, dict) else {}


def _set(name: str) -> str:
    """A dataset's name without the split, in which training and held-out rows differ."""
    return ":".join(name.split(":")[:2])


def _scores(rows: "pl.DataFrame") -> dict[tuple[int, str], Scores]:
    found: dict[tuple[int, str], Scores] = {}
    for (step, domain), part in rows.group_by("step", "domain"):
        seeds: list[dict[str, float]] = []
        known: set[str] = set()
        for _, own in sorted(part.group_by("seed"), key=lambda pair: str(pair[0])):
            # The base model's one measurement stands under every seed; it is one, not several.
            keys = set(own["measurement"])
            if not keys <= known:
                seeds.append({str(d): float(s) for d, s in own.select("document", "score").iter_rows()})
            known |= keys
        common = sorted(set.intersection(*(set(seed) for seed in seeds)))
        found[int(str(step)), str(domain)] = {d: [seed[d] for seed in seeds] for d in common}
    return found


def _less(a: Scores, b: Scores) -> Scores:
    """a - b by document and seed; {} while one of them lacks a seed."""
    shared = sorted(a.keys() & b.keys())
    if any(len(a[d]) != len(b[d]) for d in shared):
        return {}
    return {d: [x - y for x, y in zip(a[d], b[d], strict=True)] for d in shared}


def _mean(parts: Sequence[Scores]) -> Interval | None:
    """The mean of the domains' means, every domain weighing the same, with its interval."""
    if not parts or not all(parts):
        return None
    total = sum(len(p) for p in parts)
    pooled = {
        f"{place}/{d}": [total / (len(parts) * len(part)) * v for v in values]
        for place, part in enumerate(parts)
        for d, values in part.items()
    }
    return crossed_interval(pooled)


def backward_transfer(way: Way) -> Interval | None:
    """What the domains trained before the last step gained by what came after (nats per token); None where none was."""
    losses = way.scores.get("loss", {})
    parts = [_less(losses.get((step, d), {}), losses.get((way.last, d), {})) for d, step in way.learned().items()]
    return _mean(parts)


def lost(way: Way) -> Interval | None:
    """Average forgetting (nats per token) over the same domains: the end less the best step before it."""
    losses = way.scores.get("loss", {})
    parts = []
    for domain in way.learned():
        by_step = {step: losses.get((step, domain), {}) for step in range(1, way.last + 1)}
        best = min(range(1, way.last), key=lambda step: _centre(by_step[step]))
        parts.append(_less(by_step[way.last], by_step[best]))
    return _mean(parts)


def _centre(scores: Scores) -> float:
    values = [v for own in scores.values() for v in own]
    return sum(values) / len(values) if values else math.inf


def forgetting(store: "Store", facts: Facts) -> Html | None:
    """The matrices of a sweep and what they say; None where its suite names no domains."""
    asked = _domains(facts)
    found = ways(store, facts)
    if not asked and not found:
        return None
    if not found:
        return empty("Forgetting", "No recipe has been measured on its domains after two training steps or more.")
    accuracy = _matrix(found, "token_accuracy")
    return join(
        tag("h3", "Forgetting"),
        tag("p", _SUMMARY, class_="fine"),
        _summary(found),
        tag("p", _MATRIX, class_="fine"),
        _matrix(found, "loss"),
        tag("details", tag("summary", "Token accuracy"), accuracy) if accuracy is not None else None,
    )


def _summary(found: Sequence[Way]) -> Html:
    rows: list[list[object]] = []
    for way in found:
        losses = way.scores.get("loss", {})
        ends = [losses[way.last, d] for d in way.domains if (way.last, d) in losses]
        rows.append(
            [
                way.who.label,
                way.last,
                _estimate(_mean(ends)),
                _estimate(backward_transfer(way), signed=True),
                _estimate(lost(way), signed=True),
            ]
        )
    headers = ["recipe", "steps", "mean loss at the end", "backward transfer", "average forgetting"]
    return table(Table(headers, rows, "Nats per token"))


def _estimate(found: Interval | None, *, signed: bool = False) -> Html | None:
    if found is None:
        return None
    sure = signed and (found.low > 0 or found.high < 0)
    value = ("+" if signed and found.value > 0 else "") + number(found.value)
    interval = tag("span", span(found.low, found.high), class_="interval")
    return tag("span", tag("strong", value) if sure else value, " ", interval, class_="num")


def _matrix(found: Sequence[Way], metric: str) -> Html | None:
    have = [way for way in found if metric in way.scores]
    if not have:
        return None
    domains = list(dict.fromkeys(d for way in have for d in way.domains))
    rows: list[list[object]] = []
    for way in have:
        for step, name in enumerate(way.steps):
            cells: list[object] = [way.who.label, f"{step}. {name}"]
            for domain in domains:
                own = way.scores[metric].get((step, domain))
                start = way.scores[metric].get((0, domain))
                cells.append(None if not own else _cell(own, start, metric, just=way.trained[step] == domain))
            rows.append(cells)
    return table(Table(["recipe", "after", *domains], rows))


def _cell(scores: Scores, start: Scores | None, metric: str, *, just: bool) -> Html:
    found = crossed_interval(scores)
    shade = ""
    if start:
        first = _centre(start)
        gained = (first - found.value) if metric == "loss" else (found.value - first)
        step = sum(abs(gained) >= least * abs(first) for least in _STEPS) if first else 0
        shade = f"{'up' if gained > 0 else 'down'}{step}" if step else ""
    mark = " ◆" if just else ""
    said = tag("span", f"{number(found.value)}{mark}", class_=f"win {shade}".strip())
    return join(said, tag("span", f" {span(found.low, found.high)}", class_="interval"))
