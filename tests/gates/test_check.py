"""All gates together: a healthy sweep has no flag that matters, and what was not looked at is said."""

from pathlib import Path

import polars as pl
import pytest

from harness.errors import UserError
from harness.gates import GATES, check
from harness.store import Store
from tests.report.stores import derive, keep, nothing
from tests.store.scenario import SWEEP


def test_a_healthy_sweep_has_no_invalid_figure(scenario: Store, healthy: Store) -> None:
    assert not [f for f in check(scenario, SWEEP).flags if f.severity == "invalid"]
    # One tuning trial of the scenario diverged, and that is all there is to say.
    found = check(healthy, SWEEP)
    assert [(f.gate, f.severity, f.recipe) for f in found.flags] == [("NaN", "warning", "ppo")]


def test_what_was_not_checked_is_said_with_its_reason(healthy: Store) -> None:
    found = check(healthy, SWEEP)
    gates = {u.gate for u in found.unchecked}
    assert gates == {"truncated prompts", "few-shot split", "contamination", "digest"}
    assert all(u.why and "\n" not in u.why for u in found.unchecked)
    assert len(set(found.unchecked)) == len(found.unchecked)


def test_a_sweep_that_measured_nothing_yet_has_nothing_to_flag(scenario: Store, tmp_path: Path) -> None:
    none = derive(
        scenario,
        tmp_path / "results",
        {"measurement_links": nothing, "failure_events": nothing, "trial_events": keep(pl.col("phase") == "tune")},
    )
    assert check(none, SWEEP).flags == []


def test_an_unknown_sweep_is_a_user_error(healthy: Store) -> None:
    with pytest.raises(UserError, match="no sweep 'other'"):
        check(healthy, "other")


def test_flags_come_most_severe_first_and_of_known_gates(scenario: Store, tmp_path: Path) -> None:
    def broken(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(
            pl.when(pl.col("step") == 20).then(float("nan")).otherwise(pl.col("value")).alias("value")
        )

    found = check(derive(scenario, tmp_path / "results", {"training_steps": broken}), SWEEP)
    severities = [f.severity for f in found.flags]
    assert severities == sorted(severities)
    assert "invalid" in severities
    assert {f.gate for f in found.flags} | {u.gate for u in found.unchecked} <= set(GATES)
