"""Every Eval Ever, held against the package of that project itself."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.publish import publish, verify
from harness.store import Store
from tests.publish.conftest import NOW
from tests.publish.exports import change_json, copied, signed
from tests.report.stores import Change, derive
from tests.store.scenario import SWEEP

eee = pytest.importorskip("every_eval_ever.validator", reason="needs every-eval-ever (see the Makefile)")


def _problems(site: Path) -> list[str]:
    """What the project's own validator says of the folder, as for its datastore: schema, names, places and pairs."""
    root = site / "every-eval-ever"
    files = sorted(p for p in root.rglob("*") if p.is_file())
    assert len(files) == 12
    there = {p.relative_to(root).as_posix(): p for p in files}
    reports = [
        eee.validate_file(
            path,
            repo_path=name,
            available_files=there.keys(),
            read_repo_file=lambda n: there[n].read_text(encoding="utf-8"),
            run_semantic_checks=True,
        )
        for name, path in there.items()
    ]
    assert sum(r.line_count for r in reports) > 1000
    return [f"{r.file_path.name}: {e}" for r in reports for e in [*r.errors, *r.warnings]]


def _entry(site: Path, recipe: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The aggregate and the instances of a recipe on `cpu-fp32`."""
    for path in (site / "every-eval-ever").rglob("*.json"):
        found = json.loads(path.read_text())
        details = found["model_info"]["additional_details"]
        if (details["recipe"], details["target"]) == (recipe, "cpu-fp32"):
            lines = (site / "every-eval-ever" / found["detailed_evaluation_results"]["file_path"]).read_text()
            return found, [json.loads(line) for line in lines.splitlines()]
    raise AssertionError(recipe)


def test_its_own_package_takes_it(export: Path) -> None:
    assert _problems(export) == []


def test_without_texts_and_with_hostile_ones_too(store: Store, tmp_path: Path) -> None:
    def odd(frame: pl.DataFrame) -> pl.DataFrame:
        ppo = pl.when(pl.col("recipe") == "ppo").then(pl.lit("a/../b <i> con.x")).otherwise(pl.col("recipe"))
        return frame.with_columns(ppo.alias("recipe"), pl.lit("con.x/..").alias("model"))

    changes: dict[str, Change] = {
        **dict.fromkeys(("trial_events", "stage_links", "measurement_links"), odd),
        "samples": lambda f: f.with_columns(pl.lit('\u2028"}\n{\x01').alias("response")),
        "sweep_events": lambda f: f.with_columns(pl.lit("data").alias("suite")),
    }
    publish(derive(store, tmp_path / "results", changes), [SWEEP], tmp_path / "site", now=NOW)
    assert _problems(tmp_path / "site") == []
    publish(store, [SWEEP], tmp_path / "silent", texts=False, now=NOW)
    assert _problems(tmp_path / "silent") == []
    _, lines = _entry(tmp_path / "silent", "ppo")
    assert {(line["input"]["raw"], *line["output"]["raw"]) for line in lines} == {("[text not published]",) * 2}
    assert not any(line["input"]["reference"] or line["sample_hash"] for line in lines)


def test_figures_are_those_of_the_board_with_their_uncertainty(export: Path) -> None:
    rows = [r for r in json.loads((export / "data/entries.json").read_text()) if r["target"] == "cpu-fp32"]
    mine = {(r["task"], r["metric"]): r for r in rows if r["recipe"] == "ppo" and r["better"] != "none"}
    whole, lines = _entry(export, "ppo")
    found = {tuple(r["evaluation_result_id"].split("/")): r for r in whole["evaluation_results"]}
    assert found.keys() == mine.keys()
    for name, row in mine.items():
        score = found[name]["score_details"]
        interval = score["uncertainty"]["confidence_interval"]
        assert (score["score"], interval["lower"], interval["upper"]) == (row["value"], row["low"], row["high"])
        assert (score["uncertainty"]["standard_error"]["value"], score["uncertainty"]["num_samples"]) == (
            row["stderr"],
            row["n"],
        )
        assert row["low"] < row["value"] < row["high"]
        assert 0 < row["stderr"] < row["high"] - row["low"]
        assert found[name]["metric_config"]["lower_is_better"] == (name[1] == "kl")
        # Of the instances the same mean: all seeds have the same documents here.
        scores = [x["evaluation"]["score"] for x in lines if x["evaluation_result_id"] == "/".join(name)]
        # Of people as many as they rated.
        assert name[0] == "people" or len(scores) == row["n"] * row["seeds"]
        assert sum(scores) / len(scores) == pytest.approx(row["value"], rel=1e-12)
    assert found["mmlu", "acc"]["source_data"]["source_type"] == "other"
    assert json.loads(found["mmlu", "acc"]["generation_config"]["additional_details"]["mmlu"]) == {"num_fewshot": 5}
    right = [x for x in lines if x["evaluation_result_id"] == "gsm8k/exact_match_strict"]
    assert {x["evaluation"]["is_correct"] for x in right} == {True, False}
    assert all(x["input"]["reference"] == x["output"]["raw"] for x in right if x["evaluation"]["is_correct"])


def test_a_changed_score_in_it_is_named(export: Path, tmp_path: Path) -> None:
    copy = copied(export, tmp_path / "copy")
    name = next(p for p in (copy / "every-eval-ever").rglob("*.json")).relative_to(copy).as_posix()

    def better(found: Any) -> Any:
        found["evaluation_results"][0]["score_details"]["score"] += 0.01
        return found

    change_json(copy, name, better)
    found = verify(signed(copy))
    assert any(f"the file {name} is not what the data give" in str(d) for d in found)
    # The figure itself is named too, also where another version of the harness wrote the file.
    change_json(copy, "manifest.json", lambda m: m | {"code": "0" * 64})
    (one,) = verify(copy)
    assert one.what == f"value in {name}"
    assert float(one.published) == pytest.approx(float(one.recomputed) + 0.01)
    (copy / name).write_text('{"evaluation_results": [3]}')
    assert [d.what for d in verify(signed(copy))] == [
        f"the file {name} cannot be read (TypeError: 'int' object is not subscriptable)"
    ]
