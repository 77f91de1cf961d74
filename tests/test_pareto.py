"""Pareto fronts and how sure their members are."""

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume

from harness.pareto import front, hypervolume, membership


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


def test_hypervolume_worked_by_hand() -> None:
    # Two squares of 4 that share a square of 1; the third point is dominated, the fourth is beyond the reference.
    points = np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [0.0, 5.0]])
    assert hypervolume(points, np.array([3.0, 3.0])) == 3.0
    # A cube of 8 and a flat box of 1 × 1 × 3 beside it, of which 1 × 1 × 2 lies in the cube.
    solid = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0]])
    assert hypervolume(solid, np.array([3.0, 3.0, 3.0])) == 9.0


def test_hypervolume_of_nothing_is_zero() -> None:
    assert hypervolume(np.empty((0, 2)), np.array([1.0, 1.0])) == 0.0
    assert hypervolume(np.array([[0.0, 1.0, 0.0]]), np.ones(3)) == 0.0


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("ties", [False, True])
def test_hypervolume_is_that_of_optuna_and_of_points_thrown_at_random(axes: int, ties: bool) -> None:
    generator = np.random.default_rng(axes)
    for _ in range(20):
        points = generator.integers(0, 5, (12, axes)) / 4 if ties else generator.random((12, axes)) * 1.2
        reference = np.ones(axes)
        found = hypervolume(points, reference)
        assert found == pytest.approx(compute_hypervolume(np.minimum(points, reference), reference), abs=1e-12)
        assert hypervolume(generator.permutation(points), reference) == pytest.approx(found, abs=1e-12)
        assert hypervolume(points[front(points)], reference) == pytest.approx(found, abs=1e-12)
    thrown = generator.random((20_000, axes))
    hit = (points[:, None] <= thrown[None]).all(-1).any(0).mean()
    assert found == pytest.approx(hit, abs=0.02)


@pytest.mark.parametrize(
    ("points", "reference", "message"),
    [
        ([[1.0], [2.0]], [3.0], "2 or 3 axes"),
        ([[1.0, 2.0]], [3.0, 3.0, 3.0], "2 or 3 axes"),
        ([[1.0, np.nan]], [3.0, 3.0], "not finite"),
        ([[1.0, 2.0]], [3.0, np.inf], "not finite"),
    ],
)
def test_hypervolume_refuses_what_it_cannot_measure(
    points: list[list[float]], reference: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        hypervolume(np.array(points), np.array(reference))
