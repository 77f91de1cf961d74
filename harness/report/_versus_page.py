"""The page of `harness compare`: the paired table, drawn and in figures, and what to know before believing it."""

import datetime
from collections.abc import Sequence

from harness.report._document import document, part
from harness.report._forest import Line, forest
from harness.report._html import Html, Table, json_script, number, table, tag
from harness.report._plot import checked, render
from harness.report._versus import Row, Versus

__all__ = ["HEADERS", "cells", "versus_page"]

HEADERS = (
    "first − second",
    "figure",
    "first",
    "second",
    "difference, 95 %",
    "Holm p",
    "verdict",
    "detectable",
    "changed",
    "documents",
    "seeds",
)
"""`detectable` is the smallest true difference that such data would resolve four times in five; `changed` the share of
documents with another score."""

_NOTE = (
    "Paired by document; intervals cover other documents and, where there are several, other seeds. p is Holm's over "
    "all rows. Detectable: the true difference that data like these would resolve with a chance of 80 %; below it, "
    "unresolved means that little was asked, not that nothing is there. Changed: documents whose score differs. What "
    "people say is paired by rater too, and its intervals cover other raters; preferred is the share of prompts on "
    "which the first is preferred minus that on which the second is, ties half."
)


def cells(row: Row) -> list[str]:
    """One row of the paired table as text, under `HEADERS`."""
    d = row.difference
    sign = "+" if d.value > 0 else ""
    return [
        f"{row.a.label} − {row.b.label}",
        row.what,
        *(number(v) for v in row.values),
        f"{sign}{number(d.value)} [{number(d.low)}, {number(d.high)}]",
        number(row.adjusted_p),
        row.verdict,
        number(row.detectable),
        f"{100 * row.changed:.0f} %",
        f"{d.n:,}" + (f", {row.raters} raters" if row.raters else ""),
        f"{d.seeds[0]} / {d.seeds[1]}",
    ]


def versus_page(versus: Versus, now: datetime.datetime) -> str:
    """The whole HTML text."""
    lines: dict[str, list[Line]] = {}
    for row in versus.rows:
        one = Line(f"{row.a.label} − {row.b.label}", row.difference, row.adjusted_p, row.verdict)
        lines.setdefault(row.what, []).append(one)
    figure = forest("forest", "Differences", "Filled: resolved after Holm's correction. " + _NOTE, lines)
    labels = list(dict.fromkeys(e.label for row in versus.rows for e in (row.a, row.b)))
    parts = [
        part("answer", "What the data resolve", None, *_answer(versus.rows)),
        _warnings(versus.warnings),
        part("differences", "The differences", None, render(figure, heading=False)),
        part("table", "The paired table", None, _table(versus.rows), tag("p", _NOTE, class_="fine")),
        part("provenance", "Provenance", None, _provenance(versus.rows)),
    ]
    title = " against ".join(labels) if len(labels) <= 3 else f"{len(labels)} models compared"
    top = [tag("p", "compare", class_="suite"), tag("h1", title)]
    data = json_script("figure-data", {figure.identifier: [checked(v) for v in figure.variants]})
    foot = f"Made {now:%Y-%m-%d %H:%M} UTC. This file loads nothing."
    return "<!doctype html>\n" + document(title, top, [p for p in parts if p is not None], data, foot)


def _answer(rows: Sequence[Row]) -> list[Html]:
    said = [
        f"{row.a.label} is {row.verdict} than {row.b.label} in {row.what}: {cells(row)[4]}."
        for row in rows
        if row.verdict != "unresolved"
    ]
    open_ = len(rows) - len(said)
    last = f"{open_} of {len(rows)} differences are unresolved." if open_ else "Every difference is resolved."
    return [*(tag("p", s, class_="verdict-words") for s in said[:6]), tag("p", last)]


def _warnings(warnings: Sequence[str]) -> Html | None:
    if not warnings:
        return None
    return part("warnings", "Before you believe it", None, tag("ul", *(tag("li", w) for w in warnings)))


def _table(rows: Sequence[Row]) -> Html:
    content: list[list[object]] = []
    for row in rows:
        one: list[object] = list(cells(row))
        style = "verdict" if row.verdict == "unresolved" else "verdict resolved"
        one[HEADERS.index("verdict")] = tag("span", row.verdict, class_=style)
        content.append(one)
    return table(Table(HEADERS, content))


def _provenance(rows: Sequence[Row]) -> Html:
    entries = {e.label: e for row in rows for e in (row.a, row.b)}
    return table(
        Table(
            ["model", "sweep", "recorded", "data", "target", "environment"],
            [
                [label, e.facts.sweep, e.facts.recorded_at, e.facts.data, e.facts.target_of(e.who), e.facts.environment]
                for label, e in entries.items()
            ],
        )
    )
