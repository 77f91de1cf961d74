"""Task by task: what each recipe scored, what it lost or gained on its base model, and in which subjects."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from harness.report._compare import Comparison, Scores, estimate, main_metrics, paired, scores_of
from harness.report._families import MainFigure, foremost, left_out, main_figures, tested
from harness.report._html import Html, Table, join, number, table, tag
from harness.report._plot import Estimate, empty
from harness.report._queries import Contender, Facts
from harness.report._words import counted, difference_text, span
from harness.stats import benjamini_hochberg, resolved

__all__ = ["drill_down"]

_RECIPES = 20
_CELLS = 1200
"""So many differences by subject, about, are computed for one benchmark: each takes a millisecond."""
_ROWS = 300
"""So many of them are in its tables."""
_NOTE = (
    "Each benchmark on the final half of the documents: the score of each recipe and its difference from the base "
    "model, paired by document, worst losses first; 95 % intervals, verdicts after Holm's correction as in the "
    "comparisons. Where a benchmark has subjects, the interval of its mean goes by them if they are five or more."
)
_SCREEN = (
    "Each subject by itself, recipe minus base. So many differences are a screen, not claims: p is Benjamini and "
    "Hochberg's over all of the benchmark's recipes and subjects here, of those marked higher or lower one in twenty "
    "is expected to be false, and the largest of many are in part the luckiest."
)


def drill_down(facts: Facts) -> Html:
    """A fold for each benchmark, in it one for each recipe with the benchmark's subjects, if it has any."""
    title = "Task by task"
    tasks = main_metrics(facts)
    shown = _shown(facts)
    if not tasks:
        return empty(title, facts.why_none("tasks", "benchmark scores"))
    parts = [_benchmark(facts, group, metric, shown) for group, metric in tasks]
    limits = left_out(facts) or (_few(facts, shown) if len(shown) < len(facts.recipes()) else "")
    return join(tag("p", " ".join(filter(None, [_NOTE, limits])), class_="fine"), *parts)


def _few(facts: Facts, shown: Sequence[Contender]) -> str:
    return f"Of {len(facts.recipes())} recipes these are {len(shown)}, the foremost of each base model."


def _shown(facts: Facts) -> list[Contender]:
    """The foremost recipes, of each base model in turn."""
    ranks = zip_longest(*foremost(facts).values())
    return [who for rank in ranks for who in rank if who is not None][:_RECIPES]


def _benchmark(facts: Facts, group: str, metric: str, recipes: Sequence[Contender]) -> Html:
    figure = next((f for f in main_figures(facts) if f.source == (group, metric)), None)
    against = _against_base(facts, figure)
    sign = -1.0 if figure is not None and figure.minimize else 1.0
    ordered = sorted(
        recipes, key=lambda w: sign * against[w.label].difference.value if w.label in against else math.inf
    )
    bases = list(dict.fromkeys(base for who in recipes if (base := facts.base_of(who)) is not None))
    rows = [
        [tag("strong", who.label), *_score(estimate(facts, who, group, metric)), *_difference(against.get(who.label))]
        for who in [*bases, *ordered]
    ]
    subjects = _subjects(facts, group, metric, sign, ordered)
    of = f" · {counted(len(subjects.names), 'subject')}" if subjects else ""
    lost = [c for c in against.values() if c.a in recipes and c.verdict == ("lower" if sign > 0 else "higher")]
    loss = f" · {counted(len(lost), 'recipe')} resolved to be worse than base" if lost else ""
    return tag(
        "details",
        tag("summary", f"{group}, {metric}{of}{loss}"),
        table(Table(["recipe", "score, 95 %", "documents", "minus base, 95 %", "Holm p", "verdict"], rows)),
        _folds(subjects, sign) if subjects else None,
    )


def _against_base(facts: Facts, figure: MainFigure | None) -> dict[str, Comparison]:
    """Label → the recipe's comparison with its base model, from the family in which the page makes it."""
    found = tested(facts, figure) if figure is not None else []
    return {t.comparison.a.label: t.comparison for t in found if t.comparison.b.is_base}


def _score(found: Estimate | None) -> list[object]:
    if found is None:
        return [None, None]
    interval = tag("span", span(found.low, found.high), class_="interval")
    return [tag("span", number(found.value), " ", interval, class_="num"), found.n]


