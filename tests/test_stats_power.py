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
from harness.stats._clusters import cluster_difference
from harness.stats._crossed import paired_difference
from harness.stats._power import Variances, detectable, minimum_detectable_effect, needed, needed_groups, variances


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


def _grouped(
    groups: int, documents: int, parts: Variances, effect: float, random: np.random.Generator
) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Documents of equal groups, as many in all as come nearest."""
    each = round(documents / groups)
    means = random.normal(effect, math.sqrt(parts.group), (groups, 1))
    apart = means + random.normal(0, math.sqrt(parts.document), (groups, each))
    names = {f"{g}/{d}": str(g) for g in range(groups) for d in range(each)}
    return dict(zip(names, map(float, apart.flat), strict=True)), dict.fromkeys(names, 0.0), names


@pytest.mark.parametrize("more", ["documents", "groups"])
def test_what_is_needed_by_groups_resolves_the_effect(more: str) -> None:
    """Simulated as above, with the cluster-robust test: more documents of 20 groups, or more groups of 10 documents."""
    parts, effect = Variances(0.2, (0.0, 0.0), 0.01, 20), 0.08
    if more == "documents":
        documents = needed(effect, parts, [1])[1]
        groups = 20
    else:
        groups = needed_groups(effect, parts, 10, [1])[1] or 0
        documents = groups * 10
    assert documents is not None
    random = np.random.default_rng(3)
    found = [cluster_difference(*_grouped(groups, documents, parts, effect, random)) for _ in range(300)]
    low, high = reference.binom.interval(0.999, 300, 0.8)
    assert low <= sum(difference.p < 0.05 for difference in found) <= high


def test_groups_bound_what_documents_can_do() -> None:
    parts = Variances(0.2, (0.0, 0.0), 0.01, 10)
    # However many documents: 0.1 / sqrt(10) stays, at nine degrees of freedom.
    bound = minimum_detectable_effect(math.sqrt(0.01 / 10), 9)
    assert needed(bound * 0.98, parts, [1]) == {1: None}
    assert (needed(bound * 1.1, parts, [1])[1] or 0) > 100
    assert (needed_groups(bound * 0.98, parts, 1e6, [1])[1] or 0) == 11
    without = Variances(0.2, (0.0, 0.0), 0.0, 10)
    assert needed(0.1, without, [1])[1] == pytest.approx(needed(0.1, Variances(0.2, (0.0, 0.0)), [1])[1], rel=0.35)


def test_variances_by_group_are_those_that_made_them() -> None:
    made = Variances(0.2, (0.0, 0.0), 0.05, 400)
    a, b, names = _grouped(400, 8000, made, 0.1, np.random.default_rng(4))
    found = variances(a, b, names)
    assert (found.document, found.group) == pytest.approx((0.2, 0.05), rel=0.15)
    assert found.groups == 400
    # The error of a mean over equal groups is the cluster-robust one.
    error = cluster_difference(a, b, names).stderr
    assert math.sqrt(found.group / 400 + found.document / 8000) == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("groups", [0, 5])
def test_equal_scores_are_no_certainty(groups: int) -> None:
    """All of 30 answers right on both sides: an effect of 0.1 is not resolved by two documents."""
    names = {str(i): str(i % 5) for i in range(30)}
    right = dict.fromkeys(names, (1.0, 1.0))
    found = variances(right, right, names if groups else None)
    assert found.unseen
    share = 1.959964**2 / ((groups or 30) + 1.959964**2)
    assert found.document + found.group == pytest.approx(share)
    counts = needed_groups(0.1, found, 6, [1]) if groups else needed(0.1, found, [1])
    assert (counts[1] or 0) > 80
    assert math.isnan(variances({"a": 7.0, "b": 7.0}, {"a": 7.0, "b": 7.0}).document)


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
        (
            lambda: variances({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 1.0}, {"a": "x", "b": "x"}),
            "one group tells nothing",
        ),
        (lambda: needed_groups(0.1, Variances(1.0, (0.0, 0.0)), 0.5, [1]), "one document or more in a group"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
