"""A forest plot: one difference with its interval a line, against the line of no difference."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.report._html import Table, number, text_for_plotly
from harness.report._plot import COLOURS, Figure, Point, Series, Variant, scatter
from harness.stats import Difference, Verdict

__all__ = ["DRAWN", "Line", "forest"]

DRAWN = 40
"""So many lines a drawing has at most."""
_LINE_PX, _FRAME_PX = 26, 96
_NAMES = {"resolved": 1, "unresolved": 0}
_BAR_PX, _BAR_OPACITY = 12, 0.22
_HEADERS = ("first − second", "figure", "difference", "95 % from", "to", "Holm p")
_MORE = ("verdict", "detectable", "changed", "re-measured", "documents", "family")


@dataclass(frozen=True)
class Line:
    """`name` says what was compared with what.

    Where they are known: `detectable` is the true difference that such data would resolve with a chance of 80 %,
    `changed` the share of documents with another score, `remeasured` that share between two measurements of one model
    (the noise floor), `family` what Holm's correction went over.
    """

    name: str
    difference: Difference
    adjusted_p: float
    verdict: Verdict
    detectable: float | None = None
    changed: float | None = None
    remeasured: float | None = None
    family: str | None = None


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
    known = any(line.family is not None for found in lines.values() for line in found)
    rows = [_row(line, what, known) for what, found in lines.items() for line in found]
    numbers = Table([*_HEADERS, *(_MORE if known else ())], rows)
    return Figure(identifier, title, caption, variants, numbers, "Figure", "forest")


def _row(line: Line, what: str, known: bool) -> list[object]:
    d = line.difference
    row: list[object] = [line.name, what, d.value, d.low, d.high, line.adjusted_p]
    if known:
        row += [line.verdict, line.detectable, _percent(line.changed), _percent(line.remeasured), d.n, line.family]
    return row


def _percent(share: float | None) -> str | None:
    return None if share is None or math.isnan(share) else f"{100 * share:.0f} %"


def _drawing(what: str, lines: Sequence[Line]) -> Variant:
    shown = lines[:DRAWN]
    series = []
    for name, colour in _NAMES.items():
        points = [
            Point(line.difference.value, -place, _hover(line), spread_x=(line.difference.low, line.difference.high))
            for place, line in enumerate(shown)
            if (line.verdict == "unresolved") == (name == "unresolved")
        ]
        if points:
            series.append(Series(name, colour, points, hollow=name == "unresolved"))
    bars = _detectable(shown)
    drawn = scatter(
        series,
        f"difference in {text_for_plotly(what)}, 95 % interval",
        "",
        height=_FRAME_PX + _LINE_PX * max(3, len(shown)),
        showlegend=len(series) + len(bars) > 1,
        shapes=[{"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper", "line": {"width": 1.2}}],
    )
    axis = {
        "tickvals": [-place for place in range(len(shown))],
        "ticktext": [text_for_plotly(_short(line.name)) for line in shown],
        "range": [-len(shown) + 0.4, 0.6],
        "showgrid": False,
    }
    return Variant(what, [*bars, *drawn.traces], {**drawn.layout, "yaxis": axis})


def _detectable(lines: Sequence[Line]) -> list[dict[str, object]]:
    """A bar about no difference for each line, as wide as what its data would have resolved; cut where others end."""
    ends = [abs(end) for line in lines for end in (line.difference.low, line.difference.value, line.difference.high)]
    most = 1.1 * max((end for end in ends if math.isfinite(end)), default=0.0)
    x: list[float | None] = []
    y: list[float | None] = []
    for place, line in enumerate(lines):
        if line.detectable is not None and math.isfinite(line.detectable):
            half = min(line.detectable, most)
            x += [-half, half, None]
            y += [-place, -place, None]
    if not x:
        return []
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "too small to resolve",
            "x": x,
            "y": y,
            "hoverinfo": "skip",
            "opacity": _BAR_OPACITY,
            "line": {"color": COLOURS[0], "width": _BAR_PX},
        }
    ]


def _hover(line: Line) -> list[str]:
    d = line.difference
    said = [
        line.name,
        f"{number(d.value)} [{number(d.low)}, {number(d.high)}], {line.verdict}",
        f"Holm p {number(line.adjusted_p)}, {d.n:,} documents",
    ]
    if line.detectable is not None:
        said.append(f"detectable {number(line.detectable)}")
    if (changed := _percent(line.changed)) is not None:
        said.append(f"{changed} of the documents changed")
    return said


def _short(name: str) -> str:
    return name if len(name) <= 44 else f"{name[:21]}…{name[-22:]}"
