"""The browser of made data: of each prompt what was said, criticised, revised and chosen, as data for `made.js`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report._browsing import browser
from harness.report._html import Html, join, json_script, tag
from harness.report._samples import Texts

if TYPE_CHECKING:
    from harness.report._made import Making
    from harness.store import Store

__all__ = ["made_browser"]

_BYTES = 800_000
"""Of texts in the page at most, beside those of the samples and verdicts."""
_SAID = 24
"""Things said of one prompt in the page at most, what was kept before the rest."""
_FILTERS = (("Recipe", "recipe"), ("Step", "step"), ("Prompts with", "kind"))

# The prompts by a hash, so that none is preferred for what became of it.
_SHOWN = """
    WITH wanted AS (
        SELECT stage, "row" FROM raw.generations WHERE stage IN (SELECT unnest($stages::VARCHAR[]))
        GROUP BY stage, "row"
        QUALIFY row_number() OVER (PARTITION BY stage ORDER BY hash("row"), "row") <= $share
    ), said AS (
        SELECT g.*, count(*) OVER (PARTITION BY stage, "row") AS whole,
            row_number() OVER (PARTITION BY stage, "row" ORDER BY coalesce(kept, false) DESC, turn, batch_row) AS place
        FROM raw.generations g JOIN wanted USING (stage, "row")
    )
    SELECT stage, "row", kind, prompt, "text", principle, "by", score, kept, whole FROM said WHERE place <= $said
    ORDER BY stage, "row", turn, batch_row
"""
_COUNT = """
    SELECT count(*) FROM (
        SELECT DISTINCT stage, "row" FROM raw.generations WHERE stage IN (SELECT unnest($stages::VARCHAR[]))
    )
"""


def made_browser(store: "Store", making: "Sequence[Making]", limit: int) -> Html:
    """At most `limit` prompts of one seed of each step that made a dataset, shared evenly between the steps."""
    every = list(dict.fromkeys(m.stage for m in making))
    first: dict[tuple[str, str], int] = {}
    for one in making:
        first.setdefault((one.label, one.name), one.seed)
    mine = [m for m in making if m.seed == first[m.label, m.name]]
    stages = list(dict.fromkeys(m.stage for m in mine))[:limit]
    share = max(1, limit // max(1, len(stages)))
    rows = store.query(_SHOWN, {"stages": stages, "share": share, "said": _SAID}).to_dicts()
    texts, kinds = Texts(), list(dict.fromkeys(str(row["kind"]) for row in rows))
    prompts: dict[tuple[str, int], dict[str, object]] = {}
    said: dict[tuple[str, int], list[list[object]]] = {}
    for row in rows:
        at = (str(row["stage"]), int(row["row"]))
        said.setdefault(at, []).append(
            [
                kinds.index(row["kind"]),
                *(texts.place(row[name]) for name in ("prompt", "text", "principle")),
                row["by"],
                row["score"],
                row["kept"],
            ]
        )
        left = int(row["whole"]) - len(said[at])
        prompts[at] = {"step": stages.index(at[0]), "row": at[1], "more": left, "said": said[at]}
    whole, length = texts.cut(_BYTES)
    steps = [
        {
            # Runs share a stage: it stands once, with all whose it is.
            "recipes": list(dict.fromkeys(m.label for m in mine if m.stage == stage)),
            "name": next(m.name for m in mine if m.stage == stage),
            "seed": next(m.seed for m in mine if m.stage == stage),
        }
        for stage in stages
    ]
    # In the order of the steps, as they stand in the table.
    shown = [prompts[at] for at in sorted(prompts, key=lambda a: (stages.index(a[0]), a[1]))]
    total = store.query(_COUNT, {"stages": every}).item()
    cut = "" if length is None else f" Texts are cut to {length:,} characters."
    note = (
        f"{len(shown):,} of {total:,} prompts, of one seed and of every step about as many; the other "
        f"{total - len(shown):,} are in the store's view generations.{cut}"
        if total > len(shown)
        else f"All {total:,} prompts.{cut}"
    )
    data = {"steps": steps, "kinds": kinds, "texts": whole, "rows": shown}
    return join(tag("p", note, class_="fine"), browser("made", _FILTERS, "Prompt"), json_script("made-data", data))
