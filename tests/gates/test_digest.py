"""Digest: an artifact that is what it was is no flag; every way in which it is not is one."""

import json
from pathlib import Path

import polars as pl
import pytest

from harness.folders import Folders
from harness.gates._evidence import read_evidence
from harness.store import Store
from tests.gates.stores import ask, said
from tests.report.stores import derive
from tests.store.scenario import SWEEP

GATE = "digest"


def _artifacts(store: Store) -> dict[tuple[str, int], str]:
    rows = store.query("SELECT recipe, seed, artifact FROM trials WHERE sweep = ? AND phase = 'final'", [SWEEP])
    return {(r, s): a for r, s, a in rows.iter_rows()}


@pytest.fixture
def results(healthy: Store, tmp_path: Path) -> Path:
    """The artifacts of dpo, as a stage leaves them."""
    folders = Folders(tmp_path / "results")
    for (recipe, _), key in _artifacts(healthy).items():
        if recipe == "dpo":
            row = healthy.query("SELECT method, params, inputs, seed FROM stages WHERE stage = ?", [key]).row(
                named=True
            )
            manifest = {**row, "key": key, "params": json.loads(row["params"]), "inputs": json.loads(row["inputs"])}
            folders.put(key, manifest, lambda folder: (folder / "model.safetensors").write_bytes(b"weights") and None)
    return tmp_path / "results"


def _dpo(store: Store, results: Path) -> list[tuple[str, int | None, str]]:
    flags, _ = ask(store, GATE, results=results)
    assert {f.recipe for f in flags} <= {"dpo"}
    return [(f.severity, f.seed, f.message) for f in flags]


def test_what_is_as_it_was_written_is_no_flag(healthy: Store, results: Path) -> None:
    flags, open_ = ask(healthy, GATE, results=results)
    assert flags == []
    assert {(u.recipe, u.why) for u in open_} == {
        ("base", "a base model that is no local folder is not hashed again"),
        ("ppo", "the artifact is no longer there (harness gc)"),
    }


def test_other_weights_of_the_same_size(healthy: Store, results: Path) -> None:
    (results / "artifacts" / _artifacts(healthy)["dpo", 1] / "model.safetensors").write_bytes(b"WEIGHTS")
    ((severity, seed, message),) = _dpo(healthy, results)
    assert (severity, seed) == ("invalid", 1)
    assert "the content of model.safetensors is not what was written (sha256)" in message


def test_an_artifact_in_the_place_of_another(healthy: Store, results: Path) -> None:
    first, second = (results / "artifacts" / _artifacts(healthy)["dpo", seed] for seed in (0, 1))
    first.rename(results / "aside")
    second.rename(first)
    ((severity, seed, message),) = _dpo(healthy, results)
    assert (severity, seed) == ("invalid", 0)
    assert f"its manifest is that of {second.name[:12]}" in message


def test_a_manifest_with_other_settings_than_the_stored_stage(healthy: Store, results: Path, tmp_path: Path) -> None:
    key = _artifacts(healthy)["dpo", 0]

    def other(frame: pl.DataFrame) -> pl.DataFrame:
        mine = pl.col("stage") == key
        return frame.with_columns(pl.when(mine).then(pl.lit('{"beta": 9}')).otherwise(pl.col("params")).alias("params"))

    ((severity, seed, message),) = _dpo(derive(healthy, tmp_path / "store", {"stages": other}), results)
    assert (severity, seed) == ("invalid", 0)
    assert "its manifest has params" in message


def test_a_measurement_of_another_artifact_than_the_lineage_ends_with(healthy: Store) -> None:
    keys = _artifacts(healthy)
    evidence = read_evidence(healthy, SWEEP)
    swapped = (pl.col("recipe") == "dpo") & (pl.col("seed") == 0) & (pl.col("task") == "mmlu")
    for column in ("made_of", "artifact"):
        runs = evidence.runs.with_columns(
            pl.when(swapped).then(pl.lit(keys["dpo", 1])).otherwise(pl.col(column)).alias(column)
        )
        object.__setattr__(evidence, "runs", runs)
        flags, _ = said(evidence, GATE)
        assert [(f.severity, f.recipe, f.seed, f.task) for f in flags] == [("invalid", "dpo", 0, "mmlu")]
        assert f"of the artifact {keys['dpo', 1][:12]}, its lineage ends with {keys['dpo', 0][:12]}" in flags[0].message


def test_a_run_without_lineage_is_not_taken_on_trust(healthy: Store, tmp_path: Path) -> None:
    lost = derive(healthy, tmp_path / "store", {"stage_links": lambda f: f.filter(pl.col("recipe") != "ppo")})
    flags, open_ = ask(lost, GATE)
    assert flags == []
    assert ("ppo", "its lineage is not stored") in {(u.recipe, u.why) for u in open_}
