"""Markup that escapes by construction: whatever is not already `Html` is text."""

import base64
import hashlib
import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "Html",
    "Table",
    "csp_hash",
    "join",
    "json_script",
    "lines_for_plotly",
    "number",
    "table",
    "tag",
    "text_for_plotly",
]

_VOID = {"meta", "br", "hr", "input"}
_LONG = 15
"""Rows that a table may have before it gets a field to search it, and a box of its own height."""
_WHO = {"recipe": "one", "first − second": "pair"}
"""Headers of columns whose cells name a recipe, or two: the page's filter by recipes goes by them."""


class Html(str):
    """Markup that is safe as it stands; made by `tag` and `join`, never from model output."""

    __slots__ = ()


def _escape(value: object) -> str:
    # Control characters, legal in a stored response, are not legal in a page.
    text = "".join(c if c >= " " or c in "\n\t" else "�" for c in str(value).replace("\r\n", "\n"))
    return html.escape(text, quote=True)


def join(*children: object) -> Html:
    """Children in a row; anything but `Html` is escaped, None is left out."""
    return Html("".join(c if isinstance(c, Html) else _escape(c) for c in children if c is not None))


def tag(name: str, *children: object, **attributes: str | bool | None) -> Html:
    """`<name attributes>children</name>`; a trailing underscore of an attribute is dropped, others become hyphens."""
    pairs = []
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            pairs.append(f" {attribute}")
        elif value is not None and value is not False:
            pairs.append(f' {attribute}="{_escape(value)}"')
    opening = f"<{name}{''.join(pairs)}>"
    return Html(opening) if name in _VOID else Html(f"{opening}{join(*children)}</{name}>")


def number(value: float | None, digits: int = 3) -> str:
    """A figure as a reader wants it: a typographic minus, fixed digits where they mean something, – for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "unknown"
    size = abs(value)
    if size >= 10_000:
        text = f"{value:,.0f}"
    elif size >= 100:
        text = f"{value:.1f}"
    elif size >= 10:
        text = f"{value:.{max(digits - 1, 1)}f}"
    elif size == 0 or size >= 10.0**-digits:
        text = f"{value:.{digits}f}"
    else:
        text = f"{value:.1g}" if size >= 1e-4 else f"{value:.1e}"
    return text.replace("-", "−")


@dataclass(frozen=True)
class Table:
    """Headers and rows of cells: text, figures (right-aligned) or `Html`."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str | None = None


def _cell(value: object) -> Html:
    if isinstance(value, bool):
        return tag("td", "yes" if value else "no")
    if isinstance(value, int):
        return tag("td", f"{value:,}", class_="num")
    if isinstance(value, float):
        return tag("td", number(value), class_="num")
    if value is None:
        return tag("td", "–", class_="none")
    return tag("td", value)


def table(content: Table) -> Html:
    """A real `<table>`, in a box that scrolls sideways on a narrow screen.

    `tables.js` sorts it by its columns, unless the first has no header: then its rows are figures of different kinds.
    A header `recipe` or `first − second` says whom a row is about, to the filter of the page.
    """
    head = tag("thead", tag("tr", *(tag("th", h, scope="col", data_who=_WHO.get(h)) for h in content.headers)))
    body = tag("tbody", *(tag("tr", *(_cell(c) for c in row)) for row in content.rows))
    caption = tag("caption", content.caption) if content.caption else None
    whole = tag("table", caption, head, body)
    return tag("div", whole, class_="scroll", tabindex="0", data_long=len(content.rows) > _LONG)


def json_script(identifier: str, value: object) -> Html:
    """Data in the page that no browser can take for markup: `<`, `>`, `&` and all non-ASCII are written as escapes."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Html(f'<script type="application/json" id="{_escape(identifier)}">{text}</script>')


def csp_hash(script: str) -> str:
    """The Content-Security-Policy source of one inline script: nothing else in the page may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def text_for_plotly(value: object) -> str:
    """A name as Plotly shows it literally: its labels know a small HTML of their own."""
    return html.escape(str(value), quote=False)


def lines_for_plotly(lines: Iterable[str]) -> str:
    """Hover text of several literal lines."""
    return "<br>".join(text_for_plotly(line) for line in lines)
