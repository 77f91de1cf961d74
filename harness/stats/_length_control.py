"""Win rates with the judge's taste for long answers taken out (Dubois et al. 2024, arXiv 2404.04475: AlpacaEval 2).

The log-odds that a model's answer is preferred to the baseline's are

    strength of the model + length term · tanh(difference of lengths / its standard deviation) + difficulty

and the length-controlled win rate is the mean over prompts of what this says with the length term set to zero: had both
answers been of equal length. It is fitted on the votes at hand, ties as half a win.

What few prompts can hold: strength and length term of each model are two figures, for which 40 prompts do. A prompt's
difficulty is one figure a prompt, known only from what other models did on it: with one model compared it is left out.
With several it is shared by all of them, drawn to zero by a ridge whose standard deviation is chosen from 0, 0.5, 1 and
2 by 5-fold cross-validation over the votes. AlpacaEval's weight of difficulty for each model needs a leaderboard and is
1 here. A tied vote for each model, half of it at either end of the length scale, keeps a perfect record finite.

Intervals are by a bootstrap by prompt, Student's t on the scale of log-odds. A model whose answers are all longer (or
all shorter) than the baseline's is extrapolated to equal length by the curve alone: `longer` says how often they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.errors import UserError
from harness.stats._resampled import check_resamples, expit, logit, prompt_counts
from harness.stats._types import Array, Interval, students_t
from harness.stats._votes import PairVote, Unknown, check_votes, met, numbered
from harness.stats._win_rates import win_rate

__all__ = ["LengthControlled", "length_controlled"]

_DEVIATIONS = (0.0, 0.5, 1.0, 2.0)
_FOLDS = 5
_FEWEST = 10
"""Fewer prompts than this, and a length term is a guess."""
_BLOCK = 2_000_000
_STEPS = 60


@dataclass(frozen=True)
class LengthControlled:
    """A model's win rate against the baseline as it is, and had answers been equally long.

    `length_term` is the most in log-odds that a judge adds for a longer answer (tanh levels off at 1). `difficulty` is
    the chosen standard deviation of the prompts' difficulty; 0: none. `longer` is the share of prompts on which the
    model's answer is the longer one.
    """

    raw: Interval
    controlled: Interval | Unknown
    length_term: Interval | Unknown
    difficulty: float
    longer: float


@dataclass(frozen=True)
class _Rows:
    """A row for each prompt and model, sorted by prompt: preference, length term, and the numbers of both."""

    y: Array
    length: Array
    prompt: np.ndarray[tuple[int], np.dtype[np.intp]]
    model: np.ndarray[tuple[int], np.dtype[np.intp]]
    prompts: int
    models: int


def length_controlled(
    votes: Sequence[PairVote], baseline: str, confidence: float = 0.95, *, resamples: int = 500, seed: int = 0
) -> dict[str, LengthControlled]:
    """The win rate of every model that met the baseline, raw and length-controlled (see the module).

    A prompt counts once for each model, with the means over judges and trainings.

    Args:
        votes: with the lengths of both answers; those about the baseline count.
        baseline: what all are compared with.
        confidence: of each interval.
        resamples: bootstrap replicates.
        seed: of the resampling and of the folds.

    Raises:
        UserError: no vote about the baseline, one without lengths, a win outside [0, 1].
    """
    check_votes(votes)
    check_resamples(confidence, resamples)
    cells: dict[tuple[str, str], list[PairVote]] = {}
    for (model, prompt, _), own in met(votes, baseline).items():
        cells.setdefault((prompt, model), []).extend(v.seen_from(model) for v in own)
    if not cells:
        raise UserError(f"no vote is about the baseline {baseline!r}")
    sizes = {}
    for key, own in cells.items():
        differences = [v.length_a - v.length_b for v in own if v.length_a is not None and v.length_b is not None]
        if len(differences) < len(own):
            raise UserError(f"prompt {key[0]!r}: a vote lacks the length of an answer, which length control goes by")
        sizes[key] = math.fsum(differences) / len(differences)
    models = sorted({model for _, model in cells})
    unknown = {
        model: reason for model in models if (reason := _reason([d for (_, m), d in sizes.items() if m == model]))
    }
    fitted = [model for model in models if model not in unknown]
    found = {}
    estimates: dict[str, tuple[Interval, Interval]] = {}
    difficulty = 0.0
    if fitted:
        rows = _rows({k: v for k, v in cells.items() if k[1] in fitted}, sizes, fitted)
        difficulty = _chosen(rows, seed) if len(fitted) > 1 else 0.0
        estimates = dict(zip(fitted, _estimates(rows, difficulty, confidence, resamples, seed), strict=True))
    for model in models:
        extra = [d for (_, m), d in sizes.items() if m == model]
        raw = win_rate(votes, model, baseline, confidence)
        controlled, term = estimates.get(model, (Unknown(unknown.get(model, "")),) * 2)
        found[model] = LengthControlled(raw, controlled, term, difficulty, sum(d > 0 for d in extra) / len(extra))
    return found


def _reason(differences: Sequence[float]) -> str:
    """Why a model's length term cannot be had; empty where it can."""
    if len(differences) < _FEWEST:
        return f"a length term takes {_FEWEST} prompts, here are {len(differences)}"
    if differences[0] != 0 and float(np.ptp(differences)) < 1e-9 * abs(differences[0]):
        return "all answers differ by the same length, so length and model cannot be told apart"
    return ""


