"""Pareto fronts and how sure their members are."""

import numpy as np
import pytest

from harness.pareto import front, membership


def test_a_point_is_on_the_front_unless_another_is_nowhere_worse_and_somewhere_better() -> None:
    points = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.0, 3.0], [2.0, 2.0], [2.0, 4.0]])
    assert front(points).tolist() == [True, True, True, False, True, False]


def test_the_front_of_random_points_is_that_of_the_definition() -> None:
    generator = np.random.default_rng(0)
    for axes in (1, 2, 3):
        points = generator.integers(0, 4, (30, axes)).astype(float)
        slow = [
            not any(all(q <= p) and any(q < p) for q in points)  # the definition, point by point
            for p in points
        ]
        assert front(points).tolist() == slow


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        front(np.array([[1.0, np.nan]]))


def test_membership_is_sure_where_the_draws_are_and_split_where_they_are_not() -> None:
    generator = np.random.default_rng(1)
    quality = np.array([[0.0, 5.0, 0.0]]) + generator.normal(0, 0.1, (2000, 3))
    draws = np.stack([quality, np.broadcast_to([1.0, 2.0, 1.0], (2000, 3))], -1)
    shares = membership(draws)
    # The second is worse on both axes; the first and the third differ by noise alone at equal cost.
    assert shares[1] == 0
    assert shares[0] + shares[2] == pytest.approx(1.0)
    assert 0.45 < shares[0] < 0.55
