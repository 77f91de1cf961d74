"""What is planned is what is found: power is that of the t test, and of the harness's own comparison."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference
from statsmodels.stats.power import TTestPower

from benchmarks.false_winners import Setup, false_winners
from harness.errors import UserError
from harness.stats._crossed import paired_difference
from harness.stats._power import Variances, detectable, minimum_detectable_effect, needed, variances


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 300), st.floats(0.001, 0.1), st.floats(0.2, 0.95))
def test_the_least_effect_is_that_of_the_t_test(n: int, alpha: float, power: float) -> None:
    found = minimum_detectable_effect(1 / math.sqrt(n), n - 1, alpha, power)
    assert TTestPower().power(found, n, alpha) == pytest.approx(power, abs=1e-4)
    assert minimum_detectable_effect(2 / math.sqrt(n), n - 1, alpha, power) == pytest.approx(2 * found)


def test_the_least_effect_worked_by_hand() -> None:
    # Known standard error: z at 97.5 % + z at 80 % = 1.95996 + 0.84162; the other tail is below 1e-6.
    assert minimum_detectable_effect(1.0, math.inf) == pytest.approx(2.80159, abs=1e-5)
    # One degree of freedom: a shift so large that |Z| below shift / 12.706 in 80 %, which is at 1.28155.
    assert minimum_detectable_effect(1.0, 1) == pytest.approx(12.7062 * 1.28155, rel=0.01)
    assert minimum_detectable_effect(0.0, 5) == 0.0
    assert math.isnan(minimum_detectable_effect(math.nan, 5))


def _pair(
    documents: int, seeds: int, parts: Variances, effect: float, random: np.random.Generator
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    apart = random.normal(effect, math.sqrt(parts.document), (documents, 1))
    a = apart + random.normal(0, math.sqrt(parts.seeds[0]), seeds)
    b = np.zeros((documents, 1)) + random.normal(0, math.sqrt(parts.seeds[1]), seeds)
    return {str(i): list(r) for i, r in enumerate(a)}, {str(i): list(r) for i, r in enumerate(b)}


def test_detectable_reads_the_freedom_off_the_interval() -> None:
    random = np.random.default_rng(0)
    a, b = _pair(200, 1, Variances(0.1, (0.0, 0.0)), 0.0, random)
    found = paired_difference(a, b)
    expected = TTestPower().solve_power(nobs=200, alpha=0.05, power=0.8) * found.stderr * math.sqrt(200)
    assert detectable(found) == pytest.approx(expected, rel=0.03)
    assert detectable(found, alpha=0.05 / 28) > 1.3 * detectable(found)
    few = paired_difference(*_pair(200, 2, Variances(0.1, (0.01, 0.01)), 0.0, random))
    # Two seeds: no known normal law, so more standard errors than its 2.8 are needed.
    assert detectable(few) > 3.5 * few.stderr
    assert math.isnan(detectable(paired_difference({"a": 1.0}, {"a": 0.5})))


def test_variances_are_those_of_the_comparison() -> None:
    a, b = _pair(50, 3, Variances(0.1, (0.01, 0.02)), 0.1, np.random.default_rng(1))
    found = variances(a, b)
    expected = math.sqrt(found.document / 50 + sum(found.seeds) / 3)
    assert paired_difference(a, b).stderr == pytest.approx(expected)
    assert found.seeds == pytest.approx([np.mean(list(side.values()), axis=0).var(ddof=1) for side in (a, b)])
    one = variances({d: s[0] for d, s in a.items()}, b)
    assert math.isnan(one.seeds[0])


@pytest.mark.parametrize("effect", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_needed_documents_without_seeds_are_those_of_the_t_test(effect: float, alpha: float) -> None:
    expected = TTestPower().solve_power(effect_size=effect / 0.3, nobs=None, alpha=alpha, power=0.8)
    found = needed(-effect, Variances(0.09, (0.0, 0.0)), [1], alpha)[1]
    assert found == pytest.approx(math.ceil(expected), abs=1)


def test_documents_do_not_help_against_seeds() -> None:
    parts = Variances(0.1, (0.001, 0.001))
    found = needed(0.1, parts, [2, 3, 5, 10])
    assert found[2] is None
    many, more = found[5], found[10]
    assert many is not None
    assert more is not None
    assert many > more > needed(0.1, Variances(0.1, (0.0, 0.0)), [1])[1]
    assert needed(0.1, Variances(0.0, (0.0, 0.0)), [1]) == {1: 2}


@pytest.mark.parametrize(("parts", "seeds"), [(Variances(0.1, (0.0002, 0.0)), 3), (Variances(0.1, (0.001, 0.001)), 4)])
def test_what_is_needed_resolves_the_effect(parts: Variances, seeds: int) -> None:
    """Simulated: of 150 comparisons as planned, 80 % are to find the effect."""
    documents = needed(0.15, parts, [seeds])[seeds]
    assert documents is not None
    random = np.random.default_rng(2)
    found = [paired_difference(*_pair(documents, seeds, parts, 0.15, random), resamples=300) for _ in range(150)]
    hits = sum(difference.p < 0.05 for difference in found)
    # Beyond 99.9 % of what 80 % gives by chance, on either side.
    low, high = reference.binom.interval(0.999, 150, 0.8)
    assert low <= hits <= high


def test_a_sweep_without_differences_declares_no_winner() -> None:
    """A small version of `benchmarks/false_winners.py`: at a true 5 %, more than 8 of 60 sweeps come in 1 of 400."""
    reported, final, _ = false_winners(Setup(seed_spread=0.3), 60)
    assert reported.value * 60 <= 8
    # Without correction there would be many: the simulation is not blind.
    assert final.value > 0.05


def test_choosing_by_noisy_scores_declares_many() -> None:
    assert false_winners(Setup(recipes=4, tuning=60, final=60, seed_spread=1.0), 20)[2].low > 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: minimum_detectable_effect(-1.0, 5), "a stderr of zero or more"),
        (lambda: minimum_detectable_effect(1.0, 0), "freedom above zero"),
        (lambda: minimum_detectable_effect(1.0, 5, alpha=0.9), "0 < alpha < power < 1"),
        (lambda: needed(0.0, Variances(1.0, (0.0, 0.0))), "no data resolve nothing"),
        (lambda: needed(0.1, Variances(1.0, (math.nan, 0.0))), "unknown from one seed"),
        (lambda: needed(0.1, Variances(-1.0, (0.0, 0.0))), "finite and not negative"),
        (lambda: needed(0.1, Variances(1.0, (0.1, 0.0)), [1]), "needs two or more"),
        (lambda: variances({"a": 1.0}, {"a": 1.0}), "measure two or more"),
        (lambda: variances({"a": 1.0}, {"b": 1.0}), "same documents"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
