"""The public views on the shared scenario, each against a figure worked out another way."""

import dataclasses
import math
import statistics
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pytest

from harness.errors import UserError
from harness.execute._generations import generation_rows
from harness.method import Record, RecordKind
from harness.store import TABLES, VIEWS, Store
from tests.report.stores import derive
from tests.store.scenario import SCRIPT, SEEDS, SWEEP, build_scenario


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build_scenario(tmp_path_factory.mktemp("scenario"))


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_has_the_columns_it_documents(store: Store, name: str) -> None:
    frame = store.query(f"FROM {name}")
    assert frame.columns == list(VIEWS[name].columns)
    assert frame.height > 0 or name in ("rungs", "noise", "requests", "forgetting", "generations")
    told = store.query("SELECT column_name, description FROM dictionary WHERE view_name = ?", [name]).rows()
    assert dict(told) == {None: VIEWS[name].description} | VIEWS[name].columns


def test_a_suite_shows_its_latest_state(store: Store) -> None:
    assert store.query("SELECT sweep, state FROM suites").rows() == [(SWEEP, "complete")]


def test_a_trial_shows_its_latest_state_and_settings(store: Store) -> None:
    rows = store.query("SELECT recipe, trial, state FROM trials WHERE phase = 'tune' ORDER BY ALL").rows()
    assert rows == [
        *[("dpo", t, "complete") for t in range(3)],
        ("dpo", 3, "failed"),
        *[("ppo", t, "complete") for t in range(3)],
        ("ppo", 3, "infeasible"),
    ]
    final = store.query("SELECT recipe, seed FROM trials WHERE phase = 'final' AND state = 'complete' ORDER BY ALL")
    assert final.rows() == [(r, s) for r in ("base", "dpo", "ppo") for s in SEEDS]
    beta = "SELECT DISTINCT settings->>'$.\"dpo.beta\"' FROM trials WHERE recipe = 'dpo' AND phase = 'final'"
    assert store.query(beta).rows() == [("0.1",)]


def test_events_of_the_same_instant_are_settled_by_the_order_of_writing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    at = datetime(2026, 3, 1, tzinfo=UTC)
    row: dict[str, object] = dict.fromkeys(("objectives", "artifact", "reward_artifact", "seconds"))
    row |= {"sweep": "w", "recipe": "r", "model": "m", "trial": 0, "seed": 0, "phase": "tune", "settings": {}, "at": at}
    store.append("trial_events", [row | {"state": "running"}, row | {"state": "failed"}])
    store.append("trial_events", [row | {"state": "running"}, row | {"state": "complete"}])
    store.ingest()
    assert store.query("SELECT state FROM trials").rows() == [("complete",)]
    store.rebuild()
    assert store.query("SELECT state FROM trials").rows() == [("complete",)]


def test_scores_are_means_with_their_standard_error(store: Store) -> None:
    where = "recipe = 'ppo' AND phase = 'final' AND seed = 1 AND target = 'cpu-fp32' AND metric = 'gold_reward'"
    (row,) = store.query(f"FROM scores WHERE {where}").to_dicts()
    scores = [
        r[0]
        for r in store.query(
            "SELECT score FROM samples WHERE measurement = ? AND metric = 'gold_reward'", [row["measurement"]]
        ).rows()
    ]
    assert row["n"] == len(scores) == 40
    assert row["value"] == pytest.approx(statistics.fmean(scores))
    assert row["stderr"] == pytest.approx(statistics.stdev(scores) / math.sqrt(40))
    assert (row["task"], row["split"]) == ("gold", "final")
    assert "not the official" in row["data"]


def test_scores_have_one_row_for_each_run_and_figure(store: Store) -> None:
    key = "sweep, recipe, model, trial, seed, phase, split, target, task, metric"
    assert store.query(f"SELECT count(*) FROM scores GROUP BY {key} HAVING count(*) > 1").height == 0
    tasks = store.query("SELECT DISTINCT task, metric FROM scores WHERE recipe = 'base' ORDER BY ALL").rows()
    assert tasks == [
        ("gold", "gold_reward"),
        ("gold", "kl"),
        ("gold", "length"),
        ("gsm8k", "exact_match_flexible"),
        ("gsm8k", "exact_match_strict"),
        ("hellaswag", "acc"),
        ("hellaswag", "acc_norm"),
        ("judge", "harmlessness"),
        ("judge", "helpfulness"),
        ("mmlu", "acc"),
        ("truthfulqa_mc2", "acc"),
    ]


