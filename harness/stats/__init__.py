"""How sure are we: intervals, differences paired by document, the correction for several comparisons."""

from harness.stats._crossed import crossed_interval, paired_difference
from harness.stats._means import interval, wilson
from harness.stats._several import holm, resolved
from harness.stats._types import Difference, Interval, Scores, Verdict

__all__ = [
    "Difference",
    "Interval",
    "Scores",
    "Verdict",
    "crossed_interval",
    "holm",
    "interval",
    "paired_difference",
    "resolved",
    "wilson",
]
