"""The metadata of the data downloads, read by mlcroissant, and the data through them."""

import hashlib
import json
from pathlib import Path

import polars as pl
import pytest

from harness.publish import verify
from harness.publish._board import ROWS
from harness.publish._cards import SAMPLES
from harness.publish._croissant import _COLUMNS
from tests.publish.exports import change_json, copied, signed

mlc = pytest.importorskip("mlcroissant", reason="needs mlcroissant, of the dev extra")


def test_its_own_package_takes_it_and_reads_the_data(export: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = mlc.Dataset(jsonld=export / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    assert not issues.warnings
    assert not caplog.records
    for name, file in (("figures", "entries"), ("samples", "samples")):
        rows = pl.read_parquet(export / f"data/{file}.parquet")
        records = list(dataset.records(name))
        assert len(records) == rows.height
        first = {key.partition("/")[2]: value for key, value in records[0].items()}
        assert set(first) == set(rows.columns)
        plain = {k: v.decode() if isinstance(v, bytes) else v for k, v in first.items()}
        assert plain["entry"] == rows["entry"][0]
        assert plain["score" if name == "samples" else "value"] == rows["score" if name == "samples" else "value"][0]


def test_digests_and_columns_are_those_of_the_files(export: Path) -> None:
    found = json.loads((export / "croissant.json").read_text())
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    for file in found["distribution"]:
        raw = (export / file["contentUrl"]).read_bytes()
        assert (file["sha256"], file["contentSize"]) == (hashlib.sha256(raw).hexdigest(), f"{len(raw)} B")
    kinds = {"sc:Text": pl.String, "sc:Float": pl.Float64, "sc:Integer": pl.Int64}
    for records in found["recordSet"]:
        (file,) = {f["source"]["fileObject"]["@id"] for f in records["field"]}
        schema = pl.read_parquet_schema(export / file)
        assert {f["name"]: kinds[f["dataType"]] for f in records["field"]} == dict(schema)
    assert _COLUMNS.keys() == {"entry", *ROWS, *SAMPLES}


def test_a_changed_digest_in_it_is_named(export: Path, tmp_path: Path) -> None:
    copy = copied(export, tmp_path / "copy")
    change_json(copy, "croissant.json", lambda f: json.loads(json.dumps(f).replace('"sha256": "', '"sha256": "0')))
    assert "the file croissant.json is not what the data give" in [str(d) for d in verify(signed(copy))]
