"""NaN: where a curve ends so, where it recovers, and where a run has no figure for it."""

import dataclasses
from pathlib import Path

import polars as pl
import pytest

from harness.gates import Flag
from harness.gates._evidence import read_evidence
from harness.gates._nan import not_a_number
from harness.store import Store
from tests.gates.stores import ask
from tests.report.stores import derive
from tests.store.scenario import SWEEP


def _flags(store: Store, recipe: str) -> list[Flag]:
    return [f for f in ask(store, "NaN")[0] if f.recipe == recipe]


@pytest.mark.parametrize(("steps", "severity"), [([20], "invalid"), ([4, 5], "warning")])
def test_a_broken_curve(healthy: Store, tmp_path: Path, steps: list[int], severity: str) -> None:
    ppo = healthy.query("SELECT stage FROM stages WHERE method = 'ppo'")["stage"].to_list()

    def broken(frame: pl.DataFrame) -> pl.DataFrame:
        here = pl.col("stage").is_in(ppo) & (pl.col("metric") == "kl") & pl.col("step").is_in(steps)
        return frame.with_columns(pl.when(here).then(float("inf")).otherwise(pl.col("value")).alias("value"))

    store = derive(healthy, tmp_path / "results", {"training_steps": broken})
    found = [f for f in _flags(store, "ppo") if f.seed is not None]
    assert [(f.severity, f.seed) for f in found] == [(severity, 0), (severity, 1)]
    assert dict(found[0].figures) == {"broken": len(steps), "logged": 20, "first_step": steps[0]}
    assert (
        f"kl of ppo is NaN or infinite in {len(steps)} of 20 logged steps, from step {steps[0]} on" in found[0].message
    )
    assert not _flags(store, "dpo")


def test_a_final_run_lost_to_nan_is_invalid_and_a_tuning_trial_a_warning(healthy: Store, tmp_path: Path) -> None:
    assert [(f.severity, f.figures["lost"], f.figures["trials"]) for f in _flags(healthy, "ppo")] == [("warning", 1, 4)]

    def of_final(frame: pl.DataFrame) -> pl.DataFrame:
        # The chosen trial of dpo is 1; it has no result since.
        lost = frame.filter(pl.col("recipe") == "dpo").with_columns(
            pl.lit(1, dtype=pl.Int64).alias("trial"),
            pl.lit(1, dtype=pl.Int64).alias("seed"),
            pl.lit("gsm8k: a log-likelihood is nan: the model's weights are broken").alias("message"),
        )
        return pl.concat([frame, lost])

    def never_complete(frame: pl.DataFrame) -> pl.DataFrame:
        gone = (pl.col("recipe") == "dpo") & (pl.col("trial") == 1) & (pl.col("seed") == 1)
        return frame.with_columns(
            pl.when(gone & (pl.col("state") == "complete"))
            .then(pl.lit("failed"))
            .otherwise(pl.col("state"))
            .alias("state")
        )

    store = derive(healthy, tmp_path / "results", {"failure_events": of_final, "trial_events": never_complete})
    (found,) = _flags(store, "dpo")
    assert (found.severity, found.seed) == ("invalid", 1)
    assert "a log-likelihood is nan" in found.message


def test_a_failure_for_another_reason_is_none_of_this_gate(healthy: Store) -> None:
    # dpo's failed trial: "the loss has no gradient".
    assert not _flags(healthy, "dpo")


def test_scores_that_are_no_numbers_are_invalid(healthy: Store) -> None:
    # The store takes none in; the rows are broken after they were read.
    evidence = read_evidence(healthy, SWEEP)
    one = next(a for a in evidence.asked if a.recipe == "dpo" and a.task == "mmlu")
    rows = one.seeds[1].with_columns(
        pl.when(pl.int_range(pl.len()) < 3).then(float("nan")).otherwise(pl.col("score")).alias("score")
    )
    broken = dataclasses.replace(one, seeds={0: one.seeds[0], 1: rows})
    found = [f for f in not_a_number(dataclasses.replace(evidence, asked=[broken])) if f.task == "mmlu"]
    assert [(f.severity, f.seed, dict(f.figures)) for f in found] == [("invalid", 1, {"broken": 3, "scores": 40})]
