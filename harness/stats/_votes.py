"""What judges and people say, as the statistics take it: preferences between two answers, and ratings of one."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.errors import UserError

__all__ = ["Choice", "PairVote", "Rating", "Unknown", "check_ratings", "check_votes", "met", "numbered"]

Choice = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class PairVote:
    """What one judge thinks of two models' answers to one prompt, both orders together.

    `win` is 1 where a's answer is better, 0 where b's is, 0.5 for a tie, or a probability. `replicate` names the pair
    of trainings (seeds) whose answers are compared. `a_first` and `b_first` are the verdicts with a's and with b's
    answer shown first. Lengths are of the answers, in one unit for all. `gold` is the `win` that is known to be right.
    """

    prompt: str
    a: str
    b: str
    win: float
    judge: str = ""
    replicate: str = ""
    a_first: Choice | None = None
    b_first: Choice | None = None
    length_a: float | None = None
    length_b: float | None = None
    gold: float | None = None

    def seen_from(self, model: str) -> "PairVote":
        """The same vote with this model, one of the two, as a."""
        if self.a == model:
            return self
        exchanged: dict[Choice | None, Choice | None] = {"a": "b", "b": "a", "tie": "tie", None: None}
        return PairVote(
            prompt=self.prompt,
            a=self.b,
            b=self.a,
            win=1 - self.win,
            judge=self.judge,
            replicate=self.replicate,
            a_first=exchanged[self.b_first],
            b_first=exchanged[self.a_first],
            length_a=self.length_b,
            length_b=self.length_a,
            gold=None if self.gold is None else 1 - self.gold,
        )


@dataclass(frozen=True)
class Rating:
    """A rating of one model's answer to one prompt by one rater, a judge or a person.

    `place` is when in the order of this rater's ratings it was given; `length` is the answer's.
    """

    prompt: str
    model: str
    rater: str
    score: float
    place: int | None = None
    length: float | None = None


@dataclass(frozen=True)
class Unknown:
    """No figure, because the data cannot tell: why, as a clause that can follow a colon."""

    reason: str


def check_votes(votes: Sequence[PairVote]) -> None:
    """Raises:
    UserError: no votes, a model against itself, a win outside [0, 1], a length that is negative or not finite.
    """
    if not votes:
        raise UserError("expected at least one vote; were all verdicts unparsed?")
    for vote in votes:
        if vote.a == vote.b:
            raise UserError(f"prompt {vote.prompt!r}: {vote.a!r} is compared with itself")
        for what, share in (("a win", vote.win), ("a gold win", vote.gold)):
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"prompt {vote.prompt!r}: {what} is 1, 0.5 or 0 or between, got {share}")
        for length in (vote.length_a, vote.length_b):
            if length is not None and not 0 <= length < math.inf:
                raise UserError(f"prompt {vote.prompt!r}: the length of an answer is 0 or more, got {length}")


def check_ratings(ratings: Sequence[Rating]) -> None:
    """Raises:
    UserError: no ratings, a score that is not finite, an answer that a rater has rated twice.
    """
    if not ratings:
        raise UserError("expected at least one rating")
    seen = set()
    for rating in ratings:
        key = (rating.prompt, rating.model, rating.rater)
        if not math.isfinite(rating.score):
            raise UserError(f"rater {rating.rater!r}, prompt {rating.prompt!r}: a rating is finite, got {rating.score}")
        if key in seen:
            raise UserError(
                f"rater {rating.rater!r} has rated the answer of {rating.model!r} to prompt {rating.prompt!r} twice; "
                "keep one of the two"
            )
        seen.add(key)


def numbered(names: Iterable[str]) -> tuple[list[str], NDArray[np.intp]]:
    """The distinct names in order, and the number of each name given."""
    # Sorted: the answer must not depend on the order in which rows were read.
    unique, numbers = np.unique(np.array(list(names), dtype=object), return_inverse=True)
    return [str(name) for name in unique], numbers.astype(np.intp)


def met(votes: Iterable[PairVote], model: str) -> dict[tuple[str, str, str], list[PairVote]]:
    """The votes on this model's answers, seen from it, by (opponent, prompt, replicate), in order: its judges."""
    found: dict[tuple[str, str, str], list[PairVote]] = defaultdict(list)
    for vote in votes:
        if model in (vote.a, vote.b):
            own = vote.seen_from(model)
            found[own.b, own.prompt, own.replicate].append(own)
    return dict(sorted(found.items()))
