"""How sure are we: intervals, differences and tests, many comparisons, tuning budgets, ranks, power; judges, people."""

from harness.stats._aggregate import TaskScores, interquartile_mean, probability_of_improvement
from harness.stats._agreement import (
    PeopleAgreement,
    agreement_with_people,
    cohens_kappa,
    krippendorff_alpha,
    pairwise_kappa,
)
from harness.stats._bradley_terry import Strength, bradley_terry
from harness.stats._budget_curves import BudgetCurve, best_so_far, expected_best, expected_best_within, optimism
from harness.stats._clusters import cluster_difference, cluster_interval
from harness.stats._crossed import crossed_interval, paired_difference
from harness.stats._exact import McNemar, mcnemar_exact, permutation_p
from harness.stats._judge_biases import (
    LengthBias,
    flip_rate,
    length_bias,
    position_bias,
    rating_length_slope,
    self_preference,
    self_rating,
    verbosity,
)
from harness.stats._length_control import LengthControlled, length_controlled
from harness.stats._means import interval, wilson
from harness.stats._power import Variances, detectable, minimum_detectable_effect, needed, needed_groups, variances
from harness.stats._ranks import RankInterval, rank_intervals
from harness.stats._raters import RatedMean, RaterCheck, check_raters, rated_difference, rated_mean
from harness.stats._several import benjamini_hochberg, holm, resolved
from harness.stats._slopes import Slope
from harness.stats._types import Difference, Interval, Scores, Verdict
from harness.stats._votes import Choice, PairVote, Rating, Unknown
from harness.stats._win_rates import win_rate, win_rates

__all__ = [
    "BudgetCurve",
    "Choice",
    "Difference",
    "Interval",
    "LengthBias",
    "LengthControlled",
    "McNemar",
    "PairVote",
    "PeopleAgreement",
    "RankInterval",
    "RatedMean",
    "RaterCheck",
    "Rating",
    "Scores",
    "Slope",
    "Strength",
    "TaskScores",
    "Unknown",
    "Variances",
    "Verdict",
    "agreement_with_people",
    "benjamini_hochberg",
    "best_so_far",
    "bradley_terry",
    "check_raters",
    "cluster_difference",
    "cluster_interval",
    "cohens_kappa",
    "crossed_interval",
    "detectable",
    "expected_best",
    "expected_best_within",
    "flip_rate",
    "holm",
    "interquartile_mean",
    "interval",
    "krippendorff_alpha",
    "length_bias",
    "length_controlled",
    "mcnemar_exact",
    "minimum_detectable_effect",
    "needed",
    "needed_groups",
    "optimism",
    "paired_difference",
    "pairwise_kappa",
    "permutation_p",
    "position_bias",
    "probability_of_improvement",
    "rank_intervals",
    "rated_difference",
    "rated_mean",
    "rating_length_slope",
    "resolved",
    "self_preference",
    "self_rating",
    "variances",
    "verbosity",
    "wilson",
    "win_rate",
    "win_rates",
]
