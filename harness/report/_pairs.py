"""The paired differences of the recipes of a sweep, drawn: each with its base model and with the others, by figure."""

from collections.abc import Sequence

from harness.report._compare import changed_share
from harness.report._families import MainFigure, Tested, left_out, main_figures, scores_on, tested
from harness.report._forest import DRAWN, Line, forest
from harness.report._html import Html
from harness.report._noise import Noise, flips_of
from harness.report._plot import Figure, empty
from harness.report._queries import Facts
from harness.stats import detectable

__all__ = ["differences"]

_ROWS = 400
"""So many rows the table has, about: each figure as many as another, and no fewer than are drawn."""

_CAPTION = (
    "First minus second, paired by document, with 95 % intervals over documents and seeds. Filled: resolved, Holm's p "
    "below 0.05 within its family, which the table names with the number of its comparisons; those of the answer are "
    "the same ones. Where a benchmark has five tasks or more (subjects), the interval goes by these. Grey bars: a true "
    "difference inside would be missed more than one time in five even by a comparison of its own, without Holm's "
    "correction (detectable); there, unresolved means that little was asked, not that nothing is there. Changed: "
    "documents whose score differs at all; re-measured: those whose score differs when one model is measured twice."
)


def differences(facts: Facts, noise: Sequence[Noise] = ()) -> Figure | Html:
    """The forest plot of every main figure, one at a time; of many differences the foremost.

    Args:
        facts: the sweep.
        noise: the noise floor of its base models, where it was measured.
    """
    title = "Every difference"
    found = {figure: rows for figure in main_figures(facts) if (rows := _ordered(tested(facts, figure)))}
    if not found:
        return empty(title, "No two recipes have final scores of the same documents yet.")
    most = max(DRAWN, _ROWS // len(found))
    lines = {figure.name: [_line(facts, figure, t, noise) for t in rows[:most]] for figure, rows in found.items()}
    return forest("forest", title, " ".join([_CAPTION, *_limits(facts, list(found.values()), most)]), lines)


def _limits(facts: Facts, found: Sequence[Sequence[Tested]], most: int) -> list[str]:
    """What is not drawn, what is not in the table, and what was not computed."""
    said = []
    if any(len(rows) > DRAWN for rows in found):
        said.append(f"Of each figure the {DRAWN} foremost are drawn: resolved before unresolved, then the largest.")
    total, shown = sum(map(len, found)), sum(min(len(rows), most) for rows in found)
    if shown < total:
        said.append(f"The table has the foremost {shown:,} of {total:,} differences.")
    if few := left_out(facts):
        said.append(f"Only the foremost recipes are set against each other on every figure. {few}")
    return said


def _ordered(found: Sequence[Tested]) -> list[Tested]:
    """The foremost first: half of what is drawn is left to differences from base, where there are so many of either."""
    ranked = sorted(found, key=_rank)
    base = [t for t in ranked if t.comparison.b.is_base]
    others = [t for t in ranked if not t.comparison.b.is_base]
    few = min(len(base), max(DRAWN // 2, DRAWN - len(others)))
    return [*base[:few], *others[: DRAWN - few], *sorted([*base[few:], *others[DRAWN - few :]], key=_rank)]


def _rank(one: Tested) -> tuple[bool, float]:
    return one.comparison.verdict == "unresolved", -abs(one.comparison.difference.value)


def _line(facts: Facts, figure: MainFigure, one: Tested, noise: Sequence[Noise]) -> Line:
    c = one.comparison
    floor = flips_of(noise, *figure.source, model=c.a.model, target=facts.target_of(c.a)) if figure.source else None
    first, second = (scores_on(facts, who, figure) for who in (c.a, c.b))
    return Line(
        f"{c.a.label} − {c.b.label}",
        c.difference,
        c.adjusted_p,
        c.verdict,
        detectable(c.difference),
        changed_share(first, second),
        floor.flips.value if floor is not None else None,
        f"{one.family} ({one.of:,})",
    )
