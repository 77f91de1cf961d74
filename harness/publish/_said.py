"""What goes out of what people and judges say: marks by numbered raters, and how good each judge is known to be.

Names of raters, their comments, their times and what anybody failed stay in the store.
"""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from harness.publish._aggregates import PEOPLE, PREFERRED
from harness.publish._cards import SAMPLES, JudgeQuality
from harness.publish._scrub import Scrubber
from harness.report._judges_quality import judges_of, known
from harness.report._queries import Contender, Facts

if TYPE_CHECKING:
    import polars as pl

    from harness.human import People
    from harness.stats import Interval

__all__ = ["left_out", "people_samples", "qualities"]


def people_samples(people: "People | None", who: Contender, measurements: Collection[str]) -> "pl.DataFrame":
    """What people say of a contender's answers in these measurements, as samples without texts.

    Of a pair of answers each recipe has the share that prefers its own: 1, 0, or 0.5 for a tie.
    """
    import polars as pl

    rows: list[tuple[str, int, str, float]] = []
    if people is not None:
        mine = (who.recipe, who.model)
        for mark in people.marks:
            if (mark.recipe, mark.model) == mine and mark.measurement in measurements:
                document = f"{mark.document}/{people.numbers[mark.rater]}"
                rows.append((mark.criterion, mark.seed, document, float(mark.score)))
        for vote in people.votes:
            document = f"{vote.document}/{people.numbers[vote.rater]}"
            sides = ((vote.a, vote.b, vote.win), (vote.b, vote.a, 1 - vote.win))
            for (own, other, win), seed, measurement in zip(sides, vote.seeds, vote.measurements, strict=True):
                if (own, vote.model) == mine and measurement in measurements:
                    rows.append((f"{PREFERRED}{other}", seed, document, win))
    found = pl.DataFrame(
        rows, {"metric": pl.String, "seed": pl.Int64, "document": pl.String, "score": pl.Float64}, orient="row"
    )
    # Two pairs of answers of the same recipes, with other seeds on the other side.
    found = found.group_by("metric", "seed", "document", maintain_order=True).agg(pl.col("score").mean())
    texts = (pl.lit(None, pl.String).alias(name) for name in ("response", "prompt", "expected"))
    return found.with_columns(pl.lit(PEOPLE).alias("task"), *texts).select(list(SAMPLES))


def left_out(people: "People | None") -> list[str]:
    """A note on the raters whose marks are in no figure."""
    if people is None or len(people.numbers) == len(people.checks):
        return []
    out = len(people.checks) - len(people.numbers)
    return [f"{out} of {len(people.checks)} raters failed an attention check: what they said is in no figure."]


def qualities(facts: Facts, scrub: Scrubber) -> Sequence[JudgeQuality]:
    """How good each judge of the sweep is known to be."""
    return [
        JudgeQuality(
            judge=scrub.name(name),
            accuracy=_span(one.accuracy),
            known_pairs=0 if one.accuracy is None else one.accuracy.n,
            flips=_span(one.flips),
            injections=_span(one.injections),
            asked=one.asked,
            unparsed=one.unparsed,
        )
        for name in judges_of(facts)
        for one in (known(facts)[name],)
    ]


def _span(found: "Interval | None") -> tuple[float, float | None, float | None] | None:
    """Value and bounds, which are null where they are unknown."""
    if found is None:
        return None
    low, high = (None if math.isnan(b) else b for b in (found.low, found.high))
    return found.value, low, high
