"""How often one recipe beats another: over the documents of a figure, and over tasks and seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from harness.report._compare import Scores, bounds_of, main_metrics, scores_of
from harness.report._families import MainFigure, foremost, left_out, main_figures, scores_on, tested
from harness.report._html import Html, Table, join, number, table, tag
from harness.report._plot import empty
from harness.report._queries import Contender, Facts
from harness.report._words import span
from harness.stats import Interval, TaskScores, interquartile_mean, probability_of_improvement

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["win_matrix"]

_STEPS = (0.05, 0.2, 0.5)
"""Wins less losses, as a share of the documents, from which a cell has the next shade."""
_NOTE = (
    "In each cell the share of documents on which the row's recipe beats the column's (mean over seeds), and = the "
    "share on which they tie; the rest it loses. Blue: more wins than losses; orange: more losses. ▲ and ▼ mark a "
    "mean that is resolved to be better or worse, after Holm's correction, as in the comparisons. More wins than "
    "losses alone resolve nothing, and many small wins may go with a worse mean."
)
_OF_TASKS = (
    "In each cell the chance that a training by the row's recipe beats one by the column's on a benchmark, ties "
    "counting half, mean over the benchmarks, with its 95 % interval over other seeds (Agarwal et al. 2021). It says "
    "how often, not by how much, and nothing of other documents. With one seed on either side its interval is unknown."
)
_OF_ALL = (
    "The mean of the middle half of all scores, benchmarks and seeds together, with its 95 % interval over other "
    "seeds: a benchmark that every recipe solves, or none does, decides less than in a mean."
)


def win_matrix(facts: Facts) -> Html:
    """Recipe against recipe, one table a figure and base model, of which one is open at a time; of many recipes the
    foremost."""
    found: list[tuple[str, Html]] = []
    for figure in main_figures(facts):
        for model, recipes in foremost(facts).items():
            made = _matrix(facts, figure, _with_base(facts, recipes))
            if made is not None:
                found.append((_called(facts, figure.name, model), made))
    if not found:
        return empty("Who beats whom", "No two recipes have final scores of the same documents yet.")
    parts = [_fold(summary, made, i == 0) for i, (summary, made) in enumerate(found)]
    return join(tag("p", " ".join(filter(None, [_NOTE, left_out(facts)])), class_="fine"), *parts, _over_tasks(facts))


def _called(facts: Facts, what: str, model: str) -> str:
    return f"{what} · {model}" if len(foremost(facts)) > 1 else what


def _fold(summary: str, content: Html, opened: bool) -> Html:
    return tag("details", tag("summary", summary), content, open=opened, name_="wins")


def _with_base(facts: Facts, recipes: Sequence[Contender]) -> list[Contender]:
    base = facts.base_of(recipes[0])
    return [*([base] if base is not None else []), *recipes]


@dataclass(frozen=True)
class _Tally:
    """Shares of the shared documents, recipes × recipes: won by the row's, and neither's; NaN where none is shared."""

    won: "npt.NDArray[np.float64]"
    tied: "npt.NDArray[np.float64]"


def _tally(scores: Sequence[Scores], minimize: bool) -> _Tally:
    import numpy as np

    place = {d: i for i, d in enumerate(sorted(set().union(*scores)))}
    means = np.full((len(scores), len(place)), np.nan)
    for row, own in zip(means, scores, strict=True):
        row[[place[d] for d in own]] = np.array(list(own.values())).mean(axis=1)
    known = ~np.isnan(means)
    shared = known.astype(np.float64) @ known.T
    # Against NaN no comparison holds; a row at a time, so that a large benchmark needs little memory.
    best = -means if minimize else means
    won = np.stack([(row > best).sum(axis=1) for row in best]).astype(np.float64)
    shared[shared == 0] = np.nan
    return _Tally(won / shared, (shared - won - won.T) / shared)


def _matrix(facts: Facts, figure: MainFigure, contenders: Sequence[Contender]) -> Html | None:
    have = [(who, scores) for who in contenders if (scores := scores_on(facts, who, figure))]
    if len(have) < 2:
        return None
    tally = _tally([scores for _, scores in have], figure.minimize)
    marks = _marks(facts, figure)
    rows: list[list[object]] = []
    for i, (who, _) in enumerate(have):
        cells: list[object] = [tag("strong", who.label)]
        for j, (other, _) in enumerate(have):
            won, tied = float(tally.won[i, j]), float(tally.tied[i, j])
            none = i == j or math.isnan(won)
            cells.append(None if none else _cell(won, tied, marks.get((who.label, other.label), "")))
        rows.append(cells)
    return table(Table(["", *(who.label for who, _ in have)], rows))


def _cell(won: float, tied: float, mark: str) -> Html:
    style = _shade(2 * won + tied - 1)
    return join(
        tag("span", f"{100 * won:.0f} %{mark}", class_=f"win {style}".strip()),
        tag("span", f" ={100 * tied:.0f}", class_="interval") if tied else None,
    )


def _shade(net: float) -> str:
    step = sum(abs(net) >= least for least in _STEPS)
    return f"{'up' if net > 0 else 'down'}{step}" if step else ""


def _marks(facts: Facts, figure: MainFigure) -> Mapping[tuple[str, str], str]:
    """Row and column → ▲ where the row's mean is resolved to be the better one, ▼ where the worse."""
    found = {}
    for one in tested(facts, figure):
        c = one.comparison
        if c.verdict != "unresolved":
            better = (c.verdict == "higher") != figure.minimize
            found[c.a.label, c.b.label] = " ▲" if better else " ▼"
            found[c.b.label, c.a.label] = " ▼" if better else " ▲"
    return found


