"""What people say of two models of one sweep, as rows of `harness compare`: by each criterion, and whom they prefer.

Beside it stands whom the judges of the sweep prefer. Preferences are a difference too: the share of prompts on which
the first is preferred minus that on which the second is, a tie half for each.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.human import MARKS, People, cells_of, preference_of, read_people, set_against
from harness.report._entries import Entry
from harness.report._judges_wins import votes_of
from harness.stats import Difference, Interval, win_rate
from harness.stats._parts import least_level

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["Said", "said_of"]

_PREFERRED = "preferred"
_LEAST_P = 1e-6


@dataclass(frozen=True)
class Said:
    """What was found of one model against another in one figure, see `harness.report._versus.Row`."""

    what: str
    values: tuple[float, float]
    difference: Difference
    changed: float
    raters: int = 0


def said_of(store: "Store", a: Entry, b: Entry) -> Iterator[Said]:
    """What judges prefer, and what people say, of two models that one sweep has made of one base model."""
    if a.facts.sweep != b.facts.sweep or a.who.model != b.who.model or a.who == b.who:
        return
    if (judged := _judged(a, b)) is not None:
        yield judged
    people = a.facts.once(("people",), lambda: read_people(store, a.facts.sweep))
    if people is not None:
        yield from _marked(people, a, b)
        if (voted := _voted(people, a, b)) is not None:
            yield voted


def _seeds(entry: Entry) -> set[int]:
    """Those that the entry is of: one where it is an artifact."""
    import polars as pl

    return set(entry.facts.documents.filter(pl.col("label") == entry.who.label)["seed"].unique())


def _judged(a: Entry, b: Entry) -> Said | None:
    own, others = _seeds(a), _seeds(b)
    votes, pairs = [], set()
    for vote in votes_of(a.facts):
        if {vote.a, vote.b} != {a.who.label, b.who.label}:
            continue
        seeds = [int(seed) for seed in vote.replicate.split("/")]
        first, second = seeds if vote.a == a.who.label else seeds[::-1]
        if first in own and second in others:
            votes.append(vote)
            pairs.add((first, second))
    if not votes:
        return None

    def rate_at(level: float) -> Interval:
        return win_rate(votes, a.who.label, b.who.label, 1 - level)

    def bounds(level: float) -> tuple[float, float]:
        rate = rate_at(level)
        return 2 * rate.low - 1, 2 * rate.high - 1

    rate = rate_at(0.05)
    p = math.nan if math.isnan(rate.low) else least_level(bounds, _LEAST_P)
    difference = Difference(
        2 * rate.value - 1, *bounds(0.05), p, rate.n, _counts(pairs), 2 * rate.stderr, rate.confidence
    )
    decided = sum(v.win != 0.5 for v in votes) / len(votes)
    return Said(f"{_PREFERRED}, judges", (rate.value, 1 - rate.value), difference, decided)


def _counts(pairs: set[tuple[int, int]]) -> tuple[int, int]:
    return len({first for first, _ in pairs}), len({second for _, second in pairs})


def _marked(people: People, a: Entry, b: Entry) -> Iterator[Said]:
    sides = [
        [m for m in people.marks if (m.recipe, m.model) == (e.who.recipe, e.who.model) and m.seed in seeds]
        for e, seeds in ((a, _seeds(a)), (b, _seeds(b)))
    ]
    for criterion in sorted({m.criterion for m in people.marks}):
        mine, theirs = ([m for m in side if m.criterion == criterion] for side in sides)
        seeds = len({m.seed for m in mine}), len({m.seed for m in theirs})
        cells = [cells_of((m.document, m.rater, m.score) for m in side) for side in (mine, theirs)]
        if (found := set_against(cells[0], cells[1], MARKS, seeds)) is not None:
            yield Said(f"{criterion}, people", found.values, found.difference, found.changed, found.raters)


def _voted(people: People, a: Entry, b: Entry) -> Said | None:
    wins, pairs = [], set()
    own, others = _seeds(a), _seeds(b)
    for vote in people.votes:
        if vote.model != a.who.model or {vote.a, vote.b} != {a.who.recipe, b.who.recipe}:
            continue
        same = vote.a == a.who.recipe
        first, second = vote.seeds if same else vote.seeds[::-1]
        if first in own and second in others:
            wins.append((vote.document, vote.rater, vote.win if same else 1 - vote.win))
            pairs.add((first, second))
    found = preference_of(cells_of(wins), _counts(pairs))
    if found is None:
        return None
    return Said(f"{_PREFERRED}, people", found.values, found.difference, found.changed, found.raters)
