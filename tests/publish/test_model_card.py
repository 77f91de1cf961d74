"""The model card and `.eval_results`, read back by huggingface_hub itself."""

import html
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from huggingface_hub import ModelCard, metadata_load, parse_eval_result_entries
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from ruamel.yaml import YAML

from harness.publish import publish, verify
from harness.publish._markdown import cell, fence
from harness.store import Store
from tests.publish.conftest import NOW
from tests.publish.exports import copied, signed
from tests.report.stores import Change, derive
from tests.report.test_page import HOSTILE
from tests.store.scenario import MODEL, SWEEP


def _rows(site: Path, recipe: str) -> tuple[str, list[dict[str, Any]]]:
    rows = [r for r in json.loads((site / "data/entries.json").read_text()) if r["target"] == "cpu-fp32"]
    mine = [r for r in rows if r["recipe"] == recipe]
    return mine[0]["entry"], mine


def test_reads_back_as_the_figures_of_the_board(export: Path) -> None:
    key, rows = _rows(export, "ppo")
    path = export / f"hub/{key}/README.md"
    card = ModelCard.load(path)
    found = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {(r["task"], r["metric"]): r["value"] for r in rows if r["task"] != "profile"}
    assert len(found) > 8
    # Saving what was read changes nothing, and the index is the one that the Hub's library makes.
    assert str(card) == path.read_text(encoding="utf-8")
    (index,) = (metadata_load(path) or {})["model-index"]
    name, results = model_index_to_eval_results([index])
    assert eval_results_to_model_index(name, results) == [index]
    # The bundled name is no id on the Hub.
    assert card.data.base_model is None


def test_says_method_settings_command_and_intervals(export: Path) -> None:
    key, rows = _rows(export, "ppo")
    text = html.unescape(ModelCard.load(export / f"hub/{key}/README.md").text)
    command = "harness sweep dpo_vs_ppo.yaml"
    for said in ("sft → reward_model → ppo", MODEL, "ppo.kl_coef", command, f"models: [{MODEL}]"):
        assert said in text
    gold = next(r for r in rows if r["metric"] == "gold_reward")
    assert f"{gold['value']:.3f} [{gold['low']:.3f}, {gold['high']:.3f}]" in text


def test_nothing_is_claimed_on_the_hub_for_bundled_sets(export: Path) -> None:
    assert not list(export.rglob(".eval_results"))


@pytest.fixture(scope="module")
def of_the_hub(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As if a model of the Hub had been measured on the Hub's documents."""
    folder = tmp_path_factory.mktemp("hub")

    def named(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.lit("org/tiny-1B").alias("model"))

    changes: dict[str, Change] = dict.fromkeys(("trial_events", "stage_links", "measurement_links"), named)
    for table in ("sweep_events", "measurements"):
        changes[table] = lambda f: f.with_columns(pl.lit("hub").alias("data"))
    publish(derive(store, folder / "results", changes), [SWEEP], folder / "site", now=NOW)
    assert verify(folder / "site") == []
    return folder / "site"


def test_eval_results_name_the_hubs_datasets(of_the_hub: Path) -> None:
    key, rows = _rows(of_the_hub, "ppo")
    files = sorted((of_the_hub / f"hub/{key}/.eval_results").iterdir())
    assert [f.name for f in files] == ["gsm8k.yaml", "hellaswag.yaml", "mmlu.yaml", "truthfulqa_mc2.yaml"]
    by_task = {e.task_id: e for f in files for e in parse_eval_result_entries(YAML(typ="safe").load(f.read_text()))}
    assert by_task["mmlu"].dataset_id == "cais/mmlu"
    assert by_task["gsm8k"].dataset_id == "openai/gsm8k"
    # Where a task has several metrics, the one that stands for it is named.
    for task, metric in (("mmlu", "acc"), ("hellaswag", "acc_norm"), ("gsm8k", "exact_match_flexible")):
        row = next(r for r in rows if (r["task"], r["metric"]) == (task, metric))
        assert by_task[task].value == row["value"]
        notes = str(by_task[task].notes)
        assert notes.startswith(metric)
        assert f"{row['n']} documents (a part of the benchmark)" in notes
        assert f"{row['low']:.4f} to {row['high']:.4f}" in notes
    assert "5-shot" in str(by_task["mmlu"].notes)
    card = ModelCard.load(of_the_hub / f"hub/{key}/README.md")
    assert card.data.base_model == "org/tiny-1B"
    assert {r.dataset_type for r in card.data.eval_results if r.dataset_config == "mmlu"} == {"cais/mmlu"}
    base, _ = _rows(of_the_hub, "base")
    assert ModelCard.load(of_the_hub / f"hub/{base}/README.md").data.base_model is None


def test_a_changed_figure_in_a_card_is_named(export: Path, tmp_path: Path) -> None:
    copy = copied(export, tmp_path / "copy")
    key, rows = _rows(export, "dpo")
    path = copy / f"hub/{key}/README.md"
    value = repr(next(r["value"] for r in rows if r["metric"] == "gold_reward"))
    assert value in path.read_text()
    path.write_text(path.read_text().replace(value, "0.99"))
    found = verify(signed(copy))
    assert f"the file hub/{key}/README.md is not what the data give" in [str(d) for d in found]
    (one,) = [d for d in found if d.what == f"value in hub/{key}/README.md"]
    assert (one.metric, one.published, one.recomputed) == ("gold_reward", "0.99", value)
    path.write_text("---\n: [\n---\n")
    assert any(f"the file hub/{key}/README.md cannot be read (ValueError" in str(d) for d in verify(signed(copy)))


def test_text_in_markdown_is_text() -> None:
    for text in (HOSTILE, "[a](javascript:x) | ![i](http://x) `c` **b** <img src=x> @all www.x.org", "a\n# b"):
        shown = cell(text)
        assert html.unescape(shown) == " ".join(text.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").split())
        assert not set(shown) & set("[]|`*<>@\n")
    assert "www." not in cell("www.x.org")
    assert fence("a\n````\nb").splitlines() == ["`````", "a", "````", "b", "`````"]
