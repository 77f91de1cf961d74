"""Which differences between the recipes of a sweep the page tests, figure by figure, and in which family each stands.

A difference is computed once and stands in one family, so no two parts of the page correct it differently. Of many
recipes, only the foremost are set against each other on every figure: a hundred have 4,950 pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from harness.report._compare import (
    Comparison,
    Scores,
    against_base,
    against_origin,
    compare_recipes,
    family,
    measures,
    objective_scores,
    objective_source,
    paired,
    scores_of,
)
from harness.report._direction import direction
from harness.report._queries import Contender, Facts

__all__ = ["MainFigure", "Tested", "foremost", "left_out", "main_figures", "scores_on", "tested"]

_FOREMOST = 20
_BETWEEN = 1200
"""So many comparisons of recipes with each other, about, are made beside those on the first objective; each takes
milliseconds."""

_Pair = tuple[Contender, Contender]


@dataclass(frozen=True)
class MainFigure:
    """A figure by which recipes are compared, as comparisons call it; `source` is its one task and metric.

    An objective that mixes several benchmarks has no such source.
    """

    name: str
    source: tuple[str, str] | None
    minimize: bool


@dataclass(frozen=True)
class Tested:
    """A comparison, with a name for the family that Holm's correction went over, and how many that has."""

    comparison: Comparison
    family: str
    of: int


def main_figures(facts: Facts) -> list[MainFigure]:
    """The objectives that documents make up, the gold reward, the benchmarks, the judged aspects; each once."""
    key = ("main_figures",)
    return facts.once(key, lambda: _main_figures(facts))


def _main_figures(facts: Facts) -> list[MainFigure]:
    plain = measures(facts)
    less = {source: direction(source[1]) == "lower" for source in plain}
    names = [name for name in facts.objectives if objective_source(facts, name)]
    found: list[MainFigure] = []
    for name in [*names, *(["gold_reward"] if "gold_reward" not in names else [])]:
        source = objective_source(facts, name)
        one = source[0] if len(source) == 1 else None
        minimize = facts.objectives.get(name) == "minimize"
        if one in less:
            # A further objective that is a benchmark or a judged aspect is compared as such.
            less[one] = minimize
        elif any(objective_scores(facts, who, name) for who in facts.contenders):
            found.append(MainFigure(name, one, minimize))
    return found + [MainFigure(m if g == "judge" else f"{g} {m}", (g, m), less[g, m]) for g, m in plain]


def scores_on(facts: Facts, who: Contender, figure: MainFigure) -> Scores:
    """A contender's final scores of a figure; {} for none."""
    return objective_scores(facts, who, figure.name) if figure.source is None else scores_of(facts, who, *figure.source)


def _value(facts: Facts, who: Contender) -> float:
    """How good a contender is on the first figure; minus infinity where it has none."""
    lead = next(iter(main_figures(facts)), None)
    scores = scores_on(facts, who, lead) if lead is not None else {}
    if lead is None or not scores:
        return -math.inf
    mean = math.fsum(math.fsum(s) / len(s) for s in scores.values()) / len(scores)
    return -mean if lead.minimize else mean


def foremost(facts: Facts) -> dict[str, list[Contender]]:
    """Base model → its recipes, those with the best mean on the first figure, that one first.

    They are 20 at most, and fewer where several base models and many figures make too many comparisons of them.
    """
    key = ("foremost",)
    return facts.once(key, lambda: _foremost(facts))


def _foremost(facts: Facts) -> dict[str, list[Contender]]:
    of: dict[str, list[Contender]] = {}
    for who in facts.recipes():
        of.setdefault(who.model, []).append(who)
    # k recipes have k (k - 1) / 2 pairs.
    pairs = _BETWEEN / max(1, len(of) * (len(main_figures(facts)) - 1))
    most = max(2, min(_FOREMOST, int((1 + math.sqrt(1 + 8 * pairs)) / 2)))
    return {model: sorted(mine, key=lambda w: -_value(facts, w))[:most] for model, mine in of.items()}


def left_out(facts: Facts) -> str:
    """A sentence about the recipes that are not among the foremost; "" where all are."""
    shown = sum(map(len, foremost(facts).values()))
    if shown == len(facts.recipes()):
        return ""
    lead = main_figures(facts)[0].name if main_figures(facts) else "no figure"
    each = max(map(len, foremost(facts).values()))
    where = " of each base model" if len(foremost(facts)) > 1 else ""
    return f"Of {len(facts.recipes())} recipes these are the {each}{where} with the best mean in {lead}."


def _first(facts: Facts) -> str | None:
    """The first objective, if documents make it up: the families of the answer are its."""
    objective = next(iter(facts.objectives), None)
    return objective if objective is not None and objective_source(facts, objective) else None


def _between(facts: Facts) -> list[Comparison]:
    """Every two of the foremost recipes on every figure that no other family compares them on: one family."""
    key = ("between_recipes",)
    return facts.once(key, lambda: _differences_between(facts))


def _differences_between(facts: Facts) -> list[Comparison]:
    known = {(c.what, frozenset((c.a.label, c.b.label))) for c in against_origin(facts)}
    pairs: list[_Pair] = [pair for mine in foremost(facts).values() for pair in combinations(mine, 2)]
    found = []
    for figure in main_figures(facts):
        if figure.name == _first(facts):
            continue
        for a, b in pairs:
            if (figure.name, frozenset((a.label, b.label))) in known:
                continue
            difference = paired(*(scores_on(facts, who, figure) for who in (a, b)))
            if difference is not None:
                found.append((a, b, figure.name, difference))
    return family(found)


def tested(facts: Facts, figure: MainFigure) -> list[Tested]:
    """Every comparison of contenders on a figure: each recipe with its base model, then recipes with each other."""
    if figure.name == _first(facts):
        return [
            *_named(figure, "objective, base", against_base(facts, figure.name)),
            *_named(figure, "objective, recipes", compare_recipes(facts, figure.name)),
        ]
    measured = figure.source in measures(facts)
    base = against_base(facts) if measured else against_base(facts, figure.name)
    return [
        *_named(figure, "figures, base" if measured else f"{figure.name}, base", base),
        *_named(figure, "figures, begins with", against_origin(facts)),
        *_named(figure, "figures, recipes", _between(facts)),
    ]


def _named(figure: MainFigure, name: str, found: Sequence[Comparison]) -> list[Tested]:
    return [Tested(c, name, len(found)) for c in found if c.what == figure.name]
