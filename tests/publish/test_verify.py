"""Whatever is changed in an export is named, and a stranger's export does no harm."""

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.errors import UserError
from harness.publish import verify
from tests.publish.exports import change_json, change_table, copied, signed


def _said(export: Path) -> list[str]:
    return [str(d) for d in verify(export)]


def test_a_fresh_export_is_sound(export: Path) -> None:
    assert verify(export) == []


@pytest.fixture
def copy(export: Path, tmp_path: Path) -> Path:
    return copied(export, tmp_path / "copy")


_ONE = (pl.col("recipe") == "dpo") & (pl.col("target") == "cpu-fp32") & (pl.col("metric") == "gold_reward")


def _moved(column: str, by: float) -> pl.Expr:
    return pl.when(_ONE).then(pl.col(column) + by).otherwise(pl.col(column)).cast(pl.Float64).alias(column)


@pytest.mark.parametrize("column", ["value", "low", "high", "difference", "p", "device_seconds"])
def test_a_changed_aggregate_is_named(copy: Path, column: str) -> None:
    change_table(copy, "data/entries.parquet", lambda f: f.with_columns(_moved(column, 1e-5)))
    found = [d for d in verify(signed(copy)) if d.what == f"{column} in data/entries.parquet"]
    assert [(d.task, d.metric) for d in found] == [("gold", "gold_reward")]
    assert float(found[0].published) == pytest.approx(float(found[0].recomputed) + 1e-5, abs=1e-9)
    # The copies are told apart from the table too.
    assert any("data/entries.csv" in said for said in _said(copy))


def test_a_changed_rank_is_named(copy: Path) -> None:
    def first(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.when(_ONE).then(1).otherwise(pl.col("rank_high")).alias("rank_high"))

    change_table(copy, "data/entries.parquet", first)
    assert any("gold gold_reward: rank_high in data/entries.parquet: published 1" in s for s in _said(signed(copy)))


def test_rounding_is_no_change(copy: Path) -> None:
    change_table(copy, "data/entries.parquet", lambda f: f.with_columns(_moved("value", 1e-11)))
    # No figure is named; the file is another than the one whose digest the metadata have.
    assert _said(signed(copy)) == ["the file croissant.json is not what the data give"]


def test_figures_of_the_csv_and_of_pages_are_checked_too(copy: Path) -> None:
    rows = (copy / "data/entries.csv").read_text(encoding="utf-8").splitlines()
    (copy / "data/entries.csv").write_text("\n".join([rows[0], rows[1].replace("0.", "0.9", 1), *rows[2:-1]]) + "\n")
    index = (copy / "index.html").read_text(encoding="utf-8")
    (copy / "index.html").write_text(index.replace("of 6", "of 5", 1), encoding="utf-8")
    said = _said(signed(copy))
    assert any("in data/entries.csv: published" in s for s in said)
    assert "a figure that only one of data/entries.csv and data/entries.parquet has" in " ".join(said)
    assert "the page index.html is not what the data give" in said


def test_a_changed_sample_is_named(copy: Path) -> None:
    key = pl.read_parquet(copy / "data/entries.parquet").filter(_ONE)["entry"][0]
    own = (pl.col("entry") == key) & (pl.col("metric") == "gold_reward") & (pl.col("seed") == 1)
    first = pl.col("document") == pl.col("document").filter(own).min()
    score = pl.when(own & first).then(pl.col("score") * 0.5).otherwise(pl.col("score")).alias("score")
    change_table(copy, "data/samples.parquet", lambda f: f.with_columns(score))
    assert any("the file data/samples.parquet was changed (sha256)" in s for s in _said(copy))
    found = verify(signed(copy))
    assert any(d.entry == key and "digest" in d.what for d in found)
    assert any((d.entry, d.metric, d.what) == (key, "gold_reward", "value in data/entries.parquet") for d in found)


