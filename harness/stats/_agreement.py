"""How far raters agree, judges or people: beyond chance, and in the order they put answers in. Intervals are by prompt.

Krippendorff's alpha is for any number of raters with gaps (Krippendorff 2018, "Content analysis", 4th edition, chapter
12); Cohen's kappa for two that give verdicts of a few kinds (Cohen 1960, Educational and Psychological Measurement 20).
Both are 1 for perfect agreement and 0 for that of chance.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from harness.stats._resampled import check_resamples, resampled_interval
from harness.stats._types import Array, Interval
from harness.stats._votes import Rating, Unknown, check_ratings, numbered

__all__ = ["Level", "PeopleAgreement", "agreement_with_people", "cohens_kappa", "krippendorff_alpha", "pairwise_kappa"]

Level = Literal["nominal", "ordinal", "interval"]

_KINDS = 50
"""So many different values at most are told apart: alpha takes time with their square. More are binned to so many."""


@dataclass(frozen=True)
class PeopleAgreement:
    """How far a judge and people agree on the same answers, people's ratings of an answer averaged.

    `alike` is, of the pairs of answers to one prompt that people rate differently, the share that the judge puts in the
    same order, a tie counting half: one half is chance.
    """

    spearman: Interval | Unknown
    alike: Interval | Unknown


def krippendorff_alpha(
    ratings: Sequence[Rating], level: Level, confidence: float = 0.95, *, resamples: int = 1000, seed: int = 0
) -> Interval | Unknown:
    """Krippendorff's alpha over all raters, with gaps, by the library `krippendorff`; `n` counts prompts.

    Args:
        ratings: an answer rated once tells nothing and is left out.
        level: nominal for kinds of verdicts, ordinal for places on a scale, interval where distances count. More
            than 50 different values (as expectations over tokens are) are rounded to a grid of 50.
        confidence: of the interval.
        resamples: bootstrap replicates.
        seed: of the resampling.

    Raises:
        UserError: no ratings, a score that is not finite, an answer rated twice by one rater.
    """
    import krippendorff

    check_ratings(ratings)
    check_resamples(confidence, resamples)
    often = Counter((r.prompt, r.model) for r in ratings)
    paired = [r for r in ratings if often[r.prompt, r.model] > 1]
    if not paired:
        return Unknown("no answer was rated twice")
    scores = _gridded(np.array([r.score for r in paired], dtype=np.float64))
    domain, kinds = np.unique(scores, return_inverse=True)
    if domain.size < 2:
        return Unknown("all ratings are the same, so agreement cannot be told from habit")
    items, places = numbered(f"{r.prompt}\0{r.model}" for r in paired)
    table = np.zeros((len(items), domain.size), dtype=np.int64)
    np.add.at(table, (places, kinds), 1)
    prompts, members = numbered(item.partition("\0")[0] for item in items)

    def estimate(counts: Array) -> Array:
        # The figure itself is the library's; the resamples around it are made at once.
        if len(counts) == 1:
            alpha = krippendorff.alpha(value_counts=table, value_domain=domain, level_of_measurement=level)
            return np.array([float(alpha)])
        return _alphas(table, members, counts, domain, level)

    return resampled_interval(estimate, len(prompts), confidence, resamples, seed, (-1.0, 1.0))


_BLOCK = 4_000_000
"""Entries of the coincidences that are in memory at once."""


def _alphas(
    table: "np.ndarray[tuple[int, int], np.dtype[np.int64]]",
    members: "np.ndarray[tuple[int], np.dtype[np.intp]]",
    counts: Array,
    values: Array,
    level: Level,
) -> Array:
    """Krippendorff's alpha of every resample at once, where the library takes one after another.

    Coincidences add up over answers, so those of a resample are the prompts' own, times how often each is drawn. An
    ordinal difference is that of midranks.

    Args:
        table: how often each value was given, shape (answers, values).
        members: each answer's prompt.
        counts: how often each prompt is drawn, shape (resamples, prompts).
        values: in order.
        level: of measurement.

    Returns:
        Shape (resamples,); NaN where fewer than two values were given.
    """
    given = table.astype(np.float64)
    kinds = values.size
    share = 1 / (given.sum(axis=1) - 1)
    flat = np.zeros((len(counts), kinds * kinds))
    for start in range(0, len(given), rows := max(1, _BLOCK // kinds**2)):
        block, scale = given[start : start + rows], share[start : start + rows, None]
        pairs = np.einsum("ac,ak->ack", block, block * scale)
        pairs[:, np.arange(kinds), np.arange(kinds)] -= block * scale
        flat += counts[:, members[start : start + rows]] @ pairs.reshape(len(block), -1)
    together = flat.reshape(-1, kinds, kinds)
    often = together.sum(axis=2)
    total = often.sum(axis=1)
    if level == "nominal":
        observed = total - np.einsum("rcc->r", together)
        expected = (total**2 - (often**2).sum(axis=1)) / (total - 1)
    else:
        places = often.cumsum(axis=1) - often / 2 if level == "ordinal" else np.broadcast_to(values, often.shape)
        places = places - (often * places).sum(axis=1, keepdims=True) / total[:, None]
        squares = (often * places**2).sum(axis=1)
        observed = 2 * (squares - np.einsum("rc,rck,rk->r", places, together, places))
        expected = 2 * squares * total / (total - 1)
    alone = (often > 0).sum(axis=1) < 2
    alphas: Array = np.where(alone, math.nan, 1 - observed / np.where(alone, 1.0, expected))
    return alphas


def cohens_kappa(
    ratings: Sequence[Rating],
    first: str,
    second: str,
    confidence: float = 0.95,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval | Unknown:
    """Cohen's kappa, unweighted, of two raters on the answers that both have rated; `n` counts prompts.

    Raises:
        UserError: no ratings, a score that is not finite, an answer rated twice by one rater.
    """
    check_ratings(ratings)
    scores: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for r in ratings:
        scores[r.prompt, r.model][r.rater] = r.score
    both = [(item, own[first], own[second]) for item, own in sorted(scores.items()) if first in own and second in own]
    if not both:
        return Unknown(f"no answer was rated by both {first} and {second}")
    values, kinds = np.unique([[x, y] for _, x, y in both], return_inverse=True)
    if values.size < 2:
        return Unknown("all ratings are the same, so agreement cannot be told from habit")
    kinds = kinds.reshape(-1, 2)
    prompts, members = numbered(prompt for (prompt, _), _, _ in both)
    agreed, sides = np.zeros(len(prompts)), np.zeros((2, len(prompts), values.size))
    np.add.at(agreed, members, (kinds[:, 0] == kinds[:, 1]).astype(np.float64))
    for side in (0, 1):
        np.add.at(sides[side], (members, kinds[:, side]), 1.0)

    def estimate(counts: Array) -> Array:
        one, two = counts @ sides[0], counts @ sides[1]
        total = one.sum(axis=1)
        chance = (one * two).sum(axis=1) / total**2
        spare = 1 - chance
        kappa: Array = np.where(spare > 1e-12, (counts @ agreed / total - chance) / np.maximum(spare, 1e-12), math.nan)
        return kappa

    return resampled_interval(estimate, len(prompts), confidence, resamples, seed, (-1.0, 1.0))


def pairwise_kappa(
    ratings: Sequence[Rating], confidence: float = 0.95, *, resamples: int = 1000, seed: int = 0
) -> dict[tuple[str, str], Interval | Unknown]:
    """Cohen's kappa of every two raters (`cohens_kappa`).

    Raises:
        UserError: no ratings, a score that is not finite, an answer rated twice by one rater.
    """
    pairs = combinations(sorted({r.rater for r in ratings}), 2)
    return {(a, b): cohens_kappa(ratings, a, b, confidence, resamples=resamples, seed=seed) for a, b in pairs}


def agreement_with_people(
    judge: Sequence[Rating],
    people: Sequence[Rating],
    confidence: float = 0.95,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> PeopleAgreement:
    """How far a judge (or several, averaged) and people agree on the answers that both have rated.

    Scales need not be the same: only the order counts. For verdicts of a few kinds `cohens_kappa` compares one rater
    with another.

    Raises:
        UserError: no ratings, a score that is not finite, an answer rated twice by one rater.
    """
    check_resamples(confidence, resamples)
    ours, theirs = _means(judge), _means(people)
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        unknown = Unknown("no answer was rated by the judge and by people")
        return PeopleAgreement(unknown, unknown)
    x, y = (np.array([side[item] for item in shared]) for side in (ours, theirs))
    prompts, members = numbered(prompt for prompt, _ in shared)
    alike, pairs = np.zeros(len(prompts)), np.zeros(len(prompts))
    for i, j in combinations(range(len(shared)), 2):
        if members[i] == members[j] and y[i] != y[j]:
            pairs[members[i]] += 1
            alike[members[i]] += 0.5 * (1 + np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]))

    def order(counts: Array) -> Array:
        asked = counts @ pairs
        share: Array = np.where(asked > 0, counts @ alike / np.maximum(asked, 1e-12), math.nan)
        return share

    def spearman(counts: Array) -> Array:
        return np.array([_spearman(x, y, row[members]) for row in counts])

    same = np.ptp(x) == 0 or np.ptp(y) == 0
    return PeopleAgreement(
        Unknown("one side gives the same rating to all")
        if same
        else resampled_interval(spearman, len(prompts), confidence, resamples, seed, (-1.0, 1.0)),
        resampled_interval(order, len(prompts), confidence, resamples, seed, (0.0, 1.0))
        if pairs.any()
        else Unknown("people put no two answers to one prompt in an order"),
    )


def _means(ratings: Sequence[Rating]) -> dict[tuple[str, str], float]:
    """(prompt, model) → the mean of its ratings."""
    check_ratings(ratings)
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    for r in ratings:
        scores[r.prompt, r.model].append(r.score)
    return {item: math.fsum(sorted(own)) / len(own) for item, own in scores.items()}


def _spearman(x: Array, y: Array, counts: Array) -> float:
    """Spearman's rank correlation, each value taken so many times."""
    ranks = []
    for values in (x, y):
        _, kind = np.unique(values, return_inverse=True)
        many = np.bincount(kind, weights=counts)
        ranks.append((np.cumsum(many) - many / 2)[kind])
    total = counts.sum()
    a, b = (r - float(counts @ r) / total for r in ranks)
    spread = math.sqrt(float(counts @ (a * a)) * float(counts @ (b * b)))
    return float(counts @ (a * b)) / spread if spread > 0 else math.nan


def _gridded(scores: Array) -> Array:
    if np.unique(scores).size <= _KINDS:
        return scores
    low, width = float(scores.min()), float(np.ptp(scores)) / (_KINDS - 1)
    gridded: Array = low + np.round((scores - low) / width) * width
    return gridded