def _rows(
    cells: dict[tuple[str, str], list[PairVote]], sizes: dict[tuple[str, str], float], models: Sequence[str]
) -> _Rows:
    keys = sorted(cells)
    names, prompt = numbered(p for p, _ in keys)
    model = np.array([models.index(m) for _, m in keys], dtype=np.intp)
    size = np.array([sizes[key] for key in keys])
    spread = np.array([size[model == m].std() for m in range(len(models))])
    y = np.array([np.mean([v.win for v in cells[key]]) for key in keys])
    scaled: Array = np.tanh(size / np.where(spread > 0, spread, 1.0)[model])
    return _Rows(y, scaled, prompt, model, len(names), len(models))


def _fit(
    rows: _Rows,
    counts: Array,
    deviation: float,
    asked: Array | None = None,
    start: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Strengths and length terms, (sets, 2 · models), difficulties, (sets, prompts), and the information on the first.

    Args:
        rows: what was voted.
        counts: how often each prompt is taken, (sets, prompts).
        deviation: the standard deviation of the difficulties; 0: none.
        asked: the weight of each row; all 1 without.
        start: strengths and difficulties to begin with; 0 without.
    """
    sets, models = counts.shape[0], rows.models
    weight = counts[:, rows.prompt] * (1.0 if asked is None else asked)
    member = (rows.model[:, None] == np.arange(models)).astype(np.float64)
    # The tied vote: half of it at +1, half at -1.
    ends = np.concatenate([np.tile(np.eye(models), (1, 2)), np.hstack([np.eye(models), -np.eye(models)])])
    own, hard = np.zeros((sets, 2 * models)), np.zeros((sets, rows.prompts))
    if start is not None:
        own, hard = own + start[0], hard + start[1]
    first, second = np.arange(models), np.arange(models, 2 * models)
    crossed = np.zeros((sets, rows.prompts, 2 * models))
    starts = np.flatnonzero(np.diff(rows.prompt, prepend=-1))
    ridge = counts / deviation**2 if deviation else counts
    for _ in range(_STEPS):
        share = expit(own[:, rows.model] + own[:, models + rows.model] * rows.length + hard[:, rows.prompt])
        end = expit(own @ ends.T)
        residual, variance = weight * (rows.y - share), weight * share * (1 - share)
        slope = np.concatenate([residual @ member, (residual * rows.length) @ member], axis=1)
        slope += 0.5 * (0.5 - end) @ ends
        information = np.einsum("sn,ni,nj->sij", 0.5 * end * (1 - end), ends, ends, optimize=True)
        longer = variance * rows.length
        information[:, first, first] += variance @ member
        information[:, second, second] += (longer * rows.length) @ member
        information[:, first, second] += longer @ member
        information[:, second, first] += longer @ member
        if deviation:
            curvature = np.add.reduceat(variance, starts, axis=1) + ridge
            pull = np.add.reduceat(residual, starts, axis=1) - ridge * hard
            inverse = np.where(curvature > 0, 1 / np.maximum(curvature, 1e-300), 0.0)
            crossed[:, rows.prompt, rows.model] = variance
            crossed[:, rows.prompt, models + rows.model] = longer
            information -= crossed.transpose(0, 2, 1) @ (inverse[:, :, None] * crossed)
            slope -= ((inverse * pull)[:, None] @ crossed)[:, 0]
        step = np.linalg.solve(information, slope[..., None])[..., 0]
        scale = np.minimum(1.0, 1.5 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
        own += scale * step
        if deviation:
            hard += scale * inverse * (pull - (crossed @ step[..., None])[..., 0])
        if float(np.abs(step).max()) < 1e-6:
            break
    return own, hard, information


def _chosen(rows: _Rows, seed: int) -> float:
    """The deviation of difficulties under which votes left out are foretold best; the least of equally good ones."""
    folds = np.random.default_rng(seed).permutation(rows.y.size) % _FOLDS
    losses = []
    for deviation in _DEVIATIONS:
        loss = 0.0
        for fold in range(_FOLDS):
            asked = (folds != fold).astype(np.float64)
            own, hard, _ = _fit(rows, np.ones((1, rows.prompts)), deviation, asked)
            logits = own[0, rows.model] + own[0, rows.models + rows.model] * rows.length + hard[0, rows.prompt]
            # log(1 + exp) without overflow.
            loss += float((np.logaddexp(0, logits) - rows.y * logits)[folds == fold].sum())
        losses.append(loss)
    return _DEVIATIONS[int(np.argmin(losses))]


def _rates(rows: _Rows, own: Array, hard: Array, counts: Array) -> Array:
    """The win rates with the length term at zero, (sets, models), over the prompts that each model has."""
    share = expit(own[:, rows.model] + hard[:, rows.prompt]) * counts[:, rows.prompt]
    member = (rows.model[:, None] == np.arange(rows.models)).astype(np.float64)
    rates: Array = (share @ member) / np.maximum(counts[:, rows.prompt] @ member, 1e-12)
    return rates


def _estimates(
    rows: _Rows, deviation: float, confidence: float, resamples: int, seed: int
) -> list[tuple[Interval, Interval]]:
    """For each model the controlled win rate and the length term."""
    once = np.ones((1, rows.prompts))
    own, hard, information = _fit(rows, once, deviation)
    rates = _rates(rows, own, hard, once)[0]
    counts = prompt_counts(rows.prompts, resamples, seed)
    block = max(1, _BLOCK // (rows.y.size + rows.prompts * 2 * rows.models))
    terms, drawn = [], []
    for begin in range(0, resamples, block):
        part = counts[begin : begin + block]
        some, harder, _ = _fit(rows, part, deviation, start=(own, hard))
        terms.append(some[:, rows.models :])
        drawn.append(np.clip(_rates(rows, some, harder, part), 1e-12, 1 - 1e-12))
    narrow, t = math.sqrt(rows.prompts / (rows.prompts - 1)), students_t(confidence, rows.prompts - 1)
    least = np.sqrt(np.diag(np.linalg.inv(information[0])))
    found = []
    for m in range(rows.models):
        y, n = rows.y[rows.model == m], int((rows.model == m).sum())
        spread = narrow * float(logit(np.concatenate(drawn)[:, m]).std(ddof=1))
        width = narrow * float(np.concatenate(terms)[:, m].std(ddof=1))
        if float(np.ptp(y)) == 0:
            # A perfect record shows no spread when drawn again: no less than the likelihood's.
            spread, width = max(spread, float(least[m])), max(width, float(least[rows.models + m]))
        value, term = float(rates[m]), float(own[0, rows.models + m])
        centre = math.log(value / (1 - value))
        low, high = expit(np.array([centre - t * spread, centre + t * spread])).tolist()
        rate = Interval(low, value, high, n, value * (1 - value) * spread, confidence)
        found.append((rate, Interval(term - t * width, term, term + t * width, n, width, confidence)))
    return found