def test_tuning_sees_the_tuning_half_only(store: Store) -> None:
    assert store.query("SELECT DISTINCT phase, split FROM scores ORDER BY ALL").rows() == [
        ("final", "final"),
        ("tune", "tune"),
    ]


def test_several_judges_are_averaged_by_document_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    at = datetime(2026, 3, 1, tzinfo=UTC)
    run = {"sweep": "w", "recipe": "r", "model": "m", "trial": 0, "seed": 0, "phase": "final"}
    vote = {"measurement": "k", "half": "final", "aspect": "helpfulness", "verdict": "5", "probabilities": {"5": 1.0}}
    vote |= dict.fromkeys(("prompt", "response", "judge_prompt"), "text")
    vote |= dict.fromkeys(("judge_key", "turn", "category", "words", "cost"))
    votes = [("d1", "a", 2.0), ("d1", "b", 4.0), ("d2", "a", 9.0)]
    store.append_many(
        {
            "measurement_links": [run | {"artifact": "x", "target": "t", "measurement": "k"}],
            "measurements": [
                {"measurement": "k", "artifact": "x", "target": {}, "kind": "judge", "task": "chat", "settings": {}}
                | {"data": "bundled", "seconds": 1.0, "environment": "e", "at": at}
            ],
            "judge_votes": [vote | {"document": d, "judge": j, "score": s} for d, j, s in votes],
        }
    )
    store.ingest()
    assert store.query("SELECT task, metric, value, n FROM scores").rows() == [("judge", "helpfulness", 6.0, 2)]


def test_forgetting_goes_by_the_chosen_trials_newest_measurement_of_each_step(tmp_path: Path) -> None:
    store = Store(tmp_path)
    at = datetime(2026, 3, 1, tzinfo=UTC)
    row: dict[str, object] = dict.fromkeys(("objectives", "artifact", "reward_artifact", "seconds"))
    row |= {"sweep": "w", "recipe": "r", "model": "m", "seed": 0, "phase": "final", "settings": {}, "at": at}

    def measured(trial: int, key: str, step: int, losses: list[float], task: str = "domain.law") -> None:
        link = {"sweep": "w", "recipe": "r", "model": "m", "trial": trial, "seed": 0, "position": step}
        link |= {"step": "sft" if step else "base", "artifact": f"x{step}", "target": "t", "measurement": key}
        about = {"measurement": key, "artifact": f"x{step}", "target": {}, "kind": "domain", "task": task}
        about |= {"settings": {}, "data": "bundled", "seconds": 1.0, "environment": "e", "at": at}
        sample = {"measurement": key, "prompt_hash": "h", "response": None, "expected": "e", "prompt": "p"}
        rows = [
            sample | {"document": f"d{n}", "half": half, "metric": "loss", "score": value}
            for n, value in enumerate(losses)
            for half in ("final", "tune")
        ]
        store.append_many({"step_links": [link], "measurements": [about], "samples": rows})

    store.append("trial_events", [row | {"trial": 0, "state": "complete"}])
    measured(0, "old", 1, [9.0])
    store.append("trial_events", [row | {"trial": 1, "state": "complete"}])
    measured(1, "start", 0, [3.0, 4.0])
    measured(1, "before", 1, [5.0, 5.0])
    measured(1, "after", 1, [1.0, 2.0])
    store.ingest()
    found = store.query("SELECT trial, step, step_name, domain, metric, value, n FROM forgetting ORDER BY step").rows()
    assert found == [(1, 0, "base", "law", "loss", 3.5, 2), (1, 1, "sft", "law", "loss", 1.5, 2)]


def test_samples_keep_what_the_model_said(store: Store) -> None:
    said = store.query("SELECT count(*) FROM samples WHERE response LIKE ?", [f"%{SCRIPT}%"]).item()
    assert said > 0


