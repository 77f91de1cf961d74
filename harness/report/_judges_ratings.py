"""What judges rate on their own: by aspect and judge, two-turn conversations by turn and by category."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.report._compare import aspects, bounds_of
from harness.report._direction import direction
from harness.report._html import Html, Table, join, number, table, tag
from harness.report._judges_quality import quality_note
from harness.report._plot import empty
from harness.report._queries import Facts
from harness.report._words import span
from harness.stats import Interval, cluster_interval

if TYPE_CHECKING:
    import polars as pl

__all__ = ["judged_ratings"]

_TURNS = "multi_turn"


def judged_ratings(facts: Facts) -> Html:
    """A table of every aspect, recipe and judge, and of conversations one by turn and one by category."""
    import polars as pl

    if facts.votes.is_empty():
        return empty(None, facts.why_none("judge", "been judged"))
    own = {c.label: facts.target_of(c) for c in facts.contenders}
    votes = facts.votes.filter(pl.col("target") == pl.col("label").replace_strict(own, default=facts.target))
    order = [*aspects(facts), *sorted({str(a) for a in votes["aspect"].unique()} - set(aspects(facts)))]
    rows: list[list[object]] = []
    for aspect in order:
        mine = votes.filter(pl.col("aspect") == aspect)
        rows += [[_called(aspect), *row] for row in _by_judge(facts, mine, aspect)]
    headers = ["aspect", "recipe", "judge", "mean, 95 %", "prompts", "votes", "unparsed"]
    note = (
        "Mean rating with its 95 % interval over other prompts; all votes about a prompt, by several judges, seeds and "
        "turns, go together. A vote that is no verdict is in no mean. Helpfulness and conversations from 1 to 10; "
        "harmlessness is the share harmless, over-refusal the share refused without need: less is better."
    )
    turns = votes.filter(pl.col("aspect") == _TURNS)
    return join(
        tag("p", note, class_="fine"),
        table(Table(headers, rows)),
        _split(facts, turns, "turn", "By turn"),
        _split(facts, turns, "category", "By category"),
        quality_note(facts),
    )


def _called(aspect: str) -> str:
    return f"{aspect} (less is better)" if direction(aspect) == "lower" else aspect


def _mean(rows: "pl.DataFrame", aspect: str) -> tuple[Html, int] | None:
    """The mean of the votes that are verdicts, and how many prompts they are of; None where none is."""
    import polars as pl

    read = rows.filter(pl.col("score").is_not_null())
    if read.is_empty():
        return None
    scores, prompts = {}, {}
    for place, (document, score) in enumerate(read.select("document", "score").iter_rows()):
        scores[f"{document}/{place}"], prompts[f"{document}/{place}"] = float(score), str(document)
    found = cluster_interval(scores, prompts)
    return _value(found, bounds_of(aspect)), len(set(prompts.values()))


def _value(found: Interval, bounds: tuple[float, float]) -> Html:
    low, high = (min(max(end, bounds[0]), bounds[1]) if math.isfinite(end) else end for end in (found.low, found.high))
    return tag("span", number(found.value), " ", tag("span", span(low, high), class_="interval"), class_="num")


def _by_judge(facts: Facts, votes: "pl.DataFrame", aspect: str) -> list[list[object]]:
    import polars as pl

    rows: list[list[object]] = []
    for who in facts.contenders:
        mine = votes.filter(pl.col("label") == who.label)
        parts = [(str(judge), part) for (judge,), part in sorted(mine.group_by("judge"), key=lambda one: str(one[0]))]
        for judge, part in [*parts, ("all together", mine)] if len(parts) > 1 else parts:
            value, prompts = _mean(part, aspect) or (None, 0)
            rows.append([who.label, judge, value, prompts, part.height, part["score"].null_count()])
    return rows


def _split(facts: Facts, votes: "pl.DataFrame", column: str, title: str) -> Html | None:
    """Conversations by turn or by category, a column each, all judges together."""
    import polars as pl

    values: Sequence[object] = votes[column].drop_nulls().unique().sort().to_list()
    if len(values) < 2:
        return None
    rows: list[list[object]] = []
    for who in facts.contenders:
        mine = votes.filter(pl.col("label") == who.label)
        if mine.height:
            found = [_mean(mine.filter(pl.col(column) == value), _TURNS) for value in values]
            rows.append([who.label, *(one and one[0] for one in found)])
    headers = [f"turn {value}" if column == "turn" else str(value) for value in values]
    return join(tag("h4", f"Conversations: {title.lower()}"), table(Table(["recipe", *headers], rows)))
