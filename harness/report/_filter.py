"""The filter by recipes, for the whole page."""

from collections.abc import Sequence

from harness.report._html import Html, tag

__all__ = ["recipe_filter"]

_HINT = (
    "Tables and figures show the chosen recipes alone; what compares two stays where both are chosen, or where one "
    "alone is and it is one of them. The sentences of the page, and drawings that are not of single recipes, stay."
)


def recipe_filter(labels: Sequence[str]) -> Html | None:
    """The choice of recipes; `recipes.js` does what it says, and without scripts it is not shown.

    A table takes part by its headers: in a column `recipe` stands a label, in `first − second` two; or every header
    after the first is a label. A trace takes part by its name, or without one by its group in the legend.

    Args:
        labels: of the contenders, as the tables and figures name them; None is returned for fewer than two.
    """
    if len(labels) < 2:
        return None
    ticks = (
        tag("label", tag("input", type="checkbox", value=label, autocomplete="off"), tag("span", label), class_="pick")
        for label in labels
    )
    search = tag("input", type="search", id="recipe-search", autocomplete="off")
    return tag(
        "div",
        tag(
            "details",
            tag("summary", "Choose recipes"),
            tag(
                "div",
                tag(
                    "div",
                    tag("label", "Find a recipe", search),
                    tag("button", "Show all", id="recipe-all", type="button"),
                    class_="controls",
                ),
                tag("div", *ticks, class_="picks", role="group", aria_label="Recipes to show"),
                tag("p", _HINT, class_="fine"),
                class_="filter-body",
            ),
        ),
        tag("span", id="recipe-count", class_="count", role="status"),
        class_="filter",
        id="recipe-filter",
        hidden=True,
    )
