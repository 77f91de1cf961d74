"""How much of what a Pareto front dominates would be lost without one of its owners."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from harness.pareto import front, hypervolume

__all__ = ["BEYOND", "volume_lost"]

BEYOND = 0.1
"""How far the reference lies beyond the worst point, as a share of what the points span on each axis."""
_RESAMPLES = 200

_Array = npt.NDArray[np.float64]


def volume_lost(draws: _Array, owners: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """Owner → the share of the hypervolume that goes without its points: the estimate, and its 95 % interval.

    The exclusive contribution of Zitzler & Thiele 1998 (see `harness.pareto.hypervolume`), of an owner's points
    together, as a share, so that the units of the axes do not matter. The reference is one for all draws; beyond the
    worst point, so that the ends of the front count (Ishibuchi et al. 2018, "How to specify a reference point in
    hypervolume calculation"). Shares of several owners need not add up to one: what two of them dominate is lost with
    neither.

    Args:
        draws: [1 + resamples, points, axes], axes minimised, the estimate itself first.
        owners: of each point.
    """
    worst, best = draws[0].max(axis=0), draws[0].min(axis=0)
    # Where all points are alike on an axis it is no choice, and any distance to the reference does.
    spread = np.where(worst > best, worst - best, np.maximum(np.abs(worst), 1.0))
    reference = worst + BEYOND * spread
    own = {name: np.array([o == name for o in owners]) for name in dict.fromkeys(owners)}
    shares: dict[str, list[float]] = {name: [] for name in own}
    for points in draws[: 1 + _RESAMPLES]:
        on_front = front(points)
        whole = hypervolume(points[on_front], reference)
        for name, mine in own.items():
            if not (on_front & mine).any() or whole == 0:
                shares[name].append(0.0)
                continue
            rest = points[~mine]
            left = hypervolume(rest[front(rest)], reference) if len(rest) else 0.0
            shares[name].append((whole - left) / whole)
    found = {}
    for name, values in shares.items():
        low, high = np.quantile(values[1:] or values, [0.025, 0.975])
        found[name] = values[0], float(low), float(high)
    return found
