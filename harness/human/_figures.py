"""What people found, from the store: means by recipe and criterion, preferences, agreement, and the raters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.human._means import MARKS, SHARE, cells_of, mean_of
from harness.human._ratings import Mark, People, Vote, read_people
from harness.stats import Interval, RatedMean, RaterCheck, Rating, Unknown, check_raters, krippendorff_alpha

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["PREFERENCE", "HumanFigures", "Preferred", "Rated", "RaterShown", "ratings_of"]

PREFERENCE = "preference"
"""In place of a criterion: which of two answers is preferred."""

_STRENGTH = (-3.0, 3.0)


@dataclass(frozen=True)
class Rated:
    """A recipe by one criterion: the mean on the scale from 1 to 7; `interval.n` counts ratings."""

    recipe: str
    model: str
    criterion: str
    interval: Interval
    prompts: int
    raters: int


@dataclass(frozen=True)
class Preferred:
    """How often `a` was preferred to `b`, a tie counting half; `strength` from -3 to 3 is how much."""

    a: str
    b: str
    model: str
    win: Interval
    strength: Interval
    ties: int
    prompts: int
    raters: int


@dataclass(frozen=True)
class RaterShown:
    """A rater: attention checks, and what they do otherwise than the others (None where their ratings are left out)."""

    rater: str
    checks: int
    failed: int
    counted: bool
    figures: RaterCheck | None


@dataclass(frozen=True)
class HumanFigures:
    """All that people found of a sweep.

    `agreement` is Krippendorff's alpha (ordinal) by criterion, `preference` for which of two is better.
    """

    rated: tuple[Rated, ...]
    preferred: tuple[Preferred, ...]
    agreement: Mapping[str, Interval | Unknown]
    raters: tuple[RaterShown, ...]

    @property
    def left_out(self) -> int:
        """Raters in no figure, having failed a check."""
        return sum(not rater.counted for rater in self.raters)


def ratings_of(store: "Store", sweep: str, *, failed: bool = False) -> HumanFigures | None:
    """What people found of a sweep; None where nobody has rated it.

    Args:
        store: ingested already.
        sweep: the sweep's id.
        failed: count raters who failed an attention check too.
    """
    people = read_people(store, sweep, failed=failed)
    if people is None:
        return None
    return HumanFigures(
        tuple(_rated(people.marks)), tuple(_preferred(people.votes)), _agreement(people), tuple(_raters(people))
    )


def _rated(marks: Sequence[Mark]) -> list[Rated]:
    groups: dict[tuple[str, str, str], list[Mark]] = {}
    for mark in marks:
        groups.setdefault((mark.criterion, mark.recipe, mark.model), []).append(mark)
    found = []
    for (criterion, recipe, model), mine in sorted(groups.items()):
        one = mean_of(cells_of((m.document, m.rater, m.score) for m in mine), MARKS)
        found.append(Rated(recipe, model, criterion, one.mean, one.prompts, one.raters))
    return found


def _preferred(votes: Sequence[Vote]) -> list[Preferred]:
    groups: dict[tuple[str, str, str], list[Vote]] = {}
    for vote in votes:
        groups.setdefault((vote.model, vote.a, vote.b), []).append(vote)
    found = []
    for (model, a, b), mine in sorted(groups.items()):
        win: RatedMean = mean_of(cells_of((v.document, v.rater, v.win) for v in mine), SHARE)
        strength = mean_of(cells_of((v.document, v.rater, v.strength) for v in mine), _STRENGTH)
        ties = sum(not v.strength for v in mine)
        found.append(Preferred(a, b, model, win.mean, strength.mean, ties, win.prompts, win.raters))
    return found


def _agreement(people: People) -> dict[str, Interval | Unknown]:
    given: dict[str, list[Rating]] = {}
    for mark in people.marks:
        one = Rating(mark.document, mark.answer, mark.rater, float(mark.score))
        given.setdefault(mark.criterion, []).append(one)
    found = {criterion: krippendorff_alpha(ratings, "ordinal") for criterion, ratings in sorted(given.items())}
    votes = [Rating(v.document, " ".join(v.answers), v.rater, float(v.strength)) for v in people.votes]
    return found | ({PREFERENCE: krippendorff_alpha(votes, "ordinal")} if votes else {})


def _raters(people: People) -> list[RaterShown]:
    ratings = [
        Rating(m.document, f"{m.answer} {m.criterion}", m.rater, float(m.score), place=m.shown) for m in people.marks
    ]
    known = {check.rater: check for check in check_raters(ratings)} if ratings else {}
    return [
        RaterShown(rater, done, bad, rater in people.numbers, known.get(rater))
        for rater, (done, bad) in sorted(people.checks.items())
    ]
