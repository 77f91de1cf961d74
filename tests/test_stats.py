"""Intervals cover what they say they cover; comparisons do not depend on what they must not depend on."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from harness.errors import UserError
from harness.stats import Difference, Interval, crossed_interval, holm, interval, paired_difference, resolved, wilson

finite = st.floats(-1e3, 1e3, allow_subnormal=False)
probability = st.floats(0, 1)


@given(st.lists(finite, min_size=2, max_size=30), st.floats(0.5, 0.99))
def test_interval_is_students(values: list[float], confidence: float) -> None:
    found = interval(values, confidence)
    stderr = float(reference.sem(values))
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.stderr == pytest.approx(stderr, abs=1e-9)
    half = reference.t.ppf(0.5 + confidence / 2, len(values) - 1) * stderr
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=1e-6)


def test_one_value_has_no_known_spread() -> None:
    found = interval([3.0])
    assert found.value == 3.0
    assert math.isnan(found.low)
    assert math.isnan(found.stderr)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_matches_scipy_and_holds_its_proportion(case: tuple[int, int], confidence: float) -> None:
    successes, n = case
    found = wilson(successes, n, confidence)
    expected = reference.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_wilson_worked_by_hand() -> None:
    # z = 1.959964, 8 of 10: centre (0.8 + z²/20) / (1 + z²/10), half width z/(1 + z²/10)·sqrt(0.016 + z²/400).
    found = wilson(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@given(st.lists(probability, max_size=12))
def test_holm_never_lowers_and_keeps_the_order(pvalues: list[float]) -> None:
    adjusted = holm(pvalues)
    assert all(p <= a <= 1 for p, a in zip(pvalues, adjusted, strict=True))
    ranked = sorted(range(len(pvalues)), key=lambda i: pvalues[i])
    assert all(adjusted[i] <= adjusted[j] for i, j in itertools.pairwise(ranked))
    assert holm(pvalues[::-1]) == adjusted[::-1]


def test_holm_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = holm([0.02, math.nan])
    assert adjusted[0] == 0.02
    assert math.isnan(adjusted[1])


scores = st.dictionaries(st.text(max_size=4), st.lists(probability, min_size=2, max_size=2), min_size=2, max_size=12)


@settings(max_examples=40)
@given(scores)
def test_a_difference_turns_with_its_sides_and_ignores_order(table: dict[str, list[float]]) -> None:
    other = {d: [s[0] * 0.5, s[1] * 0.8] for d, s in table.items()}
    found = paired_difference(table, other, resamples=400)
    assert found.low <= found.value <= found.high
    assert 0 < found.p <= 1
    shuffled = dict(reversed(table.items()))
    assert paired_difference(shuffled, other, resamples=400) == found
    turned = paired_difference(other, table, resamples=400)
    assert turned.value == pytest.approx(-found.value)
    moved = {d: [v + 1 for v in s] for d, s in table.items()}
    assert paired_difference(moved, other, resamples=400).value == pytest.approx(found.value + 1)


def test_equal_models_do_not_differ() -> None:
    table = {str(i): [float(i % 3 == 0), float(i % 2)] for i in range(30)}
    found = paired_difference(table, table)
    assert found.value == 0
    assert found.p == 1
    assert found.low < 0 < found.high
    assert resolved(found) == "unresolved"


def test_pairing_by_document_finds_what_unpaired_means_cannot() -> None:
    random = np.random.default_rng(0)
    hardness = random.normal(0.5, 0.3, 80)
    a = {str(i): h + 0.02 + random.normal(0, 0.02) for i, h in enumerate(hardness)}
    b = {str(i): float(h) for i, h in enumerate(hardness)}
    found = paired_difference(a, b)
    assert resolved(found) == "higher"
    assert found.value == pytest.approx(0.02, abs=0.01)
    assert found.high - found.low < 0.02
    apart = interval(list(a.values()))
    assert apart.high - apart.low > 0.1


def test_without_seeds_it_agrees_with_the_paired_t_test() -> None:
    random = np.random.default_rng(1)
    a, b = random.normal(0.1, 0.3, 60), random.normal(0, 0.3, 60)
    found = paired_difference(dict(zip(map(str, range(60)), a, strict=True)), {str(i): b[i] for i in range(60)})
    classic = reference.ttest_rel(a, b)
    expected = classic.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert found.p == pytest.approx(classic.pvalue, rel=0.3, abs=0.02)
    assert found.stderr == pytest.approx((a - b).std(ddof=1) / math.sqrt(60), rel=0.05)


def test_p_and_interval_agree() -> None:
    random = np.random.default_rng(2)
    for shift in np.linspace(0, 0.2, 9):
        a = {str(i): list(random.normal(shift, 0.3, 3)) for i in range(40)}
        found = paired_difference(a, dict.fromkeys(a, 0.0), resamples=1000)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)


def test_seeds_that_disagree_leave_the_question_open() -> None:
    # Each seed alone is far from the base model on every document; the two disagree about which way.
    a = {str(i): [0.9, 0.2] for i in range(100)}
    b = dict.fromkeys(a, 0.5)
    found = paired_difference(a, b)
    assert found.seeds == (2, 1)
    assert resolved(found) == "unresolved"
    one = paired_difference({d: s[:1] for d, s in a.items()}, b)
    assert resolved(one) == "higher"


def test_one_document_resolves_nothing() -> None:
    found = paired_difference({"a": 1.0}, {"a": 0.0})
    assert found.value == 1.0
    assert math.isnan(found.p)
    assert math.isnan(found.low)
    assert resolved(found) == "unresolved"


def test_the_verdict_follows_the_adjusted_p() -> None:
    a = {str(i): 0.5 + 0.01 * (i % 7) for i in range(40)}
    found = paired_difference(a, dict.fromkeys(a, 0.6))
    assert resolved(found) == "lower"
    assert resolved(found, adjusted_p=0.2) == "unresolved"


def test_equal_input_gives_an_equal_answer() -> None:
    table = {str(i): [i / 50, (i % 9) / 9] for i in range(50)}
    assert crossed_interval(table) == crossed_interval(dict(reversed(table.items())))
    assert crossed_interval(table, seed=1).low != crossed_interval(table, seed=2).low


answers = st.lists(st.integers(0, 1), min_size=2, max_size=60)


@given(answers, st.floats(0.5, 0.999), st.integers(0, 5))
def test_right_or_wrong_of_one_seed_is_wilsons_whatever_the_resampling(
    right: list[int], confidence: float, seed: int
) -> None:
    found = crossed_interval({str(i): float(r) for i, r in enumerate(right)}, confidence, seed=seed)
    expected = wilson(sum(right), len(right), confidence)
    assert (found.low, found.value, found.high) == pytest.approx(
        (expected.low, expected.value, expected.high), abs=1e-12
    )


@given(answers.flatmap(lambda a: st.tuples(st.just(a), st.permutations(a))))
def test_right_or_wrong_over_seeds_tells_no_more_than_its_answers(sides: tuple[list[int], list[int]]) -> None:
    # Both seeds have equally many right, so the seeds' part is zero and what is left is the documents'.
    first, second = sides
    found = crossed_interval({str(i): [float(a), float(b)] for i, (a, b) in enumerate(zip(first, second, strict=True))})
    most = wilson(2 * sum(first), 2 * len(first))
    assert -1e-9 <= found.low <= most.low + 1e-9
    assert most.high - 1e-9 <= found.high <= 1 + 1e-9
    assert found.stderr > 0


def test_seeds_that_answer_alike_add_nothing_but_students_t() -> None:
    right = [float(i % 10 == 0) for i in range(300)]
    found = crossed_interval({str(i): [r, r, r] for i, r in enumerate(right)})
    t, p, n = float(reference.t.ppf(0.975, 299)), 0.1, 300
    centre, half = (p + t * t / (2 * n)) / (1 + t * t / n), t / (1 + t * t / n)
    half *= math.sqrt(p * (1 - p) / n + t * t / (4 * n * n))
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert found.stderr == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


@given(st.integers(3, 5).flatmap(lambda s: st.lists(st.lists(st.integers(0, 1), min_size=s, max_size=s), min_size=2)))
def test_right_or_wrong_over_three_seeds_or_more_stays_in_its_range(rows: list[list[int]]) -> None:
    table = {str(i): [float(v) for v in row] for i, row in enumerate(rows)}
    found = crossed_interval(table)
    if 0 < found.value < 1 and len({sum(row) for row in rows}) > 1:
        assert -1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9
    assert found.high - found.low > 0.01
    narrower = crossed_interval(table, 0.5)
    assert found.low <= narrower.low <= narrower.high <= found.high


def test_what_documents_and_seeds_vary_together_is_counted_once() -> None:
    random = np.random.default_rng(3)
    sides = [random.normal(0, 1, (50, 1)) + random.normal(0, 0.3, (1, 4)) + random.normal(0, 1, (50, 4)) for _ in "ab"]

    def parts(side: np.ndarray) -> tuple[float, float]:
        """The variance of the mean that is the seeds', and what of it documents share, by two-way ANOVA."""
        rest = side - side.mean(axis=1, keepdims=True) - side.mean(axis=0) + side.mean()
        return float(side.mean(axis=0).var(ddof=1) / 4), float((rest**2).sum() / (49 * 3) / 200)

    (seeds, shared), (others, also) = map(parts, sides)
    a, b = ({str(i): list(row) for i, row in enumerate(side)} for side in sides)
    of_documents = float(sides[0].mean(axis=1).var(ddof=1)) / 50
    assert crossed_interval(a).stderr == pytest.approx(math.sqrt(of_documents + seeds - 0.75 * shared))
    apart = float((sides[0] - sides[1]).mean(axis=1).var(ddof=1)) / 50
    found = paired_difference(a, b)
    assert found.stderr == pytest.approx(math.sqrt(apart + seeds - shared + others - also))


