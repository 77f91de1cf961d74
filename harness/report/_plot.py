"""The few kinds of Plotly figure the page draws, from plain points; each with a caption and its numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from harness.report._html import Html, Table, join, lines_for_plotly, table, tag, text_for_plotly

__all__ = [
    "COLOURS",
    "Estimate",
    "Figure",
    "Point",
    "Series",
    "Variant",
    "bars",
    "checked",
    "empty",
    "render",
    "scatter",
    "style_of",
]

# Each at least 3:1 against both the white and the dark ground; the grey is the base model's.
COLOURS = ("#7f8792", "#2f80d8", "#d9722b", "#2a9d6b", "#a06ad9", "#d84a6f", "#1f97a8", "#94851f")
_PATTERNS = ("", "/", "x", ".")
_CHECKED = 20
"""Entries of a list that are held against Plotly's schema."""
_BAND = 0.16
"""Opacity of a band: the lines under several of them stay visible on the white and on the dark ground."""
_MARKS_OF_A_LINE = 8
_SYMBOLS = ("diamond", "circle", "square", "triangle-up", "cross", "star", "hexagon", "pentagon")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval (or, for a profile, its 10th to 90th percentile) and what it rests on."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Point:
    """One mark. `x` and `y` are values or names; `spread_*` the ends of an interval; `lines` the hover text.

    An end that is not finite is unknown: a bar is then left out, a band ends at the line on that side.
    """

    x: float | str
    y: float
    lines: Sequence[str]
    spread_x: tuple[float, float] | None = None
    spread_y: tuple[float, float] | None = None


@dataclass(frozen=True)
class Series:
    """Points that share a name in the legend and a look; `colour` is an index, 0 the base model's.

    A `joined` one is a line, its intervals in y a band around it; `steps`: the line keeps a value until the next
    point, and has no band.
    """

    name: str
    colour: int
    points: Sequence[Point]
    size: int = 9
    opacity: float = 1.0
    hollow: bool = False
    joined: bool = False
    steps: bool = False
    legend: bool = True
    axis: int = 1


@dataclass(frozen=True)
class Variant:
    """One choice of a figure that shows several things, one at a time."""

    label: str
    traces: Sequence[Mapping[str, object]]
    layout: Mapping[str, object]


@dataclass(frozen=True)
class Figure:
    """What the page shows at one place: one drawing, or one of several chosen by a select."""

    identifier: str
    title: str
    caption: str
    variants: Sequence[Variant]
    numbers: Table
    chooser: str = "Show"
    shape: str = field(default="")


def _pattern_of(index: int) -> str:
    """The pattern of a bar, which has no symbol: it tells apart those of one colour."""
    return _PATTERNS[max(0, index - 1) // (len(COLOURS) - 1) % len(_PATTERNS)]


def style_of(index: int) -> tuple[str, str]:
    """Colour and symbol of the contender with this index; two never share both before the 57th."""
    if index == 0:
        return COLOURS[0], _SYMBOLS[0]
    turn, place = divmod(index - 1, len(COLOURS) - 1)
    return COLOURS[1 + place], _SYMBOLS[1 + (place + turn) % (len(_SYMBOLS) - 1)]


def _errors(points: Sequence[Point], which: str) -> dict[str, object] | None:
    spreads = [p.spread_x if which == "x" else p.spread_y for p in points]
    # One document alone has no interval: unknown, and not drawn as zero.
    spreads = [s if s and all(map(math.isfinite, s)) else None for s in spreads]
    if not any(spreads):
        return None
    centres = [p.x if which == "x" else p.y for p in points]
    above, below = [], []
    for centre, spread in zip(centres, spreads, strict=True):
        middle = float(centre) if not isinstance(centre, str) else 0.0
        above.append(max(0.0, spread[1] - middle) if spread else 0.0)
        below.append(max(0.0, middle - spread[0]) if spread else 0.0)
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.4,
        "width": 4,
    }


def _bands(one: Series) -> list[dict[str, object]]:
    """The areas between a line and the ends of its intervals: one above and one below, for each stretch that has it."""
    colour, _ = style_of(one.colour)
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    traces: list[dict[str, object]] = []
    for end in (0, 1):
        for known, part in groupby(((p, p.spread_y[end] if p.spread_y else math.nan) for p in one.points), _is_known):
            stretch = list(part)
            if not known or len(stretch) < 2:
                continue
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "legendgroup": text_for_plotly(one.name),
                    "showlegend": False,
                    "x": [*(p.x for p, _ in stretch), *(p.x for p, _ in reversed(stretch))],
                    "y": [*(p.y for p, _ in stretch), *(bound for _, bound in reversed(stretch))],
                    "fill": "toself",
                    "fillcolor": f"rgba({red},{green},{blue},{_BAND})",
                    "hoverinfo": "skip",
                    "line": {"width": 0},
                }
            )
    return traces


def _is_known(end: tuple[Point, float]) -> bool:
    return math.isfinite(end[1])


