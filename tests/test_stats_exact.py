"""Exact paired tests agree with scipy and statsmodels, and hold their level where approximations do not."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference
from statsmodels.stats.contingency_tables import mcnemar

from harness.errors import UserError
from harness.stats._exact import mcnemar_exact, permutation_p


def _named(values: np.ndarray | list[float]) -> dict[str, float]:
    return {f"{i:04}": float(v) for i, v in enumerate(values)}


def _answers(n00: int, n01: int, n10: int, n11: int) -> tuple[dict[str, float], dict[str, float]]:
    pairs = [(0, 0)] * n00 + [(0, 1)] * n01 + [(1, 0)] * n10 + [(1, 1)] * n11
    return _named([a for a, _ in pairs]), _named([b for _, b in pairs])


cells = st.integers(0, 40)


@given(cells, st.integers(0, 40), st.integers(0, 40), cells)
def test_mcnemar_matches_scipy_and_statsmodels(n00: int, n01: int, n10: int, n11: int) -> None:
    if not n00 + n01 + n10 + n11:
        return
    found = mcnemar_exact(*_answers(n00, n01, n10, n11))
    assert (found.n01, found.n10) == (n01, n10)
    if n01 + n10:
        assert found.p == pytest.approx(reference.binomtest(n10, n01 + n10).pvalue)
        assert found.p == pytest.approx(mcnemar([[n00, n01], [n10, n11]], exact=True).pvalue)
    else:
        assert found.p == 1


def test_mcnemar_worked_by_hand() -> None:
    # 1 against 5: 2 · (1 + 6) / 2^6.
    assert mcnemar_exact(*_answers(3, 1, 5, 20)).p == pytest.approx(14 / 64)


@settings(max_examples=30)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=12))
def test_few_documents_are_exchanged_in_all_ways(differences: list[int]) -> None:
    a = _named(np.array(differences) / 4)
    found = permutation_p(a, dict.fromkeys(a, 0.0))
    whole = reference.permutation_test(
        (np.array(differences) / 4, np.zeros(len(differences))),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    # scipy counts twice the smaller tail; the two agree since exchanging everything turns the sign.
    assert found == pytest.approx(min(1.0, whole.pvalue))


def test_binary_scores_give_mcnemars_p() -> None:
    a, b = _answers(3, 2, 8, 20)
    assert permutation_p(a, b) == pytest.approx(mcnemar_exact(a, b).p)


def test_many_documents_are_exchanged_at_random() -> None:
    random = np.random.default_rng(0)
    a, b = _named(random.normal(0.1, 0.5, 100)), _named(np.zeros(100))
    found = permutation_p(a, b)
    assert found == pytest.approx(reference.ttest_rel(list(a.values()), list(b.values())).pvalue, abs=0.01)
    assert found == permutation_p(dict(reversed(a.items())), b)
    assert found != permutation_p(a, b, seed=1)
    assert permutation_p(b, a) == found


def test_p_is_never_zero() -> None:
    a = _named(np.ones(200))
    assert permutation_p(a, dict.fromkeys(a, 0.0), resamples=999) == 1 / 1000
    assert permutation_p(a, a) == 1


def test_groups_are_exchanged_whole() -> None:
    # Four groups all one way: 2 of 16 exchanges are as extreme, however many documents each has.
    a = _named(np.full(80, 0.1))
    groups = {d: d[-1] for d in a if int(d) % 10 < 4} | {d: "0" for d in a if int(d) % 10 >= 4}
    assert permutation_p(a, dict.fromkeys(a, 0.0), groups=groups) == 2 / 16
    assert permutation_p(a, dict.fromkeys(a, 0.0)) < 0.001


def test_the_level_is_held_with_groups_that_move_together() -> None:
    """No true difference, groups of 20 with effects of their own: whole groups must be exchanged."""
    random = np.random.default_rng(1)
    groups = {f"{i:04}": str(i // 20) for i in range(160)}
    whole = alone = 0
    for number in range(300):
        a = _named(np.repeat(random.normal(0, 0.3, 8), 20) + random.normal(0, 0.5, 160))
        b = dict.fromkeys(a, 0.0)
        whole += permutation_p(a, b, groups=groups) < 0.05
        alone += permutation_p(a, b, resamples=200, seed=number) < 0.05
    assert whole <= 0.08 * 300
    assert alone > 0.2 * 300


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar_exact({"a": 1.0}, {"b": 1.0}), "same documents"),
        (lambda: mcnemar_exact({"a": 0.5}, {"a": 1.0}), "0 and 1, got 0.5"),
        (lambda: mcnemar_exact({"a": 1.0}, {"a": [1.0, 0.0]}), "b: .* one seed, got 2"),
        (lambda: permutation_p({"a": 1.0}, {"b": 1.0}), "same documents"),
        (lambda: permutation_p({"a": 1.0}, {"a": 0.0}, resamples=5), "at least 100"),
        (lambda: permutation_p({"a": 1.0}, {"a": 0.0}, groups={}), "'a' the first"),
    ],
)
def test_bad_input_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
