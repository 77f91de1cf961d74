"""What people decided of a sweep, one by one, and which of them are counted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["Mark", "People", "Vote", "read_people"]

# The latest last.
_ROWS = """
    SELECT kind, rater, document, criterion, recipe, model, seed, measurement, other_recipe, other_seed,
        other_measurement, score, preference, shown, form, submission, checks, checks_failed
    FROM ratings WHERE sweep = ?
    ORDER BY recorded_at, form, submission, item, kind, "position", other_position, criterion
"""


@dataclass(frozen=True)
class Mark:
    """How one rater marks one answer by one criterion; `shown` is the place of its item in their form."""

    rater: str
    document: str
    criterion: str
    recipe: str
    model: str
    seed: int
    measurement: str
    score: int
    shown: int

    @property
    def answer(self) -> str:
        """Whose answer it is: a recipe's on a base model, in one measurement of one of its seeds."""
        return f"{self.recipe}@{self.model}/{self.measurement}"


@dataclass(frozen=True)
class Vote:
    """Which of two recipes' answers one rater prefers: `strength` from 3 (a's is much better) over 0 to -3 (b's is).

    `a` comes before `b` in the alphabet, as every pair is shown.
    """

    rater: str
    document: str
    model: str
    a: str
    b: str
    seeds: tuple[int, int]
    measurements: tuple[str, str]
    strength: int

    @property
    def answers(self) -> tuple[str, str]:
        """Whose answers they are, as in `Mark`."""
        own, others = self.measurements
        return f"{self.a}@{self.model}/{own}", f"{self.b}@{self.model}/{others}"

    @property
    def win(self) -> float:
        """1 where a's answer is preferred, 0 where b's is, a tie counting half."""
        return 0.5 if not self.strength else float(self.strength > 0)


@dataclass(frozen=True)
class People:
    """Marks and votes of the raters who are counted.

    `checks` holds, of every rater, how many attention checks there were and how many they failed; `numbers` stands for
    the names of those counted where names have no place.
    """

    marks: tuple[Mark, ...]
    votes: tuple[Vote, ...]
    checks: Mapping[str, tuple[int, int]]
    numbers: Mapping[str, int]


def read_people(store: "Store", sweep: str, *, failed: bool = False) -> People | None:
    """What people decided of a sweep; None where nobody has rated it.

    An answer that a rater met in several forms counts as they rated it last. The base model's answers are of one
    seed, since it has one set of them under every seed.

    Args:
        store: ingested already.
        sweep: the sweep's id.
        failed: count raters who failed an attention check too.
    """
    rows = store.query(_ROWS, [sweep]).to_dicts()
    if not rows:
        return None
    checks: dict[str, tuple[int, int]] = {}
    submissions: dict[str, str] = {}
    for rater, _, done, bad in sorted({(r["rater"], r["form"], r["checks"], r["checks_failed"]) for r in rows}):
        before = checks.get(rater, (0, 0))
        checks[rater] = (before[0] + done, before[1] + bad)
    for row in rows:
        rater, given = row["rater"], row["submission"]
        submissions[rater] = min(given, submissions.get(rater, given))
    counted = [rater for rater, (_, bad) in checks.items() if failed or not bad]
    # In the order of digests, which says nothing of a name's place in the alphabet.
    numbers = {rater: place for place, rater in enumerate(sorted(counted, key=submissions.__getitem__), start=1)}
    first = _first_seeds(rows)
    marks: dict[tuple[object, ...], Mark] = {}
    votes: dict[tuple[object, ...], Vote] = {}
    for row in rows:
        if row["rater"] not in numbers:
            continue
        if row["kind"] == "rating":
            mark = _mark(row, first)
            marks[mark.rater, mark.document, mark.answer, mark.criterion] = mark
        else:
            vote = _vote(row, first)
            votes[vote.rater, vote.document, *vote.answers] = vote
    return People(tuple(marks.values()), tuple(votes.values()), checks, numbers)


_Seeds = Mapping[tuple[str, str, str], int]


def _sides(row: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Recipe, seed and measurement of the answer, and of the one that it is compared with."""
    names = ("recipe", "seed", "measurement")
    sides = [tuple(row[f"{side}{name}"] for name in names) for side in ("", "other_")]
    return [(recipe, seed, measurement or "") for recipe, seed, measurement in sides if recipe is not None]


def _first_seeds(rows: list[dict[str, Any]]) -> _Seeds:
    """(Recipe, base model, measurement) → the least seed under which its answers were rated."""
    found: dict[tuple[str, str, str], int] = {}
    for row in rows:
        for recipe, seed, measurement in _sides(row):
            key = (recipe, row["model"], measurement)
            found[key] = min(seed, found.get(key, seed))
    return found


def _mark(row: Mapping[str, Any], first: _Seeds) -> Mark:
    ((recipe, _, measurement),) = _sides(row)
    model = row["model"]
    seed = first[recipe, model, measurement]
    given = (row["rater"], row["document"], row["criterion"])
    return Mark(*given, recipe, model, seed, measurement, row["score"], row["shown"])


def _vote(row: Mapping[str, Any], first: _Seeds) -> Vote:
    (a, _, own), (b, _, others) = _sides(row)
    model = row["model"]
    seeds = (first[a, model, own], first[b, model, others])
    vote = Vote(row["rater"], row["document"], model, a, b, seeds, (own, others), row["preference"])
    if a <= b:
        return vote
    return Vote(vote.rater, vote.document, model, b, a, seeds[::-1], (others, own), -vote.strength)
