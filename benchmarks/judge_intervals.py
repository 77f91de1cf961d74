"""How often nominal 95 % intervals of judges' and people's figures hold the truth: a simulation with a known truth.

    python -m benchmarks.judge_intervals [--draws 1000]

Judges are correlated: every prompt suits each model more or less, which all judges of it see. A fifth of the votes are
ties. True strengths are those of a sample of 20,000 prompts. Ends with 1 where a coverage is outside 93-97 % by more
than the error of the simulation.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np

from harness.stats import (
    Interval,
    PairVote,
    Rating,
    Unknown,
    bradley_terry,
    cohens_kappa,
    krippendorff_alpha,
    length_controlled,
    rated_mean,
    wilson,
    win_rate,
)

__all__ = ["length_votes", "main", "ratings", "round_robin"]

_STRENGTHS = (-0.8, 0.0, 0.8)
_RESAMPLES = 300


def round_robin(
    random: np.random.Generator, prompts: int, strengths: Sequence[float], judges: int = 2, ties: float = 0.2
) -> list[PairVote]:
    """Votes on every pair of models m0, m1, … of these log-odds; without ties also without what prompts vary."""
    found = []
    for prompt in range(prompts):
        suits = np.array(strengths) + (random.normal(size=len(strengths)) if ties else 0.0)
        for i in range(len(strengths)):
            for j in range(i + 1, len(strengths)):
                for judge in range(judges):
                    win = float(suits[i] - suits[j] + random.logistic() > 0)
                    tied = random.random() < ties
                    found.append(PairVote(f"{prompt:05}", f"m{i}", f"m{j}", 0.5 if tied else win, judge=str(judge)))
    return found


def length_votes(
    random: np.random.Generator,
    prompts: int,
    models: int = 1,
    taste: float = 1.5,
    better: float = 0.0,
    hardness: float = 0.0,
) -> list[PairVote]:
    """Votes of a judge with a taste for length against `base`, whose answers are 60 ± 100 of 300 shorter."""
    found = []
    for prompt in range(prompts):
        hard = hardness * random.normal()
        for model in range(models):
            extra = max(-300.0, random.normal(60, 100))
            win = float(better + taste * np.tanh(extra / 100) + hard + random.logistic() > 0)
            found.append(PairVote(f"{prompt:05}", f"m{model}", "base", win, length_a=300 + extra, length_b=300.0))
    return found


def ratings(random: np.random.Generator, prompts: int, raters: int, leniency: float = 0.4) -> list[Rating]:
    """Ratings about 4 by raters of different leniency, each of whom rates four prompts in five."""
    lenient = leniency * random.normal(size=raters)
    found = []
    for prompt in range(prompts):
        worth = random.normal()
        for rater in range(raters):
            if random.random() < 0.8:
                score = 4 + worth + lenient[rater] + random.normal()
                found.append(Rating(f"{prompt:05}", "m", f"r{rater}", float(score)))
    return found


def _coverage(truth: float, found: Callable[[int], Interval | Unknown], draws: int) -> float:
    held = 0
    for draw in range(draws):
        interval = found(draw)
        held += not isinstance(interval, Unknown) and interval.low <= truth <= interval.high
    return held / draws


def _elo(votes: Sequence[PairVote], seed: int) -> Interval:
    return bradley_terry(votes, resamples=_RESAMPLES, seed=seed)["m2"].elo


def _cut(rated: Sequence[Rating], to: Callable[[float], float]) -> list[Rating]:
    return [Rating(r.prompt, r.model, r.rater, to(r.score)) for r in rated]


def _whole(score: float) -> float:
    return float(np.clip(round(score), 1, 7))


def main() -> int:
    """Print the table; 1 where a coverage is outside 93-97 % by more than the error of the simulation."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=1000, help="simulated experiments of each row")
    draws = parser.parse_args().draws
    random = np.random.default_rng(0)
    many = round_robin(random, 20_000, _STRENGTHS)
    elo = bradley_terry(many, resamples=100)["m2"].elo.value
    rate = win_rate(many, "m2", "m1").value
    crowd = ratings(random, 8_000, 3, 0.0)
    whole, halves = _cut(crowd, _whole), _cut(crowd, lambda s: float(s > 4))
    alpha = krippendorff_alpha(whole, "ordinal", resamples=100)
    kappa = cohens_kappa(halves, "r0", "r1", resamples=100)
    assert isinstance(alpha, Interval)
    assert isinstance(kappa, Interval)
    bad = 0
    for n in (40, 100, 400):
        rows: dict[str, tuple[float, Callable[[int], Interval | Unknown]]] = {
            "win rate": (rate, lambda _, n=n: win_rate(round_robin(random, n, _STRENGTHS), "m2", "m1")),
            "Bradley-Terry": (
                elo,
                lambda d, n=n: (
                    bradley_terry(round_robin(random, n, _STRENGTHS), resamples=_RESAMPLES, seed=d)["m2"].elo
                ),
            ),
            "length-controlled": (
                0.5,
                lambda d, n=n: (
                    length_controlled(length_votes(random, n), "base", resamples=_RESAMPLES, seed=d)["m0"].controlled
                ),
            ),
            "alpha, ordinal": (
                alpha.value,
                lambda d, n=n: krippendorff_alpha(
                    _cut(ratings(random, n, 3, 0.0), _whole), "ordinal", resamples=_RESAMPLES, seed=d
                ),
            ),
            "kappa": (
                kappa.value,
                lambda d, n=n: cohens_kappa(
                    _cut(ratings(random, n, 2, 0.0), lambda s: float(s > 4)), "r0", "r1", resamples=_RESAMPLES, seed=d
                ),
            ),
            "mean rating, 3 raters": (4.0, lambda _, n=n: rated_mean(ratings(random, n, 3)).mean),
            "mean rating, 8 raters": (4.0, lambda _, n=n: rated_mean(ratings(random, n, 8)).mean),
        }
        for name, (truth, found) in rows.items():
            held = _coverage(truth, found, draws)
            error = wilson(round(held * draws), draws)
            outside = error.high < 0.93 or error.low > 0.97
            bad += outside
            print(f"{name:24}{n:5} prompts  {held:6.1%}  {'OUTSIDE' if outside else ''}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
