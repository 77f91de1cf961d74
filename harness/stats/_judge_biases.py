"""What a judge goes by other than quality: the order shown, length, whose answer it is. Intervals are by prompt."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.stats._clusters import cluster_difference, cluster_interval
from harness.stats._crossed import crossed_interval
from harness.stats._means import interval
from harness.stats._slopes import Slope, slope_within
from harness.stats._types import Difference, Interval
from harness.stats._votes import PairVote, Rating, Unknown, check_ratings, check_votes

__all__ = [
    "LengthBias",
    "flip_rate",
    "length_bias",
    "position_bias",
    "rating_length_slope",
    "self_preference",
    "self_rating",
    "verbosity",
]


@dataclass(frozen=True)
class LengthBias:
    """Whether longer answers win.

    `slope` is how much the win rate grows for an answer twice as long, within each pair of models: that one model is
    both better and longer is not in it. `longer_won` is the share of decided votes in which the longer answer won.
    `excess` compares that with the share in which the longer answer is known to be better, on the same votes: above
    zero, the judge goes by length more than it should.
    """

    slope: Slope | Unknown
    longer_won: Interval | Unknown
    excess: Difference | Unknown


def flip_rate(votes: Sequence[PairVote], confidence: float = 0.95) -> Interval | Unknown:
    """The share of pairs whose verdict changed with the order, a change from or to a tie counting.

    Raises:
        UserError: no votes, a win outside [0, 1].
    """
    check_votes(votes)
    both = [v for v in votes if v.a_first is not None and v.b_first is not None]
    if not both:
        return Unknown("no pair has a verdict in both orders")
    return _share([float(v.a_first != v.b_first) for v in both], both, confidence)


def position_bias(votes: Sequence[PairVote], confidence: float = 0.95) -> Interval | Unknown:
    """Of the pairs whose verdict changed with the order, the share that leaned to the answer shown first.

    One half is a judge that is unsure and not biased; 1 takes always the first, 0 the second (Zheng et al. 2023,
    "Judging LLM-as-a-judge", arXiv 2306.05685). A verdict in one order and a tie in the other
    leans as the verdict does.

    Raises:
        UserError: no votes, a win outside [0, 1].
    """
    check_votes(votes)
    flips = [v for v in votes if None not in (v.a_first, v.b_first) and v.a_first != v.b_first]
    if not flips:
        return Unknown("no verdict changed with the order")
    return _share([float(v.a_first == "a" or v.b_first == "b") for v in flips], flips, confidence)


def length_bias(votes: Sequence[PairVote], confidence: float = 0.95) -> LengthBias:
    """Whether longer answers win (`LengthBias` has the figures); equally long answers tell nothing.

    Lengths enter as log2((a + 1) / (b + 1)): twice as long is 1 whatever the length, and an empty answer has a place.

    Raises:
        UserError: no votes, a win outside [0, 1], a length that is negative or not finite.
    """
    check_votes(votes)
    measured = [(v, v.length_a, v.length_b) for v in votes if v.length_a is not None and v.length_b is not None]
    if not measured:
        unknown = Unknown("no vote has the lengths of both answers")
        return LengthBias(unknown, unknown, unknown)
    sorted_pairs = [v.seen_from(min(v.a, v.b)) for v, _, _ in measured]
    slope = slope_within(
        [_doublings(v) for v in sorted_pairs],
        [v.win for v in sorted_pairs],
        [f"{v.a}\0{v.b}" for v in sorted_pairs],
        [v.prompt for v in sorted_pairs],
        confidence,
    )
    decided = [v for v, a, b in measured if a != b and v.win != 0.5]
    if not decided:
        unknown = Unknown("no decided vote is about answers of different length")
        return LengthBias(slope, unknown, unknown)
    won = [float((v.win > 0.5) == (_doublings(v) > 0)) for v in decided]
    known = [(v, w) for v, w in zip(decided, won, strict=True) if v.gold not in (None, 0.5)]
    excess: Difference | Unknown = Unknown("no decided vote has a known order")
    if known:
        right = [((v.gold or 0.0) > 0.5) == (_doublings(v) > 0) for v, _ in known]
        excess = cluster_difference(
            {str(i): w for i, (_, w) in enumerate(known)},
            {str(i): float(r) for i, r in enumerate(right)},
            {str(i): v.prompt for i, (v, _) in enumerate(known)},
            confidence,
        )
    return LengthBias(slope, _share(won, decided, confidence), excess)


def rating_length_slope(ratings: Sequence[Rating], confidence: float = 0.95) -> Slope | Unknown:
    """How much a rating grows for an answer twice as long to the same prompt, each rater about its own mean there.

    Raises:
        UserError: no ratings, a score that is not finite, an answer rated twice by one rater.
    """
    check_ratings(ratings)
    own = [(r, r.length) for r in ratings if r.length is not None]
    if not own:
        return Unknown("no rating has the length of its answer")
    return slope_within(
        [math.log2(length + 1) for _, length in own],
        [r.score for r, _ in own],
        [f"{r.prompt}\0{r.rater}" for r, _ in own],
        [r.prompt for r, _ in own],
        confidence,
    )


def verbosity(votes: Sequence[PairVote], confidence: float = 0.95) -> dict[str, Interval]:
    """The mean length of each model's answers, a prompt counting once; models without lengths are left out.

    Raises:
        UserError: no votes, a length that is negative or not finite.
    """
    check_votes(votes)
    lengths: dict[str, dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for v in votes:
        for model, length in ((v.a, v.length_a), (v.b, v.length_b)):
            if length is not None:
                lengths[model][v.prompt][v.replicate] = length
    return {
        model: interval([math.fsum(own.values()) / len(own) for _, own in sorted(by_prompt.items())], confidence)
        for model, by_prompt in sorted(lengths.items())
    }


def self_preference(votes: Sequence[PairVote], judge: str, model: str, confidence: float = 0.95) -> Interval | Unknown:
    """How much more often a judge prefers the answers of its own model than other judges do, on the same pairs.

    By prompt and pair, the judge's win for `model` less the mean of the others': above zero is more than the quality
    that others see (Panickssery et al. 2024, arXiv 2404.13076). What it likes in general cancels within a pair.

    Args:
        votes: of several judges.
        judge: whose preference is asked for.
        model: the model that this judge is.

    Raises:
        UserError: no votes, a win outside [0, 1].
    """
    check_votes(votes)
    cells: dict[tuple[str, str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for vote in votes:
        if model in (vote.a, vote.b):
            own = vote.seen_from(model)
            cells[own.prompt, own.b, own.replicate][own.judge != judge].append(own.win)
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for (prompt, _, _), (mine, others) in sorted(cells.items()):
        if mine and others:
            by_prompt[prompt].append(float(np.mean(mine) - np.mean(others)))
    return _mean_of_means(by_prompt, f"no pair with {model} was judged by {judge} and by another judge", confidence)


def self_rating(ratings: Sequence[Rating], judge: str, model: str, confidence: float = 0.95) -> Interval | Unknown:
    """How much higher a judge rates its own model than other judges do, beyond how it rates other models.

    A difference of differences by prompt: (own model by this judge - by others) - (other models by this judge - by
    others), so that neither a lenient judge nor a good model shows in it.

    Raises:
        UserError: no ratings, a score that is not finite, an answer rated twice by one rater.
    """
    check_ratings(ratings)
    cells: dict[tuple[str, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for r in ratings:
        cells[r.prompt, r.model][r.rater != judge].append(r.score)
    sides: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for (prompt, whose), (mine, others) in sorted(cells.items()):
        if mine and others:
            sides[prompt][whose != model].append(float(np.mean(mine) - np.mean(others)))
    found = {p: [float(np.mean(own) - np.mean(rest))] for p, (own, rest) in sides.items() if own and rest}
    reason = f"on no prompt did {judge} and another judge rate both {model} and another model"
    return _mean_of_means(found, reason, confidence)


def _mean_of_means(by_prompt: dict[str, list[float]], reason: str, confidence: float) -> Interval | Unknown:
    if not by_prompt:
        return Unknown(reason)
    # Where all prompts say the same, this has an interval all the same, or says that it is unknown.
    return crossed_interval({p: float(np.mean(own)) for p, own in by_prompt.items()}, confidence)


def _doublings(vote: PairVote) -> float:
    """How many times a's answer would have to be halved to be as long as b's."""
    return math.log2(((vote.length_a or 0.0) + 1) / ((vote.length_b or 0.0) + 1))


def _share(values: Sequence[float], votes: Sequence[PairVote], confidence: float) -> Interval:
    """The mean of zeros and ones, one a vote, by prompt."""
    names = [str(i) for i in range(len(values))]
    groups = {name: vote.prompt for name, vote in zip(names, votes, strict=True)}
    return cluster_interval(dict(zip(names, values, strict=True)), groups, confidence)