def _over_tasks(facts: Facts) -> Html | None:
    """What the benchmarks say together; None where there is but one score of each recipe, one benchmark and seed."""
    tasks = main_metrics(facts)
    parts: list[Html] = []
    for model, recipes in foremost(facts).items():
        contenders = _with_base(facts, recipes)
        scores = {who.label: _by_task(facts, who, tasks) for who in contenders}
        have = {label: own for label, own in scores.items() if own}
        if len(have) < 2 or max(len(own) * _seeds(own) for own in have.values()) < 2:
            continue
        improved = _fold(
            _called(facts, "all benchmarks: probability of improvement", model), _improved(facts, have), False
        )
        middle = _fold(_called(facts, "all benchmarks: interquartile mean", model), _middle(have), False)
        parts += [improved, middle]
    return join(*parts) if parts else None


_ByTask = Mapping[tuple[str, str], Scores]
"""Benchmark and metric → the scores of one contender."""


def _by_task(facts: Facts, who: Contender, tasks: Sequence[tuple[str, str]]) -> _ByTask:
    return {task: scores for task in tasks if (scores := scores_of(facts, who, *task))}


def _seeds(own: _ByTask) -> int:
    return max(len(next(iter(scores.values()))) for scores in own.values())


def _means(scores: Scores, documents: Sequence[str] | None = None, sign: float = 1.0) -> list[float]:
    """The mean over documents, all or these, of each seed."""
    import numpy as np

    rows = list(scores.values()) if documents is None else [scores[d] for d in documents]
    return [sign * float(v) for v in np.array(rows).mean(axis=0)]


def _improved(facts: Facts, have: Mapping[str, _ByTask]) -> Html:
    labels = list(have)
    # Where less is better, of the two the one with less has improved.
    sign = {f.source: -1.0 if f.minimize else 1.0 for f in main_figures(facts)}
    whole = {label: {task: _means(own[task], None, sign[task]) for task in own} for label, own in have.items()}
    found: dict[tuple[str, str], Html] = {}
    for a, b in combinations(labels, 2):
        first: dict[str, Sequence[float]] = {}
        second: dict[str, Sequence[float]] = {}
        for task in have[a].keys() & have[b].keys():
            name, x, y = "/".join(task), have[a][task], have[b][task]
            if x.keys() == y.keys():
                first[name], second[name] = whole[a][task], whole[b][task]
            elif shared := sorted(x.keys() & y.keys()):
                first[name], second[name] = (_means(side, shared, sign[task]) for side in (x, y))
        if first:
            found[a, b], found[b, a] = _chances(first, second)
    rows = [[tag("strong", a), *(found.get((a, b)) for b in labels)] for a in labels]
    return join(tag("p", _OF_TASKS, class_="fine"), table(Table(["", *labels], rows)))


def _chances(a: TaskScores, b: TaskScores) -> tuple[Html, Html]:
    """The cell of a against b, and the one of b against a, which says the same from the other side."""
    found = probability_of_improvement(a, b)
    return _chance(found.value, found.low, found.high), _chance(1 - found.value, 1 - found.high, 1 - found.low)


def _chance(value: float, low: float, high: float) -> Html:
    said = tag("span", f"{100 * value:.0f} %", class_=f"win {_shade(2 * value - 1)}".strip())
    if math.isnan(low):
        return said
    return join(said, tag("span", f" [{100 * low:.0f}, {100 * high:.0f}]", class_="interval"))


def _middle(have: Mapping[str, _ByTask]) -> Html:
    """Over the benchmarks that every contender has and that share one scale, [0, 1]."""
    shares = {task for own in have.values() for task in own if bounds_of(task[1]) == (0.0, 1.0)}
    common = sorted(task for task in shares if all(task in own for own in have.values()))
    rows: list[list[object]] = []
    for label, own in have.items():
        scores = {"/".join(task): _means(own[task]) for task in common}
        # While a sweep runs, a benchmark may lack a seed that another has.
        even = len({len(s) for s in scores.values()}) == 1
        rows.append([tag("strong", label), *(_mean(interquartile_mean(scores)) if even else (None, None))])
    of = ", ".join(" ".join(task) for task in common) or "none that all recipes have"
    note = tag("p", f"{_OF_ALL} Benchmarks: {of}.", class_="fine")
    return join(note, table(Table(["recipe", "interquartile mean, 95 %", "scores"], rows)))


def _mean(found: Interval) -> tuple[Html, int]:
    low, high = max(found.low, 0.0), min(found.high, 1.0)
    interval = tag("span", span(low, high), class_="interval")
    return tag("span", number(found.value), " ", interval, class_="num"), found.n
