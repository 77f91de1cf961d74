"""The frame of every page: one HTML file that needs nothing else and asks for nothing."""

from collections.abc import Sequence
from importlib.resources import files

from harness.report._html import Html, csp_hash, join, tag

__all__ = ["document", "navigation", "part"]


def _asset(name: str) -> str:
    return files("harness.report").joinpath(name).read_text(encoding="utf-8")


def part(identifier: str, title: str, lead: str | None, *children: object) -> Html:
    """A section with its heading."""
    return tag(
        "section",
        tag("h2", title),
        tag("p", lead, class_="lead") if lead else None,
        *children,
        class_="part",
        id=identifier,
    )


def navigation(parts: Sequence[tuple[str, str]]) -> Html:
    """Links to the parts: identifier and title of each."""
    return tag("nav", *(tag("a", title, href=f"#{name}") for name, title in parts), aria_label="Parts of the report")


def document(
    title: str,
    top: Sequence[Html],
    parts: Sequence[Html],
    data: Html,
    foot: str,
    *,
    script: str = "",
    drawings: bool = True,
) -> Html:
    """The whole page.

    Args:
        title: of the browser's window.
        top: what stands in the masthead.
        parts: the sections.
        data: what `page.js` draws from: the script `figure-data`, and others.
        foot: the last line.
        script: another script of ours, which runs last.
        drawings: whether there is a figure; without one, the library that draws is left out.
    """
    style = _asset("style.css")
    # The licence travels with the library it is for. In the script, not an HTML comment: it belongs to that code.
    licence = f"/*\n{_asset('plotly-cartesian.LICENSE.txt').strip()}\n*/\n"
    before = [licence + _asset("plotly-cartesian.min.js")] if drawings else []
    after = [*([_asset("page.js")] if drawings else []), *([script] if script else [])]
    allowed = " ".join(csp_hash(s) for s in (*before, *after)) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'none'; form-action 'none'; base-uri 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(style)),
    )
    said = "Without scripts there are no drawings; every figure's numbers are in its table."
    warning = tag("noscript", tag("p", said, class_="empty")) if drawings else None
    scripts = join(*map(_script, before), data, *map(_script, after))
    masthead = tag("header", tag("div", *top), class_="masthead")
    return tag(
        "html",
        head,
        tag("body", masthead, tag("main", warning, *parts), tag("footer", tag("p", foot)), scripts),
        lang="en",
    )


def _script(text: str) -> Html:
    return Html(f"<script>{text}</script>")
