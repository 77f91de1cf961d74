"""Published figures go by subjects where those of the report do."""

import pytest

from harness.publish._aggregates import against, figure
from harness.stats import cluster_difference, cluster_interval, crossed_interval

# Six subjects, in each of which all answers are alike: 120 documents say little more than six.
SCORES = {f"mmlu_{n % 6}/{n}": [float(n % 6 < 4)] for n in range(120)}
OTHER = {d: [float(n % 6 < 3)] for n, d in enumerate(SCORES)}
GROUPS = {d: d.partition("/")[0] for d in SCORES}


def test_intervals_of_many_subjects_go_by_subject() -> None:
    found = figure("mmlu", "acc", SCORES)
    assert found is not None
    expected = cluster_interval(SCORES, GROUPS)
    assert (found.value, found.low, found.high) == (expected.value, max(expected.low, 0.0), min(expected.high, 1.0))
    assert (found.stderr, found.n) == (expected.stderr, 120)
    alone = crossed_interval(SCORES)
    assert found.high - found.low > 2 * (alone.high - alone.low)
    difference = against({("mmlu", "acc"): SCORES}, {("mmlu", "acc"): OTHER})["mmlu", "acc"]
    clustered = cluster_difference(SCORES, OTHER, GROUPS)
    assert (difference.value, difference.low, difference.high) == (clustered.value, clustered.low, clustered.high)


def test_few_tasks_are_no_sample_of_tasks() -> None:
    few = {d.replace("mmlu_5", "mmlu_0").replace("mmlu_4", "mmlu_0"): s for d, s in SCORES.items()}
    found, expected = figure("mmlu", "acc", few), crossed_interval(few)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
