"""The part of the page about made data: what each step that made a dataset kept of what was said, and how it scored."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report._document import part
from harness.report._html import Html, Table, table
from harness.report._made_rows import made_browser
from harness.report._queries import Facts

if TYPE_CHECKING:
    import polars as pl

    from harness.store import Store

__all__ = ["Making", "made_data", "makings"]

_LEAD = (
    "Steps that made a dataset, as the final runs used them (of a recipe without a final run yet, its first tuning "
    "run). Scores are those that the step itself went by, each on the scale of whoever gave it."
)
_FIGURES = """
    SELECT stage, kind, count(*) AS n, count(DISTINCT "row") AS prompts, count(kept) AS asked,
        count(*) FILTER (WHERE kept) AS kept, avg(score) AS score, avg(score) FILTER (WHERE kept) AS score_kept,
        string_agg(DISTINCT "by", ', ' ORDER BY "by") FILTER (WHERE "by" <> '') AS who
    FROM raw.generations WHERE stage IN (SELECT unnest($stages::VARCHAR[]))
    GROUP BY stage, kind ORDER BY stage, min(turn), kind
"""


@dataclass(frozen=True)
class Making:
    """A step of a run that made a dataset; `name` tells it from the others of its recipe."""

    label: str
    name: str
    seed: int
    stage: str


def _runs(facts: Facts) -> "pl.DataFrame":
    """The final runs of every contender; of one that has none, its first tuning run."""
    import polars as pl

    runs = facts.trials.sort("label", "phase", "trial", "seed")
    final = runs.filter(pl.col("phase") == "final")
    rest = runs.join(final, on="label", how="anti").unique("label", keep="first", maintain_order=True)
    return pl.concat([final, rest]).select("recipe", "model", "trial", "seed").unique()


def makings(facts: Facts) -> list[Making]:
    """Every step of the runs that are shown, in the order of recipes, seeds and steps; also those that made nothing."""
    import polars as pl

    if facts.lineage.is_empty() or facts.trials.is_empty():
        return []
    used = facts.lineage.join(_runs(facts), on=["recipe", "model", "trial", "seed"], how="semi")
    order = {c.label: place for place, c in enumerate(facts.contenders)}
    rows = used.with_columns(place=pl.col("label").replace_strict(order, default=len(order), return_dtype=pl.Int64))
    return [
        Making(label, f"{position + 1}. {step}", seed, stage)
        for label, position, step, seed, stage in rows.sort("place", "label", "seed", "position")
        .select("label", "position", "step", "seed", "stage")
        .iter_rows()
    ]


def made_data(store: "Store", facts: Facts, limit: int) -> Html | None:
    """The part, with at most `limit` prompts in its browser; None where no step has made a dataset."""
    steps = makings(facts)
    found = store.query(_FIGURES, {"stages": sorted({s.stage for s in steps})}).to_dicts() if steps else []
    if not found:
        return None
    figures: dict[str, list[dict[str, object]]] = {}
    for row in found:
        figures.setdefault(str(row["stage"]), []).append(row)
    making = [s for s in steps if s.stage in figures]
    return part("made", "Made data", _LEAD, _table(making, figures), made_browser(store, making, limit))


def _table(making: list[Making], figures: dict[str, list[dict[str, object]]]) -> Html:
    headers = ["recipe", "step", "seed", "what", "number", "prompts", "kept", "mean score", "of the kept", "scored by"]
    rows = [
        [
            step.label,
            step.name,
            step.seed,
            row["kind"],
            row["n"],
            row["prompts"],
            row["kept"] if row["asked"] else None,
            row["score"],
            row["score_kept"],
            row["who"],
        ]
        for step in making
        for row in figures[step.stage]
    ]
    return table(Table(headers, rows))