def _difference(found: Comparison | None) -> list[object]:
    if found is None:
        return [None, None, None]
    value, _, interval = difference_text(found).partition(" ")
    style = "verdict" if found.verdict == "unresolved" else "verdict resolved"
    return [
        tag("span", value, " ", tag("span", interval, class_="interval"), class_="num"),
        found.adjusted_p,
        tag("span", found.verdict, class_=style),
    ]


@dataclass(frozen=True)
class _Subjects:
    """A benchmark's subjects, and of each recipe its differences from base, worst first; with both means."""

    names: Sequence[str]
    of: Mapping[str, Sequence[tuple[Comparison, float, float]]]


def _subjects(facts: Facts, group: str, metric: str, sign: float, recipes: Sequence[Contender]) -> _Subjects | None:
    """None where the benchmark is one task, or no recipe has a base model with the same documents."""
    split = {
        who.label: _split(scores_of(facts, who, group, metric))
        for who in [*facts.contenders]
        if who in recipes or who.is_base
    }
    names = sorted({name for own in split.values() for name in own})
    if len(names) < 2:
        return None
    pairs = [(who, base) for who in recipes if (base := facts.base_of(who)) is not None]
    pairs = pairs[: max(1, _CELLS // len(names))]
    # Subjects of equal size one after the other: a bootstrap keeps its draws for the next of as many documents.
    sizes = {name: max(len(own.get(name, ())) for own in split.values()) for name in names}
    found = []
    for name in sorted(names, key=lambda n: (sizes[n], n)):
        for who, base in pairs:
            mine, theirs = split[who.label].get(name, {}), split[base.label].get(name, {})
            difference = paired(mine, theirs)
            if difference is not None:
                shared = mine.keys() & theirs.keys()
                found.append((who, base, _short(name, group), difference, _mean(theirs, shared), _mean(mine, shared)))
    if not found:
        return None
    adjusted = benjamini_hochberg([difference.p for *_, difference, _, _ in found])
    of: dict[str, list[tuple[Comparison, float, float]]] = {who.label: [] for who, _ in pairs}
    for (who, base, name, difference, before, after), p in zip(found, adjusted, strict=True):
        of[who.label].append((Comparison(who, base, name, difference, p, resolved(difference, p)), before, after))
    return _Subjects(names, {k: sorted(v, key=lambda row: sign * row[0].difference.value) for k, v in of.items() if v})


def _split(scores: Scores) -> dict[str, Scores]:
    """Task → its documents."""
    parts: dict[str, Scores] = {}
    for document, values in scores.items():
        parts.setdefault(document.rpartition("/")[0], {})[document] = values
    return parts


def _short(name: str, group: str) -> str:
    return name.removeprefix(f"{group}_") or name


def _mean(scores: Scores, documents: set[str]) -> float:
    return math.fsum(math.fsum(scores[d]) / len(scores[d]) for d in documents) / len(documents)


def _folds(subjects: _Subjects, sign: float) -> Html:
    most = max(5, _ROWS // len(subjects.of))
    return join(
        tag("p", _SCREEN, class_="fine"), *(_fold(label, rows, most, sign) for label, rows in subjects.of.items())
    )


def _fold(label: str, rows: Sequence[tuple[Comparison, float, float]], most: int, sign: float) -> Html:
    worst = rows[0][0]
    lost = sum(sign * c.difference.value < 0 for c, _, _ in rows)
    summary = f"{label}: worse than base in {lost} of {len(rows)} subjects"
    if lost:
        summary += f", most in {worst.what} ({difference_text(worst)})"
    cells: list[list[object]] = []
    for c, before, after in rows[:most]:
        cells.append([c.what, c.difference.n, before, after, *_difference(c)])
    rest = rows[most:]
    more = None
    if rest:
        ends = " to ".join(number(c.difference.value) for c in (rest[0][0], rest[-1][0]))
        more = tag("p", f"{counted(len(rest), 'subject')} more, with differences of {ends}.", class_="fine")
    headers = ["subject", "documents", "base", "recipe", "minus base, 95 %", "p", "verdict"]
    return tag("details", tag("summary", summary), table(Table(headers, cells)), more)
