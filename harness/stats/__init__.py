"""How sure are we: intervals, differences and tests, many comparisons, tuning budgets, ranks, power; judges, people."""

from harness.stats._aggregate import TaskScores, interquartile_mean, probability_of_improvement
from harness.stats._bradley_terry import Strength, bradley_terry
from harness.stats._budget_curves import BudgetCurve, best_so_far, expected_best, expected_best_within, optimism
from harness.stats._clusters import cluster_difference, cluster_interval
from harness.stats._crossed import crossed_interval, paired_difference
from harness.stats._exact import McNemar, mcnemar_exact, permutation_p
from harness.stats._means import interval, wilson
from harness.stats._power import Variances, detectable, minimum_detectable_effect, needed, variances
from harness.stats._ranks import RankInterval, rank_intervals
from harness.stats._several import benjamini_hochberg, holm, resolved
from harness.stats._types import Difference, Interval, Scores, Verdict
from harness.stats._votes import Choice, PairVote, Rating, Unknown
from harness.stats._win_rates import win_rate, win_rates

__all__ = [
    "BudgetCurve",
    "Choice",
    "Difference",
    "Interval",
    "McNemar",
    "PairVote",
    "RankInterval",
    "Rating",
    "Scores",
    "Strength",
    "TaskScores",
    "Unknown",
    "Variances",
    "Verdict",
    "benjamini_hochberg",
    "best_so_far",
    "bradley_terry",
    "cluster_difference",
    "cluster_interval",
    "crossed_interval",
    "detectable",
    "expected_best",
    "expected_best_within",
    "holm",
    "interquartile_mean",
    "interval",
    "mcnemar_exact",
    "minimum_detectable_effect",
    "needed",
    "optimism",
    "paired_difference",
    "permutation_p",
    "probability_of_improvement",
    "rank_intervals",
    "resolved",
    "variances",
    "wilson",
    "win_rate",
    "win_rates",
]