def test_profiles_are_percentiles_over_repeats(store: Store) -> None:
    which = "metric = 'tpot_ms' AND setting = 'batch=8'"
    (row,) = store.query(f"FROM profiles WHERE target = 'cpu-bf16' AND {which} ORDER BY artifact LIMIT 1").to_dicts()
    values = [
        r[0]
        for r in store.query(
            f"SELECT value FROM raw.profile_samples WHERE measurement = ? AND {which}", [row["measurement"]]
        ).rows()
    ]
    assert row["n"] == len(values) == 5
    assert row["value"] == pytest.approx(np.median(values))
    assert (row["low"], row["high"]) == (min(values), max(values))
    # Five repeats hold no tail.
    assert [row[name] for name in ("p90", "p95", "p99")] == [None] * 3


def test_a_tail_is_shown_from_the_repeats_that_hold_it(store: Store, tmp_path: Path) -> None:
    def repeated(frame: pl.DataFrame) -> pl.DataFrame:
        first = frame.filter((pl.col("metric") == "tpot_ms") & (pl.col("repeat") == 0))
        return pl.concat([first.with_columns(pl.lit(i).alias("repeat"), pl.col("value") + i) for i in range(90)])

    (row, *_) = derive(store, tmp_path / "results", {"profile_samples": repeated}).query("FROM profiles").to_dicts()
    assert row["n"] == 90
    assert (row["p90"] - row["low"], row["p95"] - row["low"]) == pytest.approx((80.1, 84.55))
    assert row["p99"] is None


def test_training_follows_the_stages_of_each_run(store: Store) -> None:
    final = store.query("SELECT DISTINCT method, metric FROM training WHERE recipe = 'ppo' AND phase = 'final'").rows()
    assert {m for method, m in final if method == "ppo"} == {"loss", "reward", "kl", "entropy"}
    assert {method for method, _ in final} == {"sft", "reward_model", "ppo"}
    failed = "SELECT max(step) FROM training WHERE recipe = 'dpo' AND trial = 3 AND method = 'dpo'"
    assert store.query(failed).item() == 7
    key = "sweep, recipe, trial, seed, stage, step, metric"
    assert store.query(f"SELECT count(*) FROM training GROUP BY {key} HAVING count(*) > 1").height == 0


