"""One scale for several models from votes between pairs of them (Bradley & Terry 1952, Biometrika 39).

The log-odds that i is preferred to j is the difference of their strengths. A tie is half a win each way: then the
likelihood asks that each model's expected wins equal its wins and half its ties, which is what a win rate counts, and
the strengths say how win rates that count ties half would turn out. The model of Davidson (1970, "On extending the
Bradley-Terry model to accommodate ties", JASA 65) has a parameter for ties; it is fitted by the same sums, so in a
round robin it orders the models alike, but its scale is of decided votes alone, and judges that often say "tie" would
make small differences look large.

A model that wins always would be infinitely strong. Each model has therefore drawn once with an opponent of average
strength: one vote for each model, next to as many as there are prompts times opponents, is all that keeps the
maximum of the likelihood finite. In a pair that is half a win for each side, near the bias correction of Firth (1993,
"Bias reduction of maximum likelihood estimates", Biometrika 80).

Every prompt counts once in each pair, with the mean of its votes over judges and trainings. Standard errors come from
a bootstrap by prompt; intervals are Student's t on the scale of log-odds. A record without a single loss (or win) shows
no spread when drawn again: there the standard error is no less than that of the likelihood, for independent prompts.
Other trainings and other judges are not in the intervals.

Ranks: two models are told apart where their difference is beyond the bootstrap's quantile of the largest of all
studentised differences, so that all intervals hold at once (Mogstad, Romano, Shaikh & Wilhelm 2024, "Inference for
ranks", Review of Economic Studies 91).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from harness.errors import UserError
from harness.stats._ranks import RankInterval
from harness.stats._resampled import check_resamples, expit, prompt_counts
from harness.stats._types import Array, Interval, students_t
from harness.stats._votes import PairVote, check_votes, numbered

__all__ = ["Strength", "bradley_terry"]

_ELO = 400 / math.log(10)
_CENTRE = 1000.0
_STEPS = 100


@dataclass(frozen=True)
class Strength:
    """How strong a model is among those compared.

    `elo` is on Elo's scale: 1000 is their average, 400 more means 10 wins to 1 loss. `win_rate` says the same as
    the share of wins to be expected against an opponent of average strength. `rank` is 1 for the strongest.
    """

    elo: Interval
    win_rate: Interval
    rank: RankInterval


def bradley_terry(
    votes: Sequence[PairVote], confidence: float = 0.95, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Strength]:
    """The strength of every model that was voted on, with intervals by prompt (see the module); `n` counts prompts.

    With one prompt all bounds are NaN, and every rank is open.

    Args:
        votes: of any pairs, but such that every model can be reached from every other over pairs that met.
        confidence: of each interval, and of all ranks at once.
        resamples: bootstrap replicates.
        seed: of the resampling; equal input gives equal intervals.

    Raises:
        UserError: no votes, a win outside [0, 1], models that no chain of pairs connects.
    """
    check_votes(votes)
    check_resamples(confidence, resamples)
    models, wins = _wins(votes)
    games = wins + wins.transpose(0, 2, 1)
    _check_connected(models, games.sum(axis=0))
    prompts, count = wins.shape[0], len(models)
    strengths, information = _fit(wins.sum(axis=0)[None])
    value, least = strengths[0], np.linalg.inv(information[0])
    pairs = np.triu_indices(count, 1)
    contrasts = np.eye(count) - 1 / count
    if prompts < 2:
        stderr, apart = np.full(count, math.nan), np.zeros((count, count), dtype=bool)
    else:
        drawn = np.tensordot(prompt_counts(prompts, resamples, seed), wins, axes=1)
        draws, _ = _fit(drawn)
        flat = _flat(wins.sum(axis=0), games.sum(axis=0))
        narrow = math.sqrt(prompts / (prompts - 1))
        stderr = _spread(draws, np.diag(contrasts @ least @ contrasts.T), flat, narrow)
        variance = np.diag(least)[:, None] + np.diag(least)[None] - 2 * least
        moved = draws[:, pairs[0]] - draws[:, pairs[1]]
        spread = _spread(moved, variance[pairs], flat[pairs[0]] | flat[pairs[1]], narrow)
        apart = _told_apart(value[pairs[0]] - value[pairs[1]], moved, spread, prompts, confidence, pairs)
    t = students_t(confidence, max(1, prompts - 1))
    shared = (games > 0).sum(axis=0)
    found = {}
    for i, model in enumerate(models):
        low, high = float(value[i] - t * stderr[i]), float(value[i] + t * stderr[i])
        share, at = expit(np.array([low, value[i], high])), float(stderr[i])
        elo = Interval(
            _CENTRE + _ELO * low,
            _CENTRE + _ELO * float(value[i]),
            _CENTRE + _ELO * high,
            prompts,
            _ELO * at,
            confidence,
        )
        slope = float(share[1] * (1 - share[1]))
        rate = Interval(float(share[0]), float(share[1]), float(share[2]), prompts, slope * at, confidence)
        ahead = int((apart[i] & (value > value[i])).sum())
        behind = int((apart[i] & (value < value[i])).sum())
        # Equal but for rounding is equal.
        rank = 1 + int((value > value[i] + 1e-9).sum())
        compared = int((shared[i] > 1).sum())
        found[model] = Strength(elo, rate, RankInterval(1 + ahead, rank, count - behind, compared, confidence))
    return found


def _wins(votes: Sequence[PairVote]) -> tuple[list[str], Array]:
    """The models, and how often each was preferred to each on each prompt, shape (prompts, models, models)."""
    models, sides = numbered([v.a for v in votes] + [v.b for v in votes])
    prompts, rows = numbered(v.prompt for v in votes)
    a, b = np.split(sides, 2)
    wins, counted = np.zeros((2, len(prompts), len(models), len(models)))
    share = np.array([v.win for v in votes], dtype=np.float64)
    np.add.at(wins, (rows, a, b), share)
    np.add.at(wins, (rows, b, a), 1 - share)
    np.add.at(counted, (rows, a, b), 1.0)
    np.add.at(counted, (rows, b, a), 1.0)
    return models, wins / np.maximum(counted, 1.0)


def _check_connected(models: Sequence[str], games: Array) -> None:
    reached = np.zeros(len(models), dtype=bool)
    reached[0] = True
    for _ in models:
        reached |= (games[reached] > 0).any(axis=0)
    if not reached.all():
        apart = [m for m, there in zip(models, reached, strict=True) if not there]
        raise UserError(
            f"{models[0]!r} and {apart[0]!r} cannot be put on one scale: no chain of compared pairs connects them; "
            "compare every model with one baseline, or all pairs"
        )


def _fit(wins: Array) -> tuple[Array, Array]:
    """The strengths, mean zero, (sets, models), and the information about them, of sets × models × models wins."""
    sets, count, _ = wins.shape
    games = wins + wins.transpose(0, 2, 1)
    strengths = np.zeros((sets, count))
    total, diagonal = wins.sum(axis=2), np.arange(count)
    information = np.zeros((sets, count, count))
    for _ in range(_STEPS):
        expected = expit(strengths[:, :, None] - strengths[:, None])
        drawn = expit(strengths)
        gradient = total - (games * expected).sum(axis=2) + 0.5 - drawn
        information = -games * expected * (1 - expected)
        information[:, diagonal, diagonal] = 0.0
        information[:, diagonal, diagonal] = drawn * (1 - drawn) - information.sum(axis=2)
        step = np.linalg.solve(information, gradient[..., None])[..., 0]
        # Newton's step may overshoot far from the maximum.
        largest = np.abs(step).max(axis=1, keepdims=True)
        strengths += step * np.minimum(1.0, 1.0 / np.maximum(largest, 1e-300))
        if float(largest.max()) < 1e-9:
            break
    return strengths - strengths.mean(axis=1, keepdims=True), information


def _flat(wins: Array, games: Array) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which models have won, or lost, all there was."""
    won, played = wins.sum(axis=1), games.sum(axis=1)
    flat: np.ndarray[tuple[int], np.dtype[np.bool_]] = (won <= 1e-9) | (won >= played - 1e-9)
    return flat


