"""A forest plot: one difference with its interval a line, against the line of no difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.report._html import Table, number, text_for_plotly
from harness.report._plot import Figure, Point, Series, Variant, scatter
from harness.stats import Difference, Verdict

__all__ = ["Line", "forest"]

_LINES = 40
_LINE_PX, _FRAME_PX = 26, 96
_NAMES = {"resolved": 1, "unresolved": 0}


@dataclass(frozen=True)
class Line:
    """`name` says what was compared with what."""

    name: str
    difference: Difference
    adjusted_p: float
    verdict: Verdict


def forest(identifier: str, title: str, caption: str, lines: Mapping[str, Sequence[Line]]) -> Figure:
    """One drawing a figure, chosen by a select where there are several.

    Args:
        identifier: of its place in the page.
        title: above it.
        caption: below it.
        lines: what was measured → its differences, in the order in which they are drawn, the first at the top. Of many
            the first 40 are drawn; the table has each.
    """
    variants = [_drawing(what, found) for what, found in lines.items()]
    rows: list[list[object]] = [
        [line.name, what, line.difference.value, line.difference.low, line.difference.high, line.adjusted_p]
        for what, found in lines.items()
        for line in found
    ]
    numbers = Table(["first − second", "figure", "difference", "95 % from", "to", "Holm p"], rows)
    return Figure(identifier, title, caption, variants, numbers, "Figure", "forest")


def _drawing(what: str, lines: Sequence[Line]) -> Variant:
    shown = lines[:_LINES]
    series = []
    for name, colour in _NAMES.items():
        points = [
            Point(line.difference.value, -place, _hover(line), spread_x=(line.difference.low, line.difference.high))
            for place, line in enumerate(shown)
            if (line.verdict == "unresolved") == (name == "unresolved")
        ]
        if points:
            series.append(Series(name, colour, points, hollow=name == "unresolved"))
    drawn = scatter(
        series,
        f"difference in {text_for_plotly(what)}, 95 % interval",
        "",
        height=_FRAME_PX + _LINE_PX * max(3, len(shown)),
        showlegend=len(series) > 1,
        shapes=[{"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"width": 1.2}}],
    )
    axis = {
        "tickvals": [-place for place in range(len(shown))],
        "ticktext": [text_for_plotly(_short(line.name)) for line in shown],
        "range": [-len(shown) + 0.4, 0.6],
        "showgrid": False,
    }
    return Variant(what, drawn.traces, {**drawn.layout, "yaxis": axis})


def _hover(line: Line) -> list[str]:
    d = line.difference
    return [
        line.name,
        f"{number(d.value)} [{number(d.low)}, {number(d.high)}], {line.verdict}",
        f"Holm p {number(line.adjusted_p)}, {d.n:,} documents",
    ]


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:21]}…{name[-22:]}"
