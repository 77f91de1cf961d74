"""Agreement is that of the libraries; biases, drift and outliers are found where there are any."""

import krippendorff
import numpy as np
import pytest
from scipy import stats as reference
from sklearn.metrics import cohen_kappa_score

from benchmarks.judge_intervals import ratings
from harness.errors import UserError
from harness.stats import (
    Interval,
    PairVote,
    Rating,
    Slope,
    Unknown,
    agreement_with_people,
    check_raters,
    cohens_kappa,
    flip_rate,
    krippendorff_alpha,
    length_bias,
    pairwise_kappa,
    position_bias,
    rated_difference,
    rated_mean,
    rating_length_slope,
    self_preference,
    self_rating,
    verbosity,
)
from harness.stats._agreement import Level, _alphas
from harness.stats._resampled import prompt_counts


def _rows(table: np.ndarray, model: str = "m") -> list[Rating]:
    """Raters × prompts; NaN where one has not rated."""
    return [
        Rating(f"{p:03}", model, f"r{r}", float(score), place=p)
        for r, row in enumerate(table)
        for p, score in enumerate(row)
        if not np.isnan(score)
    ]


def test_alpha_of_krippendorffs_own_example() -> None:
    # Krippendorff (2011), "Computing Krippendorff's alpha-reliability", section C: four raters, twelve units, gaps.
    n = np.nan
    table = np.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, n, n, n],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, n, 3],
            [n, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, n],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, n],
        ]
    )
    for level, expected in (("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)):
        found = krippendorff_alpha(_rows(table), level, resamples=200)  # type: ignore[arg-type]  # a loop over levels
        assert isinstance(found, Interval)
        assert found.value == pytest.approx(expected, abs=5e-4)
        assert found.low < found.value < found.high


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
def test_alpha_of_resamples_made_at_once_is_the_librarys_of_each(level: Level) -> None:
    random = np.random.default_rng(3)
    prompts, values = 12, np.array([0.5, 1.0, 2.0, 4.0])
    members = np.sort(random.integers(prompts, size=30))
    table = random.multinomial(1, [0.1, 0.2, 0.3, 0.4], size=30) + random.multinomial(2, [0.25] * 4, size=30)
    counts = np.concatenate([prompt_counts(prompts, 40, 1), np.zeros((1, prompts))])
    # The last has one answer only, whose raters agree.
    table[0], counts[-1, members[0]] = [0, 0, 3, 0], 1.0
    table[1:][members[1:] == members[0]] = [0, 0, 3, 0]
    found = _alphas(table, members, counts, values, level)
    for alpha, drawn in zip(found[:-1], counts, strict=False):
        repeated = np.repeat(table, drawn[members].astype(int), axis=0)
        expected = krippendorff.alpha(value_counts=repeated, value_domain=values, level_of_measurement=level)
        assert alpha == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found[-1])


def test_kappa_is_that_of_scikit_learn_and_chance_is_zero() -> None:
    rng = np.random.default_rng(0)
    worth = rng.integers(0, 3, 200)
    table = np.stack([np.where(rng.random(200) < 0.7, worth, rng.integers(0, 3, 200)) for _ in range(3)]).astype(float)
    for (a, b), found in pairwise_kappa(_rows(table), resamples=200).items():
        assert isinstance(found, Interval)
        assert found.value == pytest.approx(cohen_kappa_score(table[int(a[1])], table[int(b[1])]))
    chance = cohens_kappa(_rows(rng.integers(0, 2, (2, 200)).astype(float)), "r0", "r1", resamples=200)
    assert isinstance(chance, Interval)
    assert chance.low < 0 < chance.high


def test_ratings_that_are_all_the_same_tell_nothing_of_agreement() -> None:
    same = _rows(np.full((2, 20), 5.0))
    assert isinstance(krippendorff_alpha(same, "ordinal"), Unknown)
    assert isinstance(cohens_kappa(same, "r0", "r1"), Unknown)
    assert isinstance(krippendorff_alpha(_rows(np.array([[1.0, 2.0]])), "nominal"), Unknown)


def test_a_judge_beside_people() -> None:
    rng = np.random.default_rng(1)
    worth = rng.normal(size=(60, 3))
    people = [Rating(str(p), f"m{m}", "x", float(worth[p, m])) for p in range(60) for m in range(3)]
    judge = [Rating(str(p), f"m{m}", "j", float(10 + worth[p, m] + rng.normal())) for p in range(60) for m in range(3)]
    found = agreement_with_people(judge, people, resamples=300)
    assert isinstance(found.spearman, Interval)
    assert isinstance(found.alike, Interval)
    theirs = reference.spearmanr([r.score for r in judge], [r.score for r in people]).statistic
    assert found.spearman.value == pytest.approx(theirs)
    assert 0.5 < found.alike.low < 0.75 < found.alike.high < 1
    opposite = [Rating(r.prompt, r.model, "j", -r.score) for r in people]
    reverse = agreement_with_people(opposite, people, resamples=100).alike
    assert isinstance(reverse, Interval)
    assert reverse.value == 0


def test_flips_and_where_they_lean() -> None:
    votes = [PairVote(str(i), "x", "y", 1.0, a_first="a", b_first="a") for i in range(60)]
    votes += [PairVote(f"f{i}", "x", "y", 0.5, a_first="a", b_first="b") for i in range(20)]
    votes += [PairVote(f"t{i}", "x", "y", 0.5, a_first="tie", b_first="b") for i in range(16)]
    votes += [PairVote(f"s{i}", "x", "y", 0.5, a_first="b", b_first="a") for i in range(4)]
    for same in (votes, [v.seen_from("y") for v in votes]):
        flips, lean = flip_rate(same), position_bias(same)
        assert isinstance(flips, Interval)
        assert isinstance(lean, Interval)
        assert (flips.value, lean.value) == (0.4, 0.9)
        assert lean.low > 0.5
    assert isinstance(position_bias(votes[:60]), Unknown)
    assert isinstance(flip_rate([PairVote("p", "x", "y", 1.0)]), Unknown)


@pytest.mark.parametrize("taste", [0.0, 2.0])
def test_a_taste_for_length_is_found_and_its_lack_too(taste: float) -> None:
    rng, votes = np.random.default_rng(7), []
    for p in range(400):
        a, b, better = rng.uniform(50, 800), rng.uniform(50, 800), rng.normal()
        win = float(2 * better + taste * np.log2(a / b) + rng.logistic() > 0)
        votes.append(PairVote(str(p), "x", "y", win, length_a=a, length_b=b, gold=float(better > 0)))
    found = length_bias(votes)
    assert isinstance(found.slope, Slope)
    assert isinstance(found.longer_won, Interval)
    assert not isinstance(found.excess, Unknown)
    assert (found.slope.p < 0.001) == (taste > 0)
    assert (found.longer_won.low > 0.5) == (taste > 0)
    assert (found.excess.low > 0) == (taste > 0)
    assert set(verbosity(votes)) == {"x", "y"}
    assert isinstance(length_bias([PairVote("p", "x", "y", 1.0)]).slope, Unknown)
    ties = [PairVote(str(p), "x", "y", 0.5, length_a=100 + p, length_b=50) for p in range(8)]
    assert length_bias(ties).slope == Unknown("all votes are alike, so nothing tells what would move them")


def test_ratings_that_grow_with_length() -> None:
    rng = np.random.default_rng(8)
    rated = [
        Rating(str(p), f"m{m}", "j", float(5 + 0.8 * m + rng.normal(0, 0.2)), length=2.0 ** (5 + m) - 1)
        for p in range(50)
        for m in range(3)
    ]
    found = rating_length_slope(rated)
    assert isinstance(found, Slope)
    assert found.low < 0.8 < found.high


def test_self_preference_is_a_difference_of_differences() -> None:
    rng, votes, rated = np.random.default_rng(9), [], []
    for p in range(150):
        for judge, bonus in (("own", 1.5), ("other", 0.0)):
            votes.append(PairVote(str(p), "x", "y", float(1 + bonus + rng.logistic() > 0), judge=judge))
            for m in ("x", "y"):
                # A lenient judge, and a better model: neither is self-preference.
                score = 4 + 2 * (judge == "own") + (m == "x") + bonus * (m == "x") + rng.normal()
                rated.append(Rating(str(p), m, judge, float(score)))
    found, rating = self_preference(votes, "own", "x"), self_rating(rated, "own", "x")
    assert isinstance(found, Interval)
    assert isinstance(rating, Interval)
    assert found.low > 0
    assert rating.low < 1.5 < rating.high
    alone = self_preference([v for v in votes if v.judge == "own"], "own", "x")
    assert isinstance(alone, Unknown)
    assert "another judge" in alone.reason


def test_a_mean_rating_holds_other_prompts_and_other_raters() -> None:
    rng, held, naive = np.random.default_rng(10), 0, 0
    for _ in range(200):
        rated = ratings(rng, 60, 5, 0.5)
        mean = rated_mean(rated).mean
        held += mean.low <= 4 <= mean.high
        values = np.array([r.score for r in rated])
        naive += abs(values.mean() - 4) < 1.96 * values.std() / np.sqrt(values.size)
    assert held >= 181
    assert naive < 150
    assert (rated_mean(rated).prompts, rated_mean(rated).raters) == (60, 5)


def test_a_negative_variance_is_guarded() -> None:
    # Rater and prompt effects cancel exactly: both clustered variances are zero, what is left of them is negative.
    rated = [Rating(str(p), "m", str(r), float((p + r) % 2)) for p in range(4) for r in range(4)]
    found = rated_mean(rated).mean
    assert found.value == 0.5
    assert found.stderr > 0
    assert found.low < 0.5 < found.high


def test_leniency_cancels_between_models_rated_by_the_same_person() -> None:
    rng, rated = np.random.default_rng(11), []
    for r, lenient in enumerate(rng.normal(0, 2, 4)):
        for p in range(40):
            for m in ("a", "b"):
                rated.append(Rating(str(p), m, str(r), float(4 + lenient + 0.5 * (m == "a") + rng.normal(0, 0.5))))
    found = rated_difference(rated, "a", "b")
    assert isinstance(found, type(rated_mean(rated)))
    assert 0 < found.mean.low < 0.5 < found.mean.high < 1
    assert isinstance(rated_difference(rated, "a", "z"), Unknown)


def test_who_drifts_and_who_stands_apart() -> None:
    rng = np.random.default_rng(12)
    table = rng.normal(4, 1, 100) + rng.normal(0, 0.5, (5, 100))
    assert not any(check.drifts or check.outlier for check in check_raters(_rows(table)))
    drifting, apart = table.copy(), table.copy()
    drifting[1] += np.linspace(0, 2, 100)
    apart[3] = rng.uniform(1, 7, 100)
    drift = {check.rater: check for check in check_raters(_rows(drifting))}["r1"]
    assert drift.drifts
    assert isinstance(drift.drift, Slope)
    assert drift.drift.low < 2 < drift.drift.high
    assert [check.rater for check in check_raters(_rows(apart)) if check.outlier] == ["r3"]
    two = check_raters(_rows(table[:2]))
    assert all(isinstance(check.excess, Unknown) and not check.outlier for check in two)


def test_doubled_and_missing_ratings_are_refused() -> None:
    with pytest.raises(UserError, match="twice"):
        rated_mean([Rating("p", "m", "r", 1.0), Rating("p", "m", "r", 2.0)])
    with pytest.raises(UserError, match="at least one rating"):
        check_raters([])
    with pytest.raises(UserError, match="finite"):
        krippendorff_alpha([Rating("p", "m", "r", float("nan"))], "nominal")
