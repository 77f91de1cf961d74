"""A recipe against the one it begins with, recipes that run elsewhere, and what was left out or cost memory."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from harness.report._compare import against_origin, estimate
from harness.report._page import page
from harness.report._plot import Figure
from harness.report._queries import Facts, read_facts
from harness.report._tables import recipe_table
from harness.report._training_cost import training_cost
from harness.report._variants import variants
from harness.report._words import words
from harness.store import Store
from tests.report.stores import Change, derive
from tests.store.scenario import SWEEP

RECIPES = {"dpo": [{"dpo": {}}], "ppo": [{"use": "dpo"}, {"ppo": {}}]}
TARGETS = [{"name": "cpu-fp32"}, {"name": "cpu-bf16", "dtype": "bfloat16"}]


def _suite(**changes: object) -> Change:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        whole = [json.dumps({**json.loads(text), **changes}) for text in frame["suite_json"]]
        return frame.with_columns(pl.Series("suite_json", whole))

    return change


def _of(store: Store, recipe: str, target: str) -> list[str]:
    found = store.query(
        "SELECT DISTINCT measurement FROM raw.measurement_links WHERE recipe = ? AND target = ?", [recipe, target]
    )
    return [str(m) for m in found["measurement"]]


@pytest.fixture
def chained(store: Store, tmp_path: Path) -> Facts:
    """PPO begins with DPO, takes half its time on cpu-fp32, and scores 0.1 lower on every document."""
    faster = pl.col("measurement").is_in(_of(store, "ppo", "cpu-fp32"))
    halved = pl.when(faster & (pl.col("metric") == "e2e_ms")).then(pl.col("value") * 0.5).otherwise(pl.col("value"))
    lower = pl.when(pl.col("measurement").is_in(_of(store, "ppo", "cpu-fp32"))).then(pl.col("score") - 0.1)
    changes: dict[str, Change] = {
        "sweep_events": _suite(recipes=RECIPES, targets=TARGETS),
        "profile_samples": lambda f: f.with_columns(halved.alias("value")),
        "samples": lambda f: f.with_columns(lower.otherwise(pl.col("score")).alias("score")),
    }
    return read_facts(derive(store, tmp_path / "results", changes), SWEEP)


def _rows(facts: Facts) -> dict[tuple[str, str, str], dict[str, object]]:
    made = variants(facts)
    assert isinstance(made, Figure)
    headers = made.numbers.headers
    return {(str(r[0]), str(r[1]), str(r[2])): dict(zip(headers, r, strict=True)) for r in made.numbers.rows}


def _ratio(text: object) -> tuple[float, ...]:
    return tuple(float(part) for part in str(text).replace("[", "").replace("]", "").replace(",", "").split())


def test_a_ratio_is_over_the_recipe_it_begins_with_on_the_same_target(chained: Facts) -> None:
    rows = _rows(chained)
    assert set(rows) == {(r, o, t["name"]) for r, o in (("dpo", "base"), ("ppo", "dpo")) for t in TARGETS}
    value, low, high = _ratio(rows["ppo", "dpo", "cpu-fp32"]["speed-up of a request, ×"])
    assert low < value < high
    assert value == pytest.approx(2, rel=0.1)
    assert _ratio(rows["ppo", "dpo", "cpu-bf16"]["speed-up of a request, ×"])[0] == pytest.approx(1, rel=0.1)
    # One figure of each has no spread.
    assert rows["ppo", "dpo", "cpu-fp32"]["weights in memory, ×"] == "1.000"
    assert rows["ppo", "dpo", "cpu-fp32"]["weights on disk, ×"] is None


def test_quality_is_compared_with_the_recipe_it_begins_with(chained: Facts) -> None:
    found = against_origin(chained)
    assert {(c.a.label, c.b.label) for c in found} == {("ppo", "dpo")}
    benchmarks = [c for c in found if c.what not in ("helpfulness", "harmlessness")]
    assert len(benchmarks) == 4
    assert all(c.difference.n > 0 for c in found)
    assert all(c.difference.value < 0 for c in benchmarks)


def test_a_recipe_that_runs_elsewhere_is_compared_by_its_own_target(store: Store, tmp_path: Path) -> None:
    gone = _of(store, "ppo", "cpu-fp32")
    moved: Change = lambda f: f.filter(~pl.col("measurement").is_in(gone))  # noqa: E731  # a change is a function
    changes: dict[str, Change] = {
        "sweep_events": _suite(targets=TARGETS),
        **dict.fromkeys(("measurement_links", "measurements", "samples", "judge_votes", "profile_samples"), moved),
    }
    facts = read_facts(derive(store, tmp_path / "results", changes), SWEEP)
    assert {c.label: facts.target_of(c) for c in facts.contenders} == {
        "base": "cpu-fp32",
        "dpo": "cpu-fp32",
        "ppo": "cpu-bf16",
    }
    assert ("ppo", "base", "cpu-bf16") in _rows(facts)
    ppo = next(c for c in facts.contenders if c.label == "ppo")
    assert estimate(facts, ppo, "gold", "gold_reward") is not None
    assert estimate(facts.on_target("cpu-fp32"), ppo, "gold", "gold_reward") is None
    assert "of ppo on cpu-bf16" in recipe_table(facts)


def test_an_export_is_held_against_what_it_was_made_from_where_that_runs(store: Store, tmp_path: Path) -> None:
    gone = [*_of(store, "base", "cpu-bf16"), *_of(store, "dpo", "cpu-bf16"), *_of(store, "ppo", "cpu-fp32")]
    moved: Change = lambda f: f.filter(~pl.col("measurement").is_in(gone))  # noqa: E731  # a change is a function
    changes = {"sweep_events": _suite(targets=TARGETS), "measurement_links": moved, "profile_samples": moved}
    rows = _rows(read_facts(derive(store, tmp_path / "results", changes), SWEEP))
    assert set(rows) == {("dpo", "base", "cpu-fp32"), ("ppo", "base on cpu-fp32", "cpu-bf16")}
    assert _ratio(rows["ppo", "base on cpu-fp32", "cpu-bf16"]["speed-up of a request, ×"])[0] == pytest.approx(
        2, rel=0.1
    )


def test_a_step_that_shares_its_profile_gave_nothing(store: Store, tmp_path: Path) -> None:
    shared = {m: _of(store, "base", t) for t in ("cpu-fp32", "cpu-bf16") for m in _of(store, "dpo", t)}
    profiled = store.query("SELECT DISTINCT measurement FROM raw.profile_samples")["measurement"].to_list()
    names = {own: next(m for m in base if m in profiled) for own, base in shared.items() if own in profiled}
    renamed: Change = lambda f: f.with_columns(pl.col("measurement").replace(names))  # noqa: E731  # a change is a function
    gone: Change = lambda f: f.filter(~pl.col("measurement").is_in(list(names)))  # noqa: E731  # the same
    changes = {"measurement_links": renamed, "profile_samples": gone, "measurements": gone}
    rows = _rows(read_facts(derive(store, tmp_path / "results", changes), SWEEP))
    assert {r[0] for r in rows} == {"ppo"}


def test_another_sweeps_profiles_stay_out(store: Store, tmp_path: Path) -> None:
    def other(frame: pl.DataFrame) -> pl.DataFrame:
        mine = (pl.col("sweep") == SWEEP) & (pl.col("target") == "cpu-bf16")
        return frame.with_columns(
            pl.when(mine).then(pl.lit("another-0")).otherwise(pl.col("sweep")).alias("sweep"),
            pl.when(mine).then(pl.lit("theirs")).otherwise(pl.col("target")).alias("target"),
        )

    facts = read_facts(derive(store, tmp_path / "results", {"measurement_links": other}), SWEEP)
    assert set(facts.profiles["target"]) == set(facts.repeats["target"]) == {"cpu-fp32"}


def test_what_this_machine_lacks_is_said(store: Store, tmp_path: Path) -> None:
    plan = {"skipped": {"cuda-trt": "needs a CUDA device; torch sees none"}, "unmeasured": ["to_phone"]}
    changes: dict[str, Change] = {"sweep_events": lambda f: f.with_columns(pl.lit(json.dumps(plan)).alias("plan_json"))}
    facts = read_facts(derive(store, tmp_path / "results", changes), SWEEP)
    said = words(facts).text()
    assert "Left out on this machine: target cuda-trt (needs a CUDA device; torch sees none); recipe to_phone (" in said
    assert "Left out" not in words(read_facts(store, SWEEP)).text()


def test_the_memory_of_training_stands_beside_its_settings(store: Store, tmp_path: Path) -> None:
    assert training_cost(read_facts(store, SWEEP)) is None
    metrics = {"step_ms": 1234.5, "train_peak_mb": 678.9, "optimizer_state_mb": 0.25}
    metrics |= {"trained_parameters": 4884480.0, "train_flops": 1.5e12}
    params = {"batch_size": 4, "gradient_checkpointing": True, "optimizer": "adafactor", "lora_rank": 0}
    params |= {"adapter": "dora"}

    def measured(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(
            pl.lit(json.dumps(metrics)).alias("metrics"), pl.lit(json.dumps(params)).alias("params")
        )

    derived = derive(store, tmp_path / "results", {"stages": measured})
    found = str(training_cost(read_facts(derived, SWEEP)))
    for part in ("1234.5", "678.9", "gradient_checkpointing on", "optimizer adafactor", "adapter dora"):
        assert part in found
    for part in ("weights trained", "4,884,480", "operations of training, 10¹²", "1.500"):
        assert part in found
    assert "lora_rank" not in found
    assert "GPU peak" not in found
    import datetime

    whole = page(
        derived,
        read_facts(derived, SWEEP),
        found=None,
        samples=4,
        now=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    )
    assert "What training took" in whole


def test_training_with_rounded_weights_is_held_against_rounding_at_the_same_bits(store: Store, tmp_path: Path) -> None:
    def steps(names: dict[str, str]) -> Change:
        renamed = pl.col("step").replace(names)
        return lambda f: f.with_columns(
            pl.when(pl.col("recipe") == "ppo")
            .then(renamed)
            .otherwise(pl.col("step"))
            .replace({"dpo": "quantize"})
            .alias("step")
        )

    def grid(**other: object) -> Change:
        def change(frame: pl.DataFrame) -> pl.DataFrame:
            own = {"scheme": "int4_weight_only", "group_size": 64, "granularity": None}
            texts = [json.dumps({**own, **(other if m == "ppo" else {})}) for m in frame["method"]]
            return frame.with_columns(pl.Series("params", texts))

        return change

    def said(where: str, **other: object) -> str:
        changes = {"stage_links": steps({"ppo": "qat"}), "stages": grid(**other)}
        return words(read_facts(derive(store, tmp_path / where, changes), SWEEP)).text()

    assert re.search(
        r"At the same bits \(scheme int4_weight_only, group_size 64\) "
        r"(ppo beat dpo|the data do not resolve ppo from dpo|ppo did not beat dpo): [+−]\d\.\d+ in gold reward",
        said("equal"),
    )
    assert "same bits" not in said("others", group_size=32)
    assert "same bits" not in words(read_facts(store, SWEEP)).text()
