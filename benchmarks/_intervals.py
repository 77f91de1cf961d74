"""95 % t intervals of means and of ratios."""

from collections.abc import Sequence

__all__ = ["mean", "ratio"]


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its interval."""
    import numpy as np
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

    found = np.asarray(values)
    return float(found.mean()), float(stdtrit(len(found) - 1, 0.975) * found.std(ddof=1) / len(found) ** 0.5)


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of the ratios of paired times, and the ends of its interval."""
    import numpy as np

    centre, half = mean(np.log(np.asarray(above) / np.asarray(below)))
    return float(np.exp(centre)), float(np.exp(centre - half)), float(np.exp(centre + half))
