"""The controls of a browser of texts: filters, a search, one entry at a time. `browsing.js` is its other half."""

from collections.abc import Sequence

from harness.report._html import Html, tag

__all__ = ["browser"]


def browser(prefix: str, filters: Sequence[tuple[str, str]], entry: str) -> Html:
    """The empty browser; a script fills it.

    Args:
        prefix: what the identifiers of its parts begin with.
        filters: label and name of each choice.
        entry: what one comes by, one at a time.
    """

    def select(label: str, name: str) -> Html:
        return tag("label", label, tag("select", id=f"{prefix}-{name}", autocomplete="off"))

    return tag(
        "div",
        tag("noscript", tag("p", f"Without scripts no {entry.lower()} is shown.", class_="empty")),
        tag(
            "div",
            *(select(label, name) for label, name in filters),
            tag("label", "Find in the texts", tag("input", type="search", id=f"{prefix}-find", autocomplete="off")),
            class_="controls",
        ),
        tag(
            "div",
            select(entry, "chosen"),
            tag("button", "Previous", id=f"{prefix}-previous", type="button", aria_keyshortcuts="k"),
            tag("button", "Next", id=f"{prefix}-next", type="button", aria_keyshortcuts="j"),
            tag("span", "keys j, k", class_="count keys"),
            class_="controls",
        ),
        tag("p", id=f"{prefix}-count", class_="count", role="status"),
        tag("div", id=f"{prefix}-view", tabindex="0", role="group", aria_label=f"The {entry.lower()}"),
        id=f"{prefix}-browser",
    )