def _spread(draws: Array, variance: Array, flat: np.ndarray[tuple[int], np.dtype[np.bool_]], narrow: float) -> Array:
    """Standard errors by the bootstrap; where a record is flat or never moves, no less than the likelihood's."""
    own = narrow * draws.std(axis=0, ddof=1)
    still = flat | (np.ptp(draws, axis=0) < 1e-9)
    spread: Array = np.where(still, np.maximum(own, np.sqrt(np.maximum(variance, 0.0))), own)
    return spread


def _told_apart(
    differences: Array,
    moved: Array,
    spread: Array,
    prompts: int,
    confidence: float,
    pairs: tuple[np.ndarray[tuple[int], np.dtype[np.intp]], np.ndarray[tuple[int], np.dtype[np.intp]]],
) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Which pairs the data tell apart, all at once, shape (models, models)."""
    count = int(pairs[1].max()) + 1
    largest = np.abs((moved - differences) / spread).max(axis=1)
    stretch = students_t(confidence, prompts - 1) / NormalDist().inv_cdf(0.5 + confidence / 2)
    bound = max(float(np.quantile(largest, confidence)) * stretch, students_t(confidence, prompts - 1))
    apart = np.zeros((count, count), dtype=bool)
    apart[pairs] = np.abs(differences) > bound * spread
    return apart | apart.T
