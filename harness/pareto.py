"""Pareto fronts, and how sure their members are."""

import numpy as np
import numpy.typing as npt

__all__ = ["front", "membership"]

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
