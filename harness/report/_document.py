"""The frame of every page: one HTML file that needs nothing else and asks for nothing."""

from collections.abc import Sequence
from importlib.resources import files

from harness.report._html import Html, csp_hash, join, tag

__all__ = ["document", "navigation", "own_scripts", "part"]

_SCRIPTS = (
    "base.js",
    "tabs.js",
    "tables.js",
    "recipes.js",
    "page.js",
    "browsing.js",
    "samples.js",
    "judges.js",
    "made.js",
)
"""In the order in which they run: what each is for stands at its top."""


def _asset(name: str) -> str:
    return files("harness.report").joinpath(name).read_text(encoding="utf-8")


def own_scripts() -> list[str]:
    """The texts of the scripts that a page carries, the library that draws first, in the order in which they run."""
    # The licence travels with the library it is for. In the script, not an HTML comment: it belongs to that code.
    licence = f"/*\n{_asset('plotly-cartesian.LICENSE.txt').strip()}\n*/\n"
    return [licence + _asset("plotly-cartesian.min.js"), *map(_asset, _SCRIPTS)]


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
    bar: Sequence[Html] = (),
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
        bar: what stays in sight while one scrolls: the navigation, a filter.
        script: another script of ours, which runs last.
        drawings: whether there is a figure; without one, the library that draws is left out, and the scripts with it.
    """
    style = _asset("style.css")
    own = own_scripts() if drawings else []
    before, after = own[:1], [*own[1:], *([script] if script else [])]
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
    body = tag(
        "body",
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag("header", tag("div", *top), class_="masthead"),
        tag("div", tag("div", *bar), class_="bar") if bar else None,
        tag("main", warning, *parts, id="content", tabindex="-1"),
        tag("footer", tag("p", foot)),
        scripts,
    )
    return tag("html", head, body, lang="en")


def _script(text: str) -> Html:
    return Html(f"<script>{text}</script>")
