"""Results as lm-eval writes them: our own import takes them, and finds what was measured."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.foreign import import_lm_eval
from harness.publish import publish, verify
from harness.report import compare
from harness.store import Store
from tests.publish.conftest import NOW
from tests.publish.exports import copied, signed
from tests.report.stores import Change, derive
from tests.store.scenario import SWEEP


def _folder(site: Path, recipe: str, seed: int = 0) -> Path:
    rows = json.loads((site / "data/entries.json").read_text())
    key = next(r["entry"] for r in rows if (r["recipe"], r["target"]) == (recipe, "cpu-fp32"))
    return Path(site / f"lm-eval/{key}/seed-{seed}")


def _results(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("results_*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_layout_and_figures(export: Path) -> None:
    folder = _folder(export, "ppo")
    assert sorted(p.name.partition("_2026")[0] for p in folder.iterdir()) == [
        *("results", "samples_gsm8k", "samples_hellaswag", "samples_mmlu", "samples_truthfulqa_mc2")
    ]
    both = [_results(_folder(export, "ppo", seed)) for seed in (0, 1)]
    board = {(r["task"], r["metric"]): r for r in both[0]["posttrain_harness"]["figures_over_all_seeds"]}
    strict = [found["results"]["gsm8k"]["exact_match,strict-match"] for found in both]
    assert strict[0] != strict[1]
    assert sum(strict) / 2 == pytest.approx(board["gsm8k", "exact_match_strict"]["value"], rel=1e-12)
    of_board = json.loads((export / "data/entries.json").read_text())
    published = next(r for r in of_board if (r["recipe"], r["target"], r["metric"]) == ("ppo", "cpu-fp32", "acc_norm"))
    assert board["hellaswag", "acc_norm"] == {c: published[c] for c in board["hellaswag", "acc_norm"]}
    # lm-eval's own standard error of a mean of zeros and ones over n documents.
    p, n = both[0]["results"]["mmlu"]["acc,none"], both[0]["n-samples"]["mmlu"]["effective"]
    assert both[0]["results"]["mmlu"]["acc_stderr,none"] == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))
    assert both[0]["n-shot"]["mmlu"] == 5


def test_imported_and_compared_with_the_original_nothing_differs(store: Store, export: Path, tmp_path: Path) -> None:
    mine = derive(store, tmp_path / "results", {})
    done = import_lm_eval(_folder(export, "base"), mine, "again")
    assert done.skipped == {}
    assert done.tasks == {"gsm8k": 40, "hellaswag": 40, "mmlu": 40, "truthfulqa_mc2": 40}
    versus = compare(mine, [f"{SWEEP}/base", f"{done.sweep}/again"])
    assert len(versus.rows) == 4
    for row in versus.rows:
        # The interval is never of no width: what so few documents cannot show is no zero.
        assert (row.difference.value, row.changed, row.difference.n) == (0.0, 0.0, 40)


@pytest.mark.parametrize("texts", [True, False])
def test_every_seed_has_the_scores_of_its_own_run(store: Store, tmp_path: Path, texts: bool) -> None:
    site = tmp_path / "site"
    publish(store, [SWEEP], site, texts=texts, now=NOW)
    mine = derive(store, tmp_path / "results", {})
    for seed in (0, 1):
        done = import_lm_eval(_folder(site, "dpo", seed), mine, f"seed{seed}")
        both = mine.query(
            "SELECT t.recipe, m.task, s.document, s.metric, s.score, s.response, s.prompt FROM raw.samples s "
            "JOIN raw.measurements m USING (measurement) "
            "JOIN (SELECT DISTINCT recipe, measurement FROM raw.measurement_links WHERE phase = 'final' AND "
            "(sweep = ? OR (recipe = 'dpo' AND seed = ? AND target = 'cpu-fp32'))) t USING (measurement) "
            "WHERE m.kind = 'task'",
            [done.sweep, seed],
        )
        columns = ["task", "document", "metric", "score", *(["response", "prompt"] if texts else [])]
        # The scenario draws a response for each metric; lm-eval logs one for all of them.
        both = both.filter(pl.col("metric") != "acc_norm")
        of = {recipe: own.select(columns).sort(columns) for (recipe,), own in both.group_by("recipe")}
        ours, theirs = of["dpo"], of[f"seed{seed}"]
        assert ours.height == 200
        assert ours.equals(theirs)
        if not texts:
            found = both.filter(pl.col("recipe") == f"seed{seed}")
            assert set(found["response"]) | set(found["prompt"]) == {""}


def test_subjects_are_tasks_of_a_group(store: Store, tmp_path: Path) -> None:
    """As our own measurements of `mmlu` are: one for each of its subjects."""

    def of_subject(frame: pl.DataFrame) -> pl.DataFrame:
        task = pl.when(pl.col("task") == "mmlu").then(pl.lit("mmlu_anatomy")).otherwise(pl.col("task"))
        return frame.with_columns(task.alias("task"))

    changes: dict[str, Change] = {
        "measurements": of_subject,
        "sweep_events": lambda f: f.with_columns(
            pl.lit(json.dumps({"name": "x", "seeds": [0, 1], "measure": {"tasks": {"mmlu": {}}}})).alias("suite_json")
        ),
    }
    publish(derive(store, tmp_path / "results", changes), [SWEEP], tmp_path / "site", now=NOW)
    found = _results(_folder(tmp_path / "site", "ppo"))
    assert found["group_subtasks"] == {"mmlu": ["mmlu_anatomy"]}
    assert found["results"]["mmlu"]["acc,none"] == found["results"]["mmlu_anatomy"]["acc,none"]
    assert "mmlu" not in found["configs"]
    other = Store(tmp_path / "empty")
    done = import_lm_eval(_folder(tmp_path / "site", "ppo"), other, "p")
    assert "mmlu_anatomy" in done.tasks


def test_a_changed_sample_in_it_is_named(export: Path, tmp_path: Path) -> None:
    copy = copied(export, tmp_path / "copy")
    path = next(_folder(copy, "ppo").glob("samples_mmlu_*"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[1:], lines[0]]) + "\n")
    name = path.relative_to(copy).as_posix()
    said = [str(d) for d in verify(copy)]
    assert any(f"the file {name} was changed (sha256)" in s for s in said)
    assert f"the file {name} is not what the data give" in [str(d) for d in verify(signed(copy))]


def test_readers_of_lm_eval_take_it(export: Path) -> None:
    """lm-eval's own table, and the converter of Every Eval Ever where it is installed."""
    from lm_eval.utils import make_table

    found = _results(_folder(export, "ppo"))
    table = make_table(found)
    assert f"{found['results']['hellaswag']['acc_norm,none']:.4f}" in table
    assert "strict-match" in table
    converter = pytest.importorskip("every_eval_ever.converters.lm_eval.adapter").LMEvalAdapter()
    about = {"source_organization_name": "x", "evaluator_relationship": "first_party", "parent_eval_output_dir": "x"}
    logs = converter.transform_from_directory(_folder(export, "ppo"), {**about, "file_uuids": None})
    values = {log.evaluation_results[0].evaluation_name: log.evaluation_results[0].score_details.score for log in logs}
    assert values["mmlu"] == found["results"]["mmlu"]["acc,none"]
    assert len(values) == 4