def test_a_stage_trained_again_has_one_curve(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = {"sweep": "w", "recipe": "r", "model": "m", "trial": 0, "seed": 0}
    store.append("stage_links", [run | {"position": 0, "step": "sft", "stage": "s", "reused": False}])
    for value in (3.0, 2.0):
        store.append("training_steps", [{"stage": "s", "step": 1, "metric": "loss", "value": value}])
    store.ingest()
    # Its row in `stages` is that of the first time, too.
    assert store.query("SELECT phase, value FROM training").rows() == [("tune", 3.0)]


def test_a_stage_that_was_stopped_shows_how_far_it_came_until_it_completes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = {"sweep": "w", "recipe": "r", "model": "m", "trial": 0, "seed": 0}
    why = {"kind": "pruned", "message": "m", "traceback": "t", "at": "2026-03-01T00:00:00+00:00", "stage": "s"}
    empty = dict.fromkeys(("measurement", "peak_mb", "step", "seconds", "command"))
    store.append("failure_events", [{**run, **why, **empty}])

    def trained(steps: int, *, finished: bool) -> None:
        curve = "s" if finished else f"s/{steps}"
        about = {"curve": curve, "stage": "s", "method": "sft", "metric": "loss", "total": 5, "logged": steps}
        rows = [{"stage": "s", "step": i + 1, "metric": "loss", "value": float(i)} for i in range(steps)]
        own = {"training_steps": rows} if finished else {"unfinished_steps": [{"curve": curve, **r} for r in rows]}
        store.append_many({"training_curves": [about | {"finished": finished}], **own})
        store.ingest()

    shown = "SELECT method, max(step), count(*) FROM training GROUP BY ALL"
    for steps, longest in ((2, 2), (4, 4), (3, 4), (4, 4)):
        trained(steps, finished=False)
        assert store.query(shown).rows() == [("sft", longest, longest)]
    trained(5, finished=True)
    assert store.query(shown).rows() == [("sft", 5, 5)]


def test_what_was_said_while_making_data_stands_under_every_run_that_used_it(store: Store, tmp_path: Path) -> None:
    # The stage that both recipes share, as if it had made a dataset.
    links = store.query("SELECT DISTINCT recipe, trial, seed, position, stage FROM lineage WHERE step = 'sft'")
    stage = links.filter(seed=1)["stage"][0]
    record = Record(3, 1, "revision", "Why?", "Because.", principle="Be kind.", by="judge", score=0.5, kept=True)
    other = derive(store, tmp_path / "results", {})
    for text in ("Because.", "the same stage, computed once more: its rows are left out"):
        other.append("generations", generation_rows(stage, [dataclasses.replace(record, text=text)]))
    other.ingest()
    found = other.query("SELECT recipe, trial, seed, position, phase, step FROM generations ORDER BY ALL").rows()
    assert found == [("dpo", 1, 1, 0, "final", "sft"), ("ppo", 2, 1, 0, "final", "sft")]
    said = (
        'SELECT DISTINCT stage, "row", turn, kind, prompt, "text", principle, scored_by, score, kept FROM generations'
    )
    assert other.query(said).rows() == [(stage, 3, 1, "revision", "Why?", "Because.", "Be kind.", "judge", 0.5, True)]


def test_the_store_knows_every_kind_of_thing_said() -> None:
    (kind,) = (c for c in TABLES["generations"].columns if c.name == "kind")
    assert set(kind.choices) == set(get_args(RecordKind))


def test_a_score_that_is_none_is_refused(tmp_path: Path) -> None:
    rows = generation_rows("s", [Record(0, 0, "sample", "p", "t", score=math.nan, kept=False)])
    with pytest.raises(UserError, match=r"generations.score, row 0: expected a finite number"):
        Store(tmp_path).append("generations", rows)


def test_lineage_knows_what_was_shared(store: Store) -> None:
    rows = store.query("SELECT recipe, trial, reused FROM lineage WHERE step = 'sft' AND seed = 0 ORDER BY ALL").rows()
    assert rows[0] == ("dpo", 0, False)
    assert all(reused for recipe, trial, reused in rows if (recipe, trial) != ("dpo", 0))


def test_failures_keep_their_reason(store: Store) -> None:
    rows = store.query("SELECT recipe, kind, traceback FROM failures ORDER BY recipe").rows()
    assert [r[:2] for r in rows] == [("dpo", "failed"), ("ppo", "infeasible")]
    assert "RuntimeError" in rows[0][2]


def test_ratings_are_those_of_the_latest_submission_of_a_form(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row: dict[str, object] = dict.fromkeys(TABLES["human_ratings"].names)
    row |= {"sweep": "w", "study": "p", "form": "f", "item": "i", "rater": "r", "document": "d", "shown": 1}
    row |= {"at": datetime(2026, 3, 1, tzinfo=UTC), "criterion": "helpfulness", "kind": "rating"}
    check = row | {"kind": "check", "document": None, "criterion": None}
    for submission, score, passed in (("first", 2, False), ("second", 6, True)):
        whole = {"submission": submission}
        store.append("human_ratings", [row | whole | {"score": score}, check | whole | {"passed": passed}])
    # The same file once more: its digest owns its rows.
    store.append("human_ratings", [row | {"submission": "first", "score": 1}])
    store.append("human_ratings", [row | {"submission": "third", "rater": "s", "score": 3}])
    store.ingest()
    found = "SELECT rater, score, checks, checks_failed FROM ratings ORDER BY ALL"
    assert store.query(found).rows() == [("r", 6, 1, 0), ("s", 3, 0, 0)]
    assert store.query("SELECT count(*) FROM raw.human_ratings WHERE rater = 'r'").item() == 4


def test_people_have_rated_every_recipe_in_the_scenario(store: Store) -> None:
    found = "SELECT DISTINCT rater, checks, checks_failed FROM ratings ORDER BY ALL"
    assert store.query(found).rows() == [("ann", 1, 0), ("bea", 1, 0), ("cy", 1, 1)]
    joined = "SELECT count(*) FROM ratings r JOIN judgements j USING (measurement, document) WHERE r.recipe = 'ppo'"
    assert store.query(joined).item() > 0
