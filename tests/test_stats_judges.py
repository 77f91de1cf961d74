"""Win rates, strengths and length control know what is true where it is known, and hold it as often as they say."""

import math
import time

import numpy as np
import pytest
import statsmodels.api as sm

from benchmarks.judge_intervals import length_votes, round_robin
from harness.errors import UserError
from harness.stats import PairVote, Unknown, bradley_terry, length_controlled, win_rate, win_rates


def _record(won: int, tied: int, lost: int, a: str = "a", b: str = "b") -> list[PairVote]:
    wins = [1.0] * won + [0.5] * tied + [0.0] * lost
    return [PairVote(f"{i:03}", a, b, win) for i, win in enumerate(wins)]


def test_a_win_rate_counts_ties_half_and_is_the_same_from_either_side() -> None:
    votes = _record(20, 10, 10)
    found, other = win_rate(votes, "a", "b"), win_rate(votes, "b", "a")
    assert found.value == 0.625
    assert found.n == 40
    assert (other.low, other.value, other.high) == pytest.approx((1 - found.high, 0.375, 1 - found.low))
    # Ties vary less than wins and losses do.
    decided = win_rate(_record(25, 0, 15), "a", "b")
    assert found.high - found.low < decided.high - decided.low


def test_votes_about_one_prompt_are_not_independent() -> None:
    once = _record(25, 0, 15)
    thrice = [PairVote(v.prompt, v.a, v.b, v.win, judge=str(j)) for v in once for j in range(3)]
    assert win_rate(thrice, "a", "b") == win_rate(once, "a", "b")


def test_trainings_that_disagree_widen_a_win_rate() -> None:
    rng = np.random.default_rng(0)
    votes = [
        PairVote(f"{p:03}", "a", "b", float(rng.random() < share), replicate=str(r))
        for p in range(200)
        for r, share in enumerate((0.3, 0.5, 0.8))
    ]
    one = win_rate([v for v in votes if v.replicate == "1"], "a", "b")
    three = win_rate(votes, "a", "b")
    assert three.high - three.low > 2 * (one.high - one.low)


def test_a_perfect_record_is_not_certain() -> None:
    found = win_rate(_record(40, 0, 0), "a", "b")
    assert 0.85 < found.low < 0.95
    assert found.high == 1
    strengths = bradley_terry(_record(40, 0, 0))
    assert strengths["a"].elo.low < strengths["a"].elo.value < math.inf
    assert (strengths["a"].rank.low, strengths["a"].rank.high) == (1, 1)
    for few in (1, 2, 3):
        open_rank = bradley_terry(_record(few, 0, 0))["a"].rank
        assert (open_rank.low, open_rank.rank, open_rank.high) == (1, 1, 2)


def test_all_ties_leave_ranks_open_and_have_an_interval() -> None:
    found = bradley_terry(_record(0, 30, 0))
    assert found["a"].elo.value == pytest.approx(1000)
    assert found["a"].win_rate.low < 0.5 < found["a"].win_rate.high
    assert (found["a"].rank.low, found["a"].rank.high) == (1, 2)


def test_strengths_are_those_of_a_logistic_regression() -> None:
    votes = round_robin(np.random.default_rng(3), 200, [-0.5, 0.0, 0.7, 0.2], judges=1, ties=0.0)
    models = sorted({v.a for v in votes} | {v.b for v in votes})
    design = np.zeros((len(votes), len(models)))
    for row, v in zip(design, votes, strict=True):
        row[models.index(v.a)], row[models.index(v.b)] = 1.0, -1.0
    fit = sm.GLM(np.array([v.win for v in votes]), design[:, 1:], family=sm.families.Binomial()).fit()
    theirs = np.concatenate([[0.0], fit.params]) * 400 / math.log(10)
    theirs += 1000 - theirs.mean()
    ours = [bradley_terry(votes)[m].elo.value for m in models]
    # One drawn vote for each model, next to 600, moves them by little.
    assert ours == pytest.approx(theirs.tolist(), abs=1.0)


