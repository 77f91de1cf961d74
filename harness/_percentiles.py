"""Which percentiles a sample supports, and which of its values stand far apart from the rest."""

import math
import statistics
from collections.abc import Mapping, Sequence

__all__ = ["NEEDED", "far_apart", "needed", "percentiles"]

_CONFIDENCE = 0.99
_FAR = 3.5
_NORMAL_QUARTILE = 0.6745
"""The standard normal's upper quartile: it turns a median absolute deviation into a standard deviation."""


def needed(q: float, confidence: float = _CONFIDENCE) -> int:
    """The fewest samples from which the q-quantile may be told.

    Of n independent samples, all lie below the true q-quantile with probability q^n. Where that is likely, even the
    largest value seen may be smaller than the quantile, and whatever is computed from the sample understates it. The
    fewest samples for which the largest is above it with the given confidence is the smallest n with 1 - q^n >=
    confidence: the one-sided, distribution-free tolerance limit of S. S. Wilks, "Determination of sample sizes for
    setting tolerance limits", Annals of Mathematical Statistics 12 (1941). At 99 % that is 44 samples for p90, 90 for
    p95, 459 for p99.

    Args:
        q: the quantile, within (0, 1).
        confidence: within (0, 1).
    """
    return math.ceil(math.log(1 - confidence) / math.log(q))


NEEDED: Mapping[str, int] = {"p50": 1, "p90": needed(0.90), "p95": needed(0.95), "p99": needed(0.99)}
"""Percentile → the fewest samples it is shown for. The median is no tail: any sample has one."""


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """The percentiles that this many samples support: `p50` of any, `p90`, `p95`, `p99` from `NEEDED` on.

    Interpolated linearly between order statistics, as numpy, DuckDB's `quantile_cont` and vLLM's benchmark do.

    Returns:
        Percentile → value, in the unit of the samples; what they do not support is not in it. Empty for no samples.
    """
    ordered = sorted(samples)
    return {name: _at(ordered, int(name[1:]) / 100) for name, least in NEEDED.items() if len(ordered) >= least}


def _at(ordered: Sequence[float], q: float) -> float:
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def far_apart(samples: Sequence[float]) -> list[bool]:
    """For each sample, whether its modified z-score is beyond 3.5: an outlier, to be looked at and never dropped.

    The modified z-score is 0.6745 (x - median) / MAD, MAD being the median absolute deviation: B. Iglewicz and
    D. C. Hoaglin, "How to Detect and Handle Outliers" (1993), from whom the 3.5 is. One wild value, which makes a
    standard deviation large enough to hide itself in, leaves the MAD as it is. Where more than half of the samples are
    equal (MAD 0), the mean absolute deviation takes its place, times the 1.2533 that makes it a standard deviation.
    """
    if not samples:
        return []
    middle = statistics.median(samples)
    away = [abs(x - middle) for x in samples]
    spread = statistics.median(away) / _NORMAL_QUARTILE or statistics.fmean(away) * math.sqrt(math.pi / 2)
    return [bool(spread) and a / spread > _FAR for a in away]