def test_figures_without_samples_and_samples_without_figures_are_named(copy: Path) -> None:
    key = pl.read_parquet(copy / "data/entries.parquet").filter(_ONE)["entry"][0]
    change_table(
        copy, "data/samples.parquet", lambda f: f.filter((pl.col("entry") != key) | (pl.col("task") != "mmlu"))
    )
    change_table(copy, "data/entries.parquet", lambda f: f.filter(~_ONE))
    said = _said(signed(copy))
    assert any(s.startswith(f"{key} mmlu acc: a figure without samples: published") for s in said)
    assert f"{key} gold gold_reward: samples whose figure is not published" in said
    change_table(copy, "data/samples.parquet", lambda f: f.filter(pl.col("entry") != key))
    assert f"{key}: an entry without samples: nothing shows its figures" in _said(signed(copy))


def test_a_removed_and_an_added_file_are_named(copy: Path) -> None:
    page = next((copy / "entries").iterdir())
    page.unlink()
    (copy / "data/more.csv").write_text("x")
    (copy / "entries/away").symlink_to("/")
    said = _said(copy)
    assert f"the file entries/{page.name} is missing, or no ordinary file" in said
    assert "the file data/more.csv is not of the export: the manifest does not list it" in said
    assert "the file entries/away is not of the export: the manifest does not list it" in said


def test_an_entry_cannot_take_another_name(copy: Path) -> None:
    def renamed(cards: Any) -> Any:
        next(iter(cards.values()))["recipe"] = "the best"
        return cards

    change_json(copy, "data/provenance.json", renamed)
    assert any("the id is not that of its names" in s for s in _said(signed(copy)))


def test_other_statistics_are_not_believed(copy: Path) -> None:
    change_json(copy, "manifest.json", lambda m: m | {"statistics": {"version": 1}})
    assert "the manifest says that figures are computed otherwise than this harness does" in _said(copy)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "data/../../x", "data\\x", "index.html\n", "entries/" + "g" * 16 + ".html"]
)
def test_no_path_leads_out(copy: Path, name: str) -> None:
    change_json(copy, "manifest.json", lambda m: m | {"files": {**m["files"], name: {"size": 1, "sha256": "0" * 64}}})
    with pytest.raises(UserError, match="is no file of an export"):
        verify(copy)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("manifest.json", "[" * 200_000, "not JSON"),
        ("manifest.json", "{}", "not that of an export"),
        ("manifest.json", '{"format": "posttrain-harness leaderboard", "version": 99}', "format version 99"),
        ("manifest.json", '{"format": "posttrain-harness leaderboard", "version": 3, "files": []}', "expected files"),
        ("data/provenance.json", '{"../x": {}}', "no key of an entry"),
        ("data/provenance.json", '{"0123456789abcdef": {"id": 3}}', "0123456789abcdef: id"),
        ("data/provenance.json", "[]", "by their keys"),
        ("data/samples.parquet", "PAR1 and nothing", "not a Parquet file"),
        ("data/entries.parquet", "", "not a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_said(copy: Path, name: str, content: str, error: str) -> None:
    (copy / name).write_text(content)
    with pytest.raises(UserError, match=error) as raised:
        verify(copy)
    assert "Traceback" not in str(raised.value)


def test_other_columns_nan_and_links_are_refused(copy: Path) -> None:
    change_table(copy, "data/samples.parquet", lambda f: f.with_columns(pl.lit(float("nan")).alias("score")))
    with pytest.raises(UserError, match="NaN or infinite"):
        verify(copy)
    change_table(copy, "data/samples.parquet", lambda f: f.with_columns(pl.col("seed").cast(pl.Int8)))
    with pytest.raises(UserError, match="other columns or types than an export has: seed"):
        verify(copy)
    (copy / "data/samples.parquet").unlink()
    (copy / "data/samples.parquet").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="a link"):
        verify(copy)
    (copy / "data/samples.parquet").unlink()
    os.mkfifo(copy / "data/samples.parquet")
    with pytest.raises(UserError, match="expected an ordinary file"):
        verify(copy)


def test_what_is_no_export_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        verify(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        verify(tmp_path)


def test_words_of_a_stranger_cannot_drive_the_terminal(copy: Path) -> None:
    change_table(copy, "data/entries.parquet", lambda f: f.with_columns(pl.lit("\x1b[2J\nok").alias("task")).head(1))
    said = _said(signed(copy))
    assert any("\\x1b[2J ok" in s for s in said)
    assert not any("\x1b" in s or "\n" in s for s in said)
    assert json.dumps(said)