def scatter(series: Sequence[Series], x: str, y: str, **layout: object) -> Variant:
    """Marks or lines of points; several series may share a name (one legend entry switches them together).

    A line has a few marks of its series' symbol on it, which tell it from others where colours do not; a faint one
    has none.
    """
    # Areas come first, so that no line or mark lies under one.
    traces = [band for one in series if one.joined for band in _bands(one)]
    for one in series:
        colour, symbol = style_of(one.colour)
        line = one.joined and len(one.points) > 1
        trace: dict[str, object] = {
            "type": "scatter",
            "mode": "markers" if not line else "lines+markers" if one.opacity == 1 else "lines",
            "name": text_for_plotly(one.name),
            "legendgroup": text_for_plotly(one.name),
            "showlegend": one.legend,
            "x": [text_for_plotly(p.x) if isinstance(p.x, str) else p.x for p in one.points],
            "y": [p.y for p in one.points],
            "hovertext": [lines_for_plotly(p.lines) for p in one.points],
            "hoverinfo": "text",
            "opacity": one.opacity,
            "line": {"color": colour, "width": 1.8} | ({"shape": "hv"} if one.steps else {}),
            "marker": {
                "color": colour,
                "size": one.size,
                "symbol": f"{symbol}-open" if one.hollow else symbol,
                "line": {"color": colour, "width": 1.4 if one.hollow else 0},
            }
            | ({"maxdisplayed": _MARKS_OF_A_LINE} if line else {}),
        }
        if one.axis > 1:
            trace |= {"xaxis": f"x{one.axis}", "yaxis": f"y{one.axis}"}
        for which in ("x",) if line else ("x", "y"):
            if (errors := _errors(one.points, which)) is not None:
                trace[f"error_{which}"] = errors | {"color": colour}
        traces.append(trace)
    base: dict[str, object] = {
        "xaxis": {"title": {"text": text_for_plotly(x)}},
        "yaxis": {"title": {"text": text_for_plotly(y)}},
    }
    return Variant("", traces, base | layout)


def bars(series: Sequence[Series], y: str, label: str = "", **layout: object) -> Variant:
    """Bars grouped by the points' names, with intervals."""
    traces = []
    for one in series:
        colour, _ = style_of(one.colour)
        trace: dict[str, object] = {
            "type": "bar",
            "name": text_for_plotly(one.name),
            "x": [text_for_plotly(p.x) for p in one.points],
            "y": [p.y for p in one.points],
            "hovertext": [lines_for_plotly(p.lines) for p in one.points],
            "hoverinfo": "text",
            "textposition": "none",
            "marker": {"color": colour, "opacity": 0.82, "pattern": {"shape": _pattern_of(one.colour)}},
        }
        if (errors := _errors(one.points, "y")) is not None:
            trace["error_y"] = errors | {"color": "#6b7480"}
        traces.append(trace)
    base: dict[str, object] = {
        "barmode": "group",
        "bargap": 0.28,
        "bargroupgap": 0.08,
        "showlegend": True,
        "xaxis": {"type": "category"},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
    }
    return Variant(label, traces, base | layout)


def checked(variant: Variant) -> dict[str, object]:
    """The figure as JSON-ready data, after Plotly's own schema accepted it.

    Raises:
        ValueError: Plotly knows no such attribute or value.
    """
    import plotly.graph_objects as go

    figure = go.Figure(data=[_begun(trace) for trace in variant.traces], layout=dict(variant.layout))
    layout = {k: v for k, v in figure.to_plotly_json()["layout"].items() if k != "template"}
    return {"label": variant.label, "data": list(variant.traces), "layout": layout}


def _begun(value: Any) -> Any:  # noqa: ANN401  # what JSON holds
    """The same with the first few entries of each list: all are of one kind, and Plotly takes seconds for thousands."""
    if isinstance(value, Mapping):
        return {k: _begun(v) for k, v in value.items()}
    return value[:_CHECKED] if isinstance(value, list) else value


def empty(title: str | None, reason: str) -> Html:
    """In place of a figure without anything to draw: why."""
    return join(tag("h3", title) if title else None, tag("p", reason, class_="empty"))


def render(figure: Figure, *, heading: bool = True) -> Html:
    """The figure's place in the page; `page.js` draws into it. No `heading` where the part's own says it."""
    choice = None
    if len(figure.variants) > 1:
        options = (tag("option", v.label, value=str(i)) for i, v in enumerate(figure.variants))
        select = tag("select", *options, id=f"{figure.identifier}-variant")
        choice = tag("div", tag("label", figure.chooser, select), class_="controls")
    return tag(
        "figure",
        tag("h3", figure.title) if heading else None,
        choice,
        tag("div", class_=f"plot {figure.shape}".strip(), id=figure.identifier, role="img", aria_label=figure.title),
        tag("figcaption", figure.caption),
        tag("details", tag("summary", "The numbers"), table(figure.numbers)),
    )