@pytest.mark.parametrize("comparison", ["mean", "base", "trained"])
@pytest.mark.parametrize(
    ("documents", "seeds", "seed_spread"), [(40, 1, 0.0), (40, 2, 0.05), (40, 2, 0.5), (40, 3, 0.3), (15, 3, 0.05)]
)
def test_intervals_cover_the_truth(comparison: str, documents: int, seeds: int, seed_spread: float) -> None:
    """Simulated with a known truth: 95 % intervals hold it in at least 90 % of 400 draws."""
    random = np.random.default_rng(documents + seeds)
    held = 0
    for number in range(400):
        hardness = random.normal(0, 0.3, (documents, 1))

        def side(level: float, count: int, hardness: np.ndarray = hardness) -> dict[str, list[float]]:
            noise = random.normal(0, 0.1, (documents, count)) + random.normal(0, 0.1, (documents, 1))
            table = level + hardness + random.normal(0, seed_spread if count > 1 else 0.0, count) + noise
            return {str(i): list(row) for i, row in enumerate(table)}

        a = side(0.1, seeds)
        if comparison == "mean":
            found: Interval | Difference = crossed_interval(a, resamples=300, seed=number)
        else:
            found = paired_difference(a, side(0.0, 1 if comparison == "base" else seeds), resamples=300, seed=number)
        held += found.low <= 0.1 <= found.high
    assert held >= 0.9 * 400


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval([]), "at least one value"),
        (lambda: interval([1.0, math.nan]), "1 of 2 values are NaN"),
        (lambda: interval([1.0], confidence=95), "confidence lies between 0 and 1"),
        (lambda: wilson(3, 2), "successes"),
        (lambda: holm([1.2]), "p values lie in"),
        (lambda: crossed_interval({}), "no documents"),
        (lambda: crossed_interval({"a": [1.0, 2.0], "b": [1.0]}), "same number of seeds"),
        (lambda: paired_difference({"a": 1.0}, {"b": 1.0}), "same documents"),
        (lambda: paired_difference({"a": math.inf}, {"a": 1.0}), "NaN or infinite"),
        (lambda: paired_difference({"a": 1.0}, {"a": 1.0}, resamples=5), "at least 100"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
