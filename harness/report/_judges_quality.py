"""How good each judge is known to be: a line that stands beside every figure it made."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.report._html import Html, join, tag
from harness.report._queries import Facts
from harness.stats import Interval, crossed_interval, wilson

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Known", "judges_of", "known", "percent", "quality_lines", "quality_note"]

_UNPARSED = "unparsed"


@dataclass(frozen=True)
class Known:
    """What a judge's answers to questions with a known verdict say of it; None: it was not asked.

    `accuracy` is the share of pairs that it ordered rightly, ties half, both orders together; `flips` the share whose
    verdict changed with the order; `injections` the share of attacks that succeeded, `attacks` the same by their kind.
    `unparsed` of the `asked` questions got no verdict: those count in no share.
    """

    judge: str
    accuracy: Interval | None
    flips: Interval | None
    injections: Interval | None
    attacks: Mapping[str, tuple[int, int]]
    asked: int
    unparsed: int

    def line(self) -> str:
        """`judge base: 54 % of known pairs [40, 67], flips 38 %`."""
        if self.accuracy is None:
            return f"judge {self.judge}: how good it is was not measured"
        parts = [f"{percent(self.accuracy)} of known pairs {_bounds(self.accuracy)}".strip()]
        if self.flips is not None:
            parts.append(f"flips {percent(self.flips)}")
        if self.injections is not None:
            parts.append(f"gives way to {percent(self.injections)} of attacks")
        return f"judge {self.judge}: {', '.join(parts)}"

    def doubt(self) -> str | None:
        """That it is no better than chance, in words; None where it is better."""
        found = self.accuracy
        if found is None:
            return f"How good the judge {self.judge} is was not measured: its figures may mean nothing."
        if math.isnan(found.low) or found.low <= 0.5 <= found.high:
            return (
                f"The judge {self.judge} is no better than chance, as far as these {found.n} known pairs tell: what it "
                "says is no evidence of which answer is better."
            )
        if found.high < 0.5:
            return f"The judge {self.judge} is worse than chance on known pairs: it prefers the worse answer."
        return None


def percent(found: Interval | float) -> str:
    """`54 %`."""
    return f"{100 * (found.value if isinstance(found, Interval) else found):.0f} %"


def _bounds(found: Interval) -> str:
    return "" if math.isnan(found.low) else f"[{100 * max(found.low, 0):.0f}, {100 * min(found.high, 1):.0f}]"


def judges_of(facts: Facts) -> list[str]:
    """Every judge that has voted in the sweep."""
    frames = [facts.votes, facts.preferences]
    return sorted({str(name) for frame in frames if not frame.is_empty() for name in frame["judge"].unique()})


def known(facts: Facts) -> Mapping[str, Known]:
    """Judge → how good it is known to be."""
    return facts.once(("judges_known",), lambda: {judge: _known(facts, judge) for judge in judges_of(facts)})


def _known(facts: Facts, judge: str) -> Known:
    import polars as pl

    if facts.checks.is_empty():
        return Known(judge, None, None, None, {}, 0, 0)
    mine = facts.checks.filter(pl.col("judge") == judge)
    # A judge that is each model itself has a check for each: of a question it gives their mean.
    pairs = mine.filter((pl.col("check") == "known_order") & pl.col("score").is_not_null())
    attacked = mine.filter((pl.col("check") == "injection") & pl.col("score").is_not_null())
    means = dict(pairs.group_by("document").agg(pl.col("score").mean()).iter_rows())
    both = pairs.group_by("judge_key", "document").agg(pl.len().alias("orders"), pl.col("score").n_unique())
    both = both.filter(pl.col("orders") == 2)
    return Known(
        judge,
        crossed_interval(means) if means else None,
        wilson(both.filter(pl.col("score") > 1).height, both.height) if both.height else None,
        _share(attacked) if attacked.height else None,
        {
            str(kind): (int(part["score"].sum()), part.height)
            for (kind,), part in sorted(attacked.group_by("attack"), key=lambda one: str(one[0]))
        },
        mine.height,
        mine.filter(pl.col("verdict") == _UNPARSED).height,
    )


def _share(rows: "pl.DataFrame") -> Interval:
    return wilson(int(rows["score"].sum()), rows.height)


def quality_lines(facts: Facts, judges: Sequence[str] | None = None) -> list[str]:
    """The line of each of these judges, or of all, and what is to be doubted of it."""
    lines = []
    for name in judges_of(facts) if judges is None else judges:
        one = known(facts)[name]
        doubt = one.doubt() if one.accuracy is not None else None
        lines.append(f"{one.line()}." + (f" {doubt}" if doubt else ""))
    return lines


def quality_note(facts: Facts, judges: Sequence[str] | None = None) -> Html | None:
    """The same as a paragraph beside a table; None where nobody has judged."""
    lines = quality_lines(facts, judges)
    if not lines:
        return None
    parts = [tag("span", line, class_="badge") for line in lines]
    return tag("p", join(*(join(part, " ") for part in parts)), class_="fine judges")
