"""What people found, from the store: means by recipe and criterion, preferences, agreement, and the raters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.human._criteria import SCALE
from harness.human._estimates import Mark, RaterFigures, alpha, raters_of, two_way_interval
from harness.stats import Interval

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["HumanFigures", "Preferred", "Rated", "RaterShown", "ratings_of"]

_RATINGS = """
    SELECT kind, rater, document, criterion, recipe, model, seed, other_recipe, other_seed, score, preference, shown,
        form, checks, checks_failed
    FROM ratings WHERE sweep = ? ORDER BY ALL
"""


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
    figures: RaterFigures | None


@dataclass(frozen=True)
class HumanFigures:
    """All that people found of a sweep.

    `agreement` is Krippendorff's alpha (ordinal) by criterion, `preference` for which of two is better; None where no
    two raters marked the same. `left_out` counts the raters whose ratings are in no figure, having failed a check.
    """

    rated: tuple[Rated, ...]
    preferred: tuple[Preferred, ...]
    agreement: dict[str, float | None]
    raters: tuple[RaterShown, ...]

    @property
    def left_out(self) -> int:
        """Raters in no figure."""
        return sum(not rater.counted for rater in self.raters)


def ratings_of(store: "Store", sweep: str, *, failed: bool = False) -> HumanFigures | None:
    """What people found of a sweep; None where nobody has rated it.

    Args:
        store: ingested already.
        sweep: the sweep's id.
        failed: count raters who failed an attention check too.
    """
    rows = store.query(_RATINGS, [sweep]).to_dicts()
    if not rows:
        return None
    checks: dict[str, tuple[int, int]] = {}
    for form in {(row["rater"], row["form"], row["checks"], row["checks_failed"]) for row in rows}:
        done, bad = checks.get(form[0], (0, 0))
        checks[form[0]] = (done + form[2], bad + form[3])
    counted = {rater for rater, (_, bad) in checks.items() if failed or not bad}
    ratings = [row for row in rows if row["kind"] == "rating" and row["rater"] in counted]
    votes = [_oriented(row) for row in rows if row["kind"] == "preference" and row["rater"] in counted]
    rated = tuple(_rated(ratings))
    agreement: dict[str, float | None] = {
        criterion: alpha([_mark(row) for row in ratings if row["criterion"] == criterion], list(SCALE))
        for criterion in dict.fromkeys(row["criterion"] for row in ratings)
    }
    if votes:
        agreement["preference"] = alpha([_vote(row) for row in votes], range(-3, 4))
    usual = {(r.recipe, r.model, r.criterion): r.interval.value for r in rated}
    marks = [_mark(row) for row in ratings]
    expected = {
        m.unit: usual[row["recipe"], row["model"], row["criterion"]] for m, row in zip(marks, ratings, strict=True)
    }
    figures = {found.rater: found for found in raters_of(marks, expected)}
    raters = tuple(
        RaterShown(rater, done, bad, rater in counted, figures.get(rater))
        for rater, (done, bad) in sorted(checks.items())
    )
    return HumanFigures(rated, tuple(_preferred(votes)), agreement, raters)


def _mark(row: dict[str, Any]) -> Mark:
    unit = (row["document"], row["recipe"], row["model"], row["seed"], row["criterion"])
    return Mark(unit, row["document"], row["rater"], float(row["score"]), row["shown"])


def _vote(row: dict[str, Any]) -> Mark:
    unit = (row["document"], row["recipe"], row["seed"], row["other_recipe"], row["other_seed"], row["model"])
    return Mark(unit, row["document"], row["rater"], float(row["preference"]), row["shown"])


def _oriented(row: dict[str, Any]) -> dict[str, Any]:
    """The same with the recipes in alphabetical order, as every pair is shown."""
    if row["recipe"] <= row["other_recipe"]:
        return row
    turned = {"recipe": row["other_recipe"], "other_recipe": row["recipe"], "preference": -row["preference"]}
    return row | turned | {"seed": row["other_seed"], "other_seed": row["seed"]}


def _rated(rows: Sequence[dict[str, Any]]) -> list[Rated]:
    groups: dict[tuple[str, str, str], list[Mark]] = {}
    for row in rows:
        groups.setdefault((row["criterion"], row["recipe"], row["model"]), []).append(_mark(row))
    return [
        Rated(recipe, model, criterion, two_way_interval(marks, (SCALE[0], SCALE[-1])), *_counts(marks))
        for (criterion, recipe, model), marks in sorted(groups.items())
    ]


def _preferred(rows: Sequence[dict[str, Any]]) -> list[Preferred]:
    groups: dict[tuple[str, str], list[Mark]] = {}
    for row in rows:
        groups.setdefault((row["recipe"], row["other_recipe"]), []).append(_vote(row))
    found = []
    for (a, b), marks in sorted(groups.items()):
        wins = [Mark(m.unit, m.prompt, m.rater, 0.5 if not m.value else float(m.value > 0)) for m in marks]
        ties = sum(not m.value for m in marks)
        strength = two_way_interval(marks, (-3.0, 3.0))
        found.append(Preferred(a, b, two_way_interval(wins, (0.0, 1.0)), strength, ties, *_counts(marks)))
    return found


def _counts(marks: Sequence[Mark]) -> tuple[int, int]:
    return len({m.prompt for m in marks}), len({m.rater for m in marks})
