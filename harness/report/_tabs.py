"""Panels of which one is seen at a time: in print and without scripts all of them, one below the other."""

import re
from collections.abc import Sequence

from harness.report._html import Html, join, tag

__all__ = ["tabs"]

_SLUG = 40


def tabs(identifier: str, panels: Sequence[tuple[str, Html | None]], *, level: int = 3) -> Html:
    """Panels as tabs, after the pattern of the ARIA authoring practices; `tabs.js` makes them so.

    The page itself holds every panel under its title as a heading, which is what print shows, and browsers without
    scripts. The identifier of a panel is `<identifier>--<its title>` in lower case and hyphens; an address that ends
    in it, or in that of anything within it, opens the panel.

    Args:
        identifier: of the whole in the page.
        panels: title and content of each, in their order; a panel without content is left out, and where none has
            any, nothing is made.
        level: of the headings, 2 to 6.
    """
    named: dict[str, Html] = {}
    for title, content in panels:
        if content is None:
            continue
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower())[:_SLUG].strip("-") or "panel"
        place = f"{identifier}--{slug}"
        # Two titles may differ only in what an identifier cannot hold.
        name = next(n for n in (place, *(f"{place}-{i}" for i in range(2, len(panels) + 2))) if n not in named)
        heading = tag(f"h{level}", title, class_="panel-title")
        named[name] = tag("section", heading, content, class_="panel", id=name, data_title=title)
    return tag("div", *named.values(), class_="tabs", id=identifier) if named else join()
