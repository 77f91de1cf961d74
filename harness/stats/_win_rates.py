"""Win rates: how often judges prefer one model's answers to another's, ties counting half.

A prompt counts once, with the mean of its votes over judges and trainings: several votes about one prompt are not
independent, and the interval is of the means by prompt. These lie in [0, 1], and so does the interval: Wilson's, with
as many votes as independent ones would have the variance seen (`harness.stats._parts.proportion_bounds` has the
sources). Where all prompts say the same it says what prompts not seen may do (`harness.stats._crossed`). Over several
trainings the seeds' part is joined as in `crossed_interval`. The judges are these judges: it holds for no others.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from harness.errors import UserError
from harness.stats._parts import alike, proportion_bounds, seed_part, unseen, variance_of_mean
from harness.stats._types import Array, Interval, check_confidence, students_t
from harness.stats._votes import PairVote, check_votes, met

__all__ = ["bounded_mean", "win_rate", "win_rates"]


def win_rate(votes: Sequence[PairVote], model: str, baseline: str, confidence: float = 0.95) -> Interval:
    """How often `model` is preferred to `baseline`, with an interval by prompt (see the module); `n` counts prompts.

    With one prompt the bounds are NaN, and so they are where there are several trainings of which fewer than two
    prompts are shared: unknown.

    Args:
        votes: of any models; those about these two count.

    Raises:
        UserError: no vote about the two, a win outside [0, 1].
    """
    check_votes(votes)
    check_confidence(confidence)
    cells: dict[str, dict[str, float]] = defaultdict(dict)
    for (opponent, prompt, replicate), own in met(votes, model).items():
        if opponent == baseline:
            cells[prompt][replicate] = math.fsum(v.win for v in own) / len(own)
    if not cells:
        raise UserError(f"no vote compares {model!r} with {baseline!r}")
    replicates = sorted({r for row in cells.values() for r in row})
    whole = [[row[r] for r in replicates] for row in cells.values() if len(row) == len(replicates)]
    by_prompt = np.array([np.mean(list(row.values())) for row in cells.values()])
    return bounded_mean(by_prompt, confidence, np.array(whole).reshape(len(whole), len(replicates)))


def win_rates(votes: Sequence[PairVote], baseline: str, confidence: float = 0.95) -> dict[str, Interval]:
    """The win rate of every model that met the baseline, by name (`win_rate`).

    Raises:
        UserError: no vote about the baseline, a win outside [0, 1].
    """
    check_votes(votes)
    others = sorted({v.seen_from(baseline).b for v in votes if baseline in (v.a, v.b)})
    if not others:
        raise UserError(f"no vote is about the baseline {baseline!r}")
    return {model: win_rate(votes, model, baseline, confidence) for model in others}


def bounded_mean(by_prompt: Array, confidence: float, trainings: Array | None = None) -> Interval:
    """The mean of values in [0, 1], one for each independent prompt, with an interval inside [0, 1].

    Args:
        by_prompt: shape (prompts,).
        confidence: of the interval.
        trainings: prompts × trainings, of the prompts that all trainings have; the spread between trainings counts too.
    """
    value, n = float(by_prompt.mean()), by_prompt.size
    seeds = 1 if trainings is None else trainings.shape[1]
    if n < 2 or (seeds > 1 and trainings is not None and len(trainings) < 2):
        return Interval(math.nan, value, math.nan, n, math.nan, confidence)
    variance, seed_freedom = (0.0, 1.0) if trainings is None or seeds < 2 else seed_part(trainings, None)
    t, seed_t = students_t(confidence, n - 1), students_t(confidence, seed_freedom)
    if alike(by_prompt):
        below, above = unseen(value, (0.0, 1.0), n, t)
        half, spread = seed_t * math.sqrt(variance), max(unseen(value, (0.0, 1.0), n, 1.0))
        low, high = value - math.hypot(below, half), value + math.hypot(above, half)
        return Interval(max(low, 0.0), value, min(high, 1.0), n, math.hypot(spread, math.sqrt(variance)), confidence)
    own = variance_of_mean(by_prompt)[0]
    low, high = proportion_bounds(value, (own, t), (variance, seed_t), seeds)
    return Interval(max(low, 0.0), value, min(high, 1.0), n, math.sqrt(own + variance), confidence)
