"""What a sweep as a pilot says of the data that would resolve an effect."""

from pathlib import Path

import polars as pl
import pytest

from harness.errors import UserError
from harness.report import data_needed
from harness.report._needs import SEEDS
from harness.stats import Variances, needed
from harness.store import Store
from tests.report.stores import derive, keep, nothing
from tests.store.scenario import SWEEP


def test_a_smaller_effect_needs_more_and_the_figures_are_those_of_the_pilot(store: Store) -> None:
    coarse, fine = data_needed(store, SWEEP, 0.2), data_needed(store, SWEEP, 0.05)
    assert {(n.a.label, n.b.label) for n in coarse} == {("base", "dpo"), ("base", "ppo"), ("dpo", "ppo")}
    assert {n.what for n in coarse} >= {"mmlu acc", "gold_reward"}
    for easy, hard in zip(coarse, fine, strict=True):
        assert (easy.a, easy.b, easy.what, easy.detectable) == (hard.a, hard.b, hard.what, hard.detectable)
        for seeds in SEEDS:
            many, few = hard.documents[seeds], easy.documents[seeds]
            assert many is None or (few is not None and few < many)
    assert not any(n.assumed for n in coarse)


def test_the_base_model_varies_over_no_seeds(store: Store, tmp_path: Path) -> None:
    # With the same answers of both seeds nothing varies over seeds anywhere, and only documents count.
    def alike(frame: pl.DataFrame) -> pl.DataFrame:
        toss = (pl.col("document").hash(seed=1) % 2).cast(pl.Float64)
        own = (pl.concat_str(pl.col("document"), pl.col("measurement").str.slice(0, 0)).hash(seed=2) % 2).cast(
            pl.Float64
        )
        return frame.with_columns(
            pl.when(pl.col("metric") == "gold_reward").then((toss + own) / 2).otherwise(0.0).alias("score")
        )

    (need,) = (
        n
        for n in data_needed(derive(store, tmp_path, {"samples": alike}), SWEEP, 0.1)
        if (n.a.label, n.b.label, n.what) == ("base", "dpo", "gold_reward")
    )
    # All differ by nothing, of scores in [0, 1]: what Wilson's bound leaves room for, not two documents.
    assert need.unseen
    missed = 1.959964**2 / (need.have + 1.959964**2)
    assert need.documents == needed(0.1, Variances(missed, (0.0, 0.0)), SEEDS)


def test_one_seed_takes_its_variation_from_the_others(store: Store, tmp_path: Path) -> None:
    lone = keep(~((pl.col("recipe") == "dpo") & (pl.col("seed") == 1)))
    found = data_needed(derive(store, tmp_path, {"trial_events": lone, "measurement_links": lone}), SWEEP, 0.1)
    assert {(n.a.label, n.b.label) for n in found if n.assumed} == {("base", "dpo"), ("dpo", "ppo")}


def test_bad_effects_and_no_pilot(store: Store, tmp_path: Path) -> None:
    for effect in (0.0, -0.1, float("inf"), float("nan")):
        with pytest.raises(UserError, match="--effect"):
            data_needed(store, SWEEP, effect)
    empty = derive(store, tmp_path, {"samples": nothing, "judge_votes": nothing})
    with pytest.raises(UserError, match="cannot serve as a pilot"):
        data_needed(empty, SWEEP, 0.1)