def test_strengths_of_eight_models_on_800_prompts_take_seconds() -> None:
    votes = round_robin(np.random.default_rng(0), 800, np.linspace(-1, 1, 8).tolist(), judges=1)
    begin = time.perf_counter()
    found = bradley_terry(votes)
    assert time.perf_counter() - begin < 5
    assert [found[m].rank.rank for m in sorted(found)] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert bradley_terry(list(reversed(votes)))["m3"].elo.low == pytest.approx(found["m3"].elo.low)


def test_models_that_are_alike_are_seldom_told_apart() -> None:
    rng, wrong = np.random.default_rng(5), 0
    for draw in range(40):
        found = bradley_terry(round_robin(rng, 40, [0.0] * 4), resamples=200, seed=draw)
        wrong += any((s.rank.low, s.rank.high) != (1, 4) for s in found.values())
    # 5 % of 40 is 2; 8 or more have a chance of 0.1 %.
    assert wrong < 8


def test_a_judge_that_likes_length_is_off_raw_and_right_when_controlled() -> None:
    rng, held, raw = np.random.default_rng(2), 0, 0
    for draw in range(40):
        found = length_controlled(length_votes(rng, 60), "base", resamples=200, seed=draw)["m0"]
        assert not isinstance(found.controlled, Unknown)
        held += found.controlled.low <= 0.5 <= found.controlled.high
        raw += found.raw.low <= 0.5 <= found.raw.high
    assert held >= 34
    assert raw < 32


def test_a_better_model_stays_better_under_length_control() -> None:
    found = length_controlled(length_votes(np.random.default_rng(4), 300, better=1.5, taste=0.0), "base")["m0"]
    assert not isinstance(found.controlled, Unknown)
    assert found.controlled.low < 1 / (1 + math.exp(-1.5)) < found.controlled.high
    assert found.controlled.low > 0.5


def test_shared_difficulty_is_chosen_where_there_is_any() -> None:
    rng = np.random.default_rng(6)
    hard = length_controlled(length_votes(rng, 150, models=5, hardness=1.5), "base", resamples=100)
    assert all(found.difficulty >= 1 for found in hard.values())
    assert length_controlled(length_votes(rng, 60), "base", resamples=100)["m0"].difficulty == 0


def test_what_length_control_cannot_tell_is_unknown() -> None:
    few = length_controlled(length_votes(np.random.default_rng(0), 5), "base")["m0"]
    assert isinstance(few.controlled, Unknown)
    assert "10 prompts" in few.controlled.reason
    always = [PairVote(str(i), "m", "base", float(i % 2), length_a=20, length_b=10) for i in range(30)]
    assert isinstance(length_controlled(always, "base")["m"].controlled, Unknown)
    perfect = [PairVote(str(i), "m", "base", 1.0, length_a=10 + i, length_b=20) for i in range(30)]
    found = length_controlled(perfect, "base")["m"].controlled
    assert not isinstance(found, Unknown)
    assert 0.5 < found.low < found.value < found.high < 1


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="at least one vote"):
        win_rates([], "base")
    with pytest.raises(UserError, match="compared with itself"):
        bradley_terry([PairVote("p", "a", "a", 1.0)])
    with pytest.raises(UserError, match="or between, got nan"):
        win_rate([PairVote("p", "a", "b", math.nan)], "a", "b")
    with pytest.raises(UserError, match="no chain of compared pairs"):
        bradley_terry([PairVote("p", "a", "b", 1.0), PairVote("p", "c", "d", 1.0)])
    with pytest.raises(UserError, match="lacks the length"):
        length_controlled(_record(10, 0, 10), "b")
    with pytest.raises(UserError, match="no vote compares"):
        win_rate(_record(1, 0, 0), "a", "z")
