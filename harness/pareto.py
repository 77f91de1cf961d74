"""Pareto fronts, how sure their members are, and how much they dominate."""

import numpy as np
import numpy.typing as npt

__all__ = ["front", "hypervolume", "membership"]

_Array = npt.NDArray[np.float64]


def front(points: _Array) -> npt.NDArray[np.bool_]:
    """Which points [n, axes] no other dominates, every axis to be minimised; equal points do not dominate each other.

    Raises:
        ValueError: a value is NaN: nothing can be said of that point.
    """
    if np.isnan(points).any():
        raise ValueError("a point of a Pareto front is NaN")
    better_somewhere = (points[:, None] < points[None]).any(-1)
    nowhere_worse = (points[:, None] <= points[None]).all(-1)
    free: npt.NDArray[np.bool_] = np.logical_not(np.any(better_somewhere & nowhere_worse, axis=0))
    return free


def membership(draws: _Array) -> _Array:
    """The share of bootstrap draws [resamples, n, axes] in which each point is on the front, [n], axes minimised.

    Efron & Tibshirani 1993, chapter 6: resample what was measured, look at the whole front each time. The draws of one
    resample belong together: the same documents for every point, or differences would be called noise.
    """
    shares: _Array = np.mean(np.stack([front(one) for one in draws]), axis=0)
    return shares


def hypervolume(points: _Array, reference: _Array) -> float:
    """The volume between the points [n, axes] and the reference [axes] that they dominate, exact, axes minimised.

    Zitzler & Thiele 1998, "Multiobjective optimization using evolutionary algorithms": one figure for a whole front,
    larger is better. It is in the product of the axes' units and goes by the reference, so it compares fronts of the
    same axes and the same reference only. A point that is not better than the reference on every axis adds nothing.

    Raises:
        ValueError: other than 2 or 3 axes, shapes that do not fit, or a value that is not finite.
    """
    if points.ndim != 2 or points.shape[1] not in (2, 3) or reference.shape != points.shape[1:]:
        raise ValueError(
            "a hypervolume is of points [n, axes] and a reference [axes] with 2 or 3 axes, got "
            f"{list(points.shape)} and {list(reference.shape)}"
        )
    if not (np.isfinite(points).all() and np.isfinite(reference).all()):
        raise ValueError("a point or the reference of a hypervolume is not finite")
    inside = points[(points < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if reference.size == 2:
        return _area(inside, reference)
    volume = 0.0
    # Between two values of the last axis, what is dominated is the area of the points below, times the height.
    ordered = inside[np.argsort(inside[:, 2], kind="stable")]
    tops = np.append(ordered[1:, 2], reference[2])
    for count, (bottom, top) in enumerate(zip(ordered[:, 2], tops, strict=True), start=1):
        if top > bottom:
            volume += (float(top) - float(bottom)) * _area(ordered[:count, :2], reference[:2])
    return volume


def _area(points: _Array, reference: _Array) -> float:
    """What points [n, 2], all better than the reference, dominate."""
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    lowest = np.minimum.accumulate(np.concatenate([reference[1:], ordered[:, 1]]))
    return float(((reference[0] - ordered[:, 0]) * (lowest[:-1] - lowest[1:])).sum())
