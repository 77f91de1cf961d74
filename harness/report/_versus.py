"""Models set against each other that no common sweep has compared: every figure they share, paired by document."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.report._compare import Scores, aspects, changed_share, main_metrics, paired, scores_of
from harness.report._entries import Entry
from harness.report._judges_quality import quality_lines
from harness.report._versus_people import Said, said_of
from harness.stats import Difference, Verdict, detectable, holm, resolved

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["Row", "Versus", "set_against"]

_GOLD = ("gold_reward", "rm_reward", "kl")


@dataclass(frozen=True)
class Row:
    """`a` minus `b` on one figure; `adjusted_p` by Holm over all rows of the comparison.

    `values` are the two means over the shared documents, `changed` is the share of these whose score differs, and
    `detectable` the smallest true difference that such data would resolve with a chance of 80 %. Of what people say
    `raters` counts them; it is 0 for other figures.
    """

    a: Entry
    b: Entry
    what: str
    values: tuple[float, float]
    difference: Difference
    changed: float
    detectable: float
    adjusted_p: float
    verdict: Verdict
    raters: int = 0


@dataclass(frozen=True)
class Versus:
    """The rows, in the order of the entries and figures, and what to know before believing them."""

    rows: Sequence[Row]
    warnings: Sequence[str]


def set_against(store: "Store", groups: Sequence[Sequence[Entry]]) -> Versus:
    """Compare what the groups hold: two single entries with each other, two sweeps recipe by recipe.

    Args:
        store: where the prompts of the documents are looked up.
        groups: what `find_entries` found; of a single group its entries are compared with each other.

    Raises:
        UserError: nothing to compare: fewer than two entries, or no document that two of them share.
    """
    pairs = list(_pairs(groups))
    if not pairs:
        raise UserError("nothing to compare: the sweeps named have no recipe on the same base model in common")
    found: list[tuple[Entry, Entry, Said]] = []
    warnings: list[str] = []
    for a, b in pairs:
        for what, first, second in _figures(a, b):
            difference = paired(first, second)
            if difference is None:
                warnings.append(f"{a.label} and {b.label} were both measured on {what}, but share no document of it")
                continue
            shared, either = first.keys() & second.keys(), first.keys() | second.keys()
            if len(shared) < len(either):
                warnings.append(
                    f"{a.label} and {b.label} share {len(shared)} of {len(either)} documents of {what}: only these are "
                    "compared"
                )
            means = tuple(_mean([_mean(side[d]) for d in sorted(shared)]) for side in (first, second))
            found.append((a, b, Said(what, (means[0], means[1]), difference, changed_share(first, second))))
        found += [(a, b, said) for said in said_of(store, a, b)]
        warnings += _differences_of_setting(store, a, b)
        warnings += [line for e in (a, b) if aspects(e.facts) for line in quality_lines(e.facts)]
    if not found:
        names = ", ".join(dict.fromkeys(e.label for pair in pairs for e in pair))
        raise UserError(f"nothing to compare: {names} have no final scores of the same documents")
    adjusted = holm([said.difference.p for *_, said in found])
    rows = [_row(a, b, said, p) for (a, b, said), p in zip(found, adjusted, strict=True)]
    return Versus(rows, list(dict.fromkeys(warnings)))


def _row(a: Entry, b: Entry, said: Said, p: float) -> Row:
    d = said.difference
    return Row(a, b, said.what, said.values, d, said.changed, detectable(d), p, resolved(d, p), said.raters)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _pairs(groups: Sequence[Sequence[Entry]]) -> Iterator[tuple[Entry, Entry]]:
    if len(groups) == 1:
        yield from combinations(groups[0], 2)
        return
    for first, second in combinations(groups, 2):
        if len(first) > 1 and len(second) > 1:
            theirs = {(e.who.recipe, e.who.model): e for e in second}
            for mine in first:
                if (other := theirs.get((mine.who.recipe, mine.who.model))) is not None:
                    yield mine, other
        else:
            yield from ((a, b) for a, b in product(first, second) if a.label != b.label)


def _figures(a: Entry, b: Entry) -> Iterator[tuple[str, Scores, Scores]]:
    """The figures that both have, in the order of the first's suite."""
    a, b = _meeting(a, b)
    for group, metric in _measures(a):
        first, second = (scores_of(e.facts, e.who, group, metric) for e in (a, b))
        if first and second:
            yield (metric if group in ("gold", "judge") else f"{group} {metric}"), first, second


def _meeting(a: Entry, b: Entry) -> tuple[Entry, Entry]:
    """The two with tasks that they share under one name, where one has asked for a group and the other for part of it.

    MMLU measured here and its subject anatomy there meet in anatomy: a shared task goes by the name under which fewer
    were asked for.
    """
    names = [dict(e.facts.documents.select("task", "group").unique().iter_rows()) for e in (a, b)]
    sizes = [Counter(one.values()) for one in names]
    under = {}
    for task in sorted(names[0].keys() & names[1].keys()):
        asked = [(sizes[side][names[side][task]], names[side][task]) for side in (0, 1)]
        if asked[0][1] != asked[1][1]:
            under[task] = min(asked)[1]
    if not under:
        return a, b
    return _under(a, under), _under(b, under)


def _under(entry: Entry, names: Mapping[str, str]) -> Entry:
    """The entry with these tasks under these names."""
    import polars as pl

    task = pl.col("task")
    documents = entry.facts.documents.with_columns(
        pl.when(task.is_in(list(names))).then(task.replace(dict(names))).otherwise(pl.col("group")).alias("group")
    )
    return replace(entry, facts=replace(entry.facts, documents=documents, cache={}))


def _measures(entry: Entry) -> list[tuple[str, str]]:
    facts = entry.facts
    judged = [("judge", aspect) for aspect in aspects(facts)]
    return [*main_metrics(facts), *(("gold", metric) for metric in _GOLD), *judged]


_PROMPTS_OF = """
    SELECT m.task, s.document, list(DISTINCT s.prompt_hash ORDER BY s.prompt_hash) AS prompts
    FROM raw.samples s JOIN raw.measurements m USING (measurement)
    WHERE s.half = 'final' AND list_contains(${}, measurement) GROUP BY ALL
"""
_PROMPTS = f"""
    SELECT task, count(*) AS documents, count(*) FILTER (WHERE a.prompts <> b.prompts) AS other
    FROM ({_PROMPTS_OF.format("a")}) a JOIN ({_PROMPTS_OF.format("b")}) b USING (task, document)
    GROUP BY task HAVING other > 0 ORDER BY task
"""


def _differences_of_setting(store: "Store", a: Entry, b: Entry) -> list[str]:
    """What else differs between two entries than the model."""
    said = []
    targets = [e.facts.target_of(e.who) for e in (a, b)]
    if targets[0] != targets[1]:
        said.append(f"{a.label} was measured on the target {targets[0]}, {b.label} on {targets[1]}")
    keys = {name: _measurements(e) for name, e in (("a", a), ("b", b))}
    for task, documents, other in store.query(_PROMPTS, keys).rows():
        said.append(
            f"{a.label} and {b.label} were given other prompts for {other} of {documents} shared documents of {task} "
            "(few-shot examples, chat template or tokenizer): the difference is not of the models alone"
        )
    return said


def _measurements(entry: Entry) -> list[str]:
    import polars as pl

    facts, who = entry.facts, entry.who
    mine = facts.documents.filter((pl.col("label") == who.label) & (pl.col("target") == facts.target_of(who)))
    return sorted(mine["measurement"].unique().to_list())
