"""What is read from the store to be tracked."""

import itertools
import json
import math
from pathlib import Path

import polars as pl
import pytest

from harness.store import Store
from harness.trackers import TrackedRun
from harness.trackers._protocol import MOST_POINTS
from harness.trackers._runs import model_label, path_part
from tests.report.stores import derive
from tests.store.scenario import MODEL
from tests.trackers.contract import everything


def _run(runs: dict[str, TrackedRun], recipe: str, phase: str, trial: int, seed: int = 0) -> TrackedRun:
    return runs[f"{recipe}/{MODEL}/{phase}-{trial:03d}-seed-{seed}"]


def test_figures_are_those_of_the_views(store: Store) -> None:
    runs = everything(store)
    scores = store.query("SELECT recipe, phase, trial, seed, split, target, task, metric, value FROM scores").rows()
    assert len(scores) > 100
    for recipe, phase, trial, seed, split, target, task, metric, value in scores:
        run = _run(runs, recipe, phase, trial, seed)
        assert run.figures[f"{split}/{target}/{task}/{metric}"] == pytest.approx(value)
    profiles = store.query(
        "SELECT recipe, trial, seed, target, setting, metric, value FROM profiles JOIN trials USING (artifact) "
        "WHERE phase = 'final'"
    ).rows()
    assert len(profiles) > 50
    for recipe, trial, seed, target, setting, metric, value in profiles:
        run = _run(runs, recipe, "final", trial, seed)
        assert run.figures[f"profile/{target}/{setting}/{metric}"] == pytest.approx(value)
    for recipe, trial, objectives in store.query(
        "SELECT recipe, trial, objectives FROM trials WHERE phase = 'tune' AND state = 'complete'"
    ).rows():
        run = _run(runs, recipe, "tune", trial)
        assert run.figures["objective/gold_reward"] == json.loads(objectives)["gold_reward"]


def test_curves_are_those_of_the_view(store: Store) -> None:
    runs = everything(store)
    points = store.query("SELECT recipe, phase, trial, seed, method, metric, step, value FROM training").rows()
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for recipe, phase, trial, seed, method, metric, step, value in points:
        name = f"{recipe}/{MODEL}/{phase}-{trial:03d}-seed-{seed}"
        found.setdefault((name, f"train/{method}/{metric}"), []).append((step, value))
    assert {name.split("/")[0] for name, _ in found} == {"dpo", "ppo"}
    for (name, curve), wanted in found.items():
        assert sorted(runs[name].curves[curve]) == sorted(wanted)


def test_a_group_of_tasks_is_the_mean_over_all_its_documents(store: Store, tmp_path: Path) -> None:
    # Halves of a group of very different size, as subjects of MMLU may be.
    def grouped(frame: pl.DataFrame) -> pl.DataFrame:
        of = pl.when(pl.col("task").is_in(["mmlu", "hellaswag"])).then(pl.lit('{"of": "both"}'))
        return frame.with_columns(settings=of.otherwise(pl.col("settings")))

    def fewer(frame: pl.DataFrame) -> pl.DataFrame:
        keys = store.query("SELECT measurement FROM raw.measurements WHERE task = 'mmlu'")["measurement"].to_list()
        documents = frame.filter(pl.col("measurement").is_in(keys))["document"].unique().sort()[:3].to_list()
        return frame.filter(~pl.col("measurement").is_in(keys) | pl.col("document").is_in(documents))

    other = derive(store, tmp_path / "other", {"measurements": grouped, "samples": fewer})
    run = _run(everything(other), "dpo", "final", 1)
    documents = other.query(
        "SELECT s.score FROM samples s JOIN trials t USING (artifact) WHERE t.recipe = 'dpo' AND t.phase = 'final' "
        "AND t.seed = 0 AND s.target = 'cpu-fp32' AND s.task IN ('mmlu', 'hellaswag') AND s.metric = 'acc'"
    )["score"]
    assert len(documents) == 43
    assert run.figures["final/cpu-fp32/both/acc"] == pytest.approx(documents.mean())
    assert not [name for name in run.figures if "/mmlu/" in name or "/hellaswag/" in name]


def test_long_curves_are_thinned_evenly_and_keep_their_ends(store: Store, tmp_path: Path) -> None:
    own = "recipe = 'dpo' AND step = 'dpo' AND trial = 1 AND seed = 0"
    stage = store.query(f"SELECT DISTINCT stage FROM lineage WHERE {own}")["stage"].item()

    def longer(frame: pl.DataFrame) -> pl.DataFrame:
        steps = range(1, 25_001)
        values = [math.nan if step % 100 == 0 else float(step) for step in steps]
        own = pl.DataFrame({"stage": stage, "step": steps, "metric": "long", "value": values})
        odd = pl.DataFrame({"stage": stage, "step": range(1001), "metric": "odd", "value": 1.0})
        return pl.concat([frame, own.cast(frame.schema), odd.cast(frame.schema)])

    other = derive(store, tmp_path / "other", {"training_steps": longer})
    curves = _run(everything(other), "dpo", "final", 1).curves
    steps = [step for step, _ in curves["train/dpo/long"]]
    assert len(steps) == MOST_POINTS
    assert (steps[0], steps[-1]) == (1, 25_000)
    assert {b - a for a, b in itertools.pairwise(steps)} <= {25, 26}
    assert len(curves["train/dpo/odd"]) == MOST_POINTS
    assert len(curves["train/dpo/loss"]) == 20


def test_settings_are_those_searched_and_those_of_every_stage(store: Store) -> None:
    run = _run(everything(store), "ppo", "tune", 0)
    assert run.settings == {"ppo.kl_coef": 0.2, "ppo.learning_rate": 1e-5}
    assert run.fixed == {"sft.batch_size": 4, "reward_model.batch_size": 4, "ppo.batch_size": 4}
    assert (run.ended - run.began).total_seconds() == run.figures["seconds"]


def test_names_lead_nowhere_and_stay_apart() -> None:
    odd = [
        "../../etc",
        "/srv/a/tiny",
        "/srv/b/tiny",
        "./tiny",
        "org/tiny",
        "tiny",
        "..",
        ".",
        "a b",
        "x" * 300,
        "é/ü",
        "",
    ]
    parts = [path_part(name) for name in odd]
    assert len(set(parts)) == len(odd)
    for part in parts:
        assert part not in ("", ".", "..")
        assert "/" not in part
        assert len(part) < 120
    assert path_part("smollm2-135m-instruct") == "smollm2-135m-instruct"
    assert model_label("org/tiny") == "org/tiny"
    assert model_label("/srv/a/tiny") != model_label("/srv/b/tiny")
    assert "srv" not in model_label("/srv/a/tiny")
