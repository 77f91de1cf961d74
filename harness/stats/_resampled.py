"""Estimates that are bootstrapped by prompt: all that was said about a prompt is drawn together.

Votes about one prompt (of several judges, about several models, in two orders) go the same way more often than votes
about different prompts, so that drawing them one by one would make every interval too narrow (Field & Welsh 2007,
"Bootstrapping clustered data", J. R. Statist. Soc. B 69).
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from harness.errors import UserError
from harness.stats._types import Array, Interval, check_confidence, students_t

__all__ = ["check_resamples", "expit", "logit", "prompt_counts", "resampled_interval"]


def check_resamples(confidence: float, resamples: int) -> None:
    """Raises:
    UserError: a confidence outside (0, 1), fewer than 100 resamples.
    """
    check_confidence(confidence)
    if resamples < 100:
        raise UserError(f"expected at least 100 bootstrap resamples, got {resamples}")


def prompt_counts(prompts: int, resamples: int, seed: int) -> Array:
    """How often each prompt is drawn, shape (resamples, prompts)."""
    random = np.random.default_rng(seed)
    return random.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.float64)


def resampled_interval(
    estimate: Callable[[Array], Array],
    prompts: int,
    confidence: float,
    resamples: int,
    seed: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """A statistic with its percentile interval by prompt, stretched by t / z for the narrowness of a bootstrap.

    The stretch is by sqrt(n / (n - 1)) and t / z (Hesterberg 2015, "What teachers should know about the bootstrap", The
    American Statistician 69). Resamples in which the statistic has no value (all ratings alike) are left out. With
    fewer than two prompts, or where resampling never moves it, bounds and standard error are NaN: unknown.

    Args:
        estimate: counts of the prompts, shape (resamples, prompts) → the statistic, shape (resamples,).
        prompts: how many there are; `n` of the interval.
        confidence: of the interval.
        resamples: bootstrap replicates.
        seed: of the resampling.
        bounds: the least and the most that the statistic can be.
    """
    check_resamples(confidence, resamples)
    value = float(estimate(np.ones((1, prompts)))[0])
    nothing = Interval(math.nan, value, math.nan, prompts, math.nan, confidence)
    if prompts < 2 or math.isnan(value):
        return nothing
    draws = estimate(prompt_counts(prompts, resamples, seed))
    draws = draws[np.isfinite(draws)]
    # Rounding is no spread.
    if draws.size < 2 or float(np.ptp(draws)) <= 1e-12 * max(1.0, abs(value)):
        return nothing
    stretch = math.sqrt(prompts / (prompts - 1))
    reach = stretch * students_t(confidence, prompts - 1) / NormalDist().inv_cdf(0.5 + confidence / 2)
    low, high = (float(q) for q in np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2]))
    low, high = value - reach * max(0.0, value - low), value + reach * max(0.0, high - value)
    stderr = stretch * float(draws.std(ddof=1))
    return Interval(max(low, bounds[0]), value, min(high, bounds[1]), prompts, stderr, confidence)


def expit(logits: Array) -> Array:
    """The probability that goes with a log-odds, without overflow."""
    shares: Array = 0.5 * (1 + np.tanh(0.5 * logits))
    return shares


def logit(shares: Array) -> Array:
    """The log-odds of a probability inside (0, 1)."""
    logits: Array = np.log(shares) - np.log1p(-shares)
    return logits
