"""What is appended comes out, once and whole; what is wrong is refused by name."""

import json
import math
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from harness.errors import UserError
from harness.store import TABLES, Store
from tests.store.scenario import build_scenario

STEP = {"stage": "s1", "step": 1, "metric": "loss", "value": 2.5}
ENVIRONMENT = {"environment": "e1", "json": {"machine": {"cores": 2}}}
RATING = {
    **dict.fromkeys(c.name for c in TABLES["human_ratings"].columns if c.name != "at"),
    **{"submission": "s", "sweep": "w", "study": "p", "form": "f", "item": "i", "kind": "rating", "rater": "r"},
    **{"document": "d", "criterion": "helpfulness", "score": 7, "position": 1, "shown": 1},
}


def sample(measurement: str = "m1", document: str = "d1", score: float = 1.0) -> dict[str, object]:
    """A row of `samples` with nothing optional."""
    optional = dict.fromkeys(("response", "expected", "prompt"))
    named = {"measurement": measurement, "document": document, "half": "final", "prompt_hash": "p", "metric": "acc"}
    return {**named, "score": score, **optional}


def content(store: Store) -> dict[str, pl.DataFrame]:
    """Every raw table, in an order of its own."""
    found = {}
    for name in (*TABLES, "ledger", "owners"):
        frame = store.query(f"SELECT * FROM raw.{name}")
        found[name] = frame.sort(frame.columns)
    return found


def batches(store: Store) -> list[Path]:
    return sorted(p for p in store.shards.iterdir() if not p.name.startswith("."))


def test_rows_come_back_with_their_types(tmp_path: Path) -> None:
    store = Store(tmp_path)
    at = datetime(2026, 3, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    store.append_many({"human_ratings": [RATING | {"at": at}], "environment_rows": [ENVIRONMENT]})
    assert store.ingest() == 1
    (row,) = store.query("FROM ratings").to_dicts()
    assert row["recorded_at"] == datetime(2026, 3, 1, 10, 0)
    assert {name: row[name] for name in RATING if name in row} == {n: v for n, v in RATING.items() if n in row}
    assert json.loads(store.query("SELECT json FROM environments").item()) == ENVIRONMENT["json"]
    assert store.query("SELECT (json->>'$.machine.cores')::INT FROM environments").item() == 2


def test_numpy_scalars_and_a_nan_loss_are_values(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("training_steps", [STEP | {"step": np.int64(3), "value": np.float32(math.nan)}])
    store.ingest()
    row = store.query("FROM raw.training_steps").to_dicts()[0]
    assert row["step"] == 3
    assert math.isnan(row["value"])


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("nothing", STEP, "no table 'nothing'"),
        ("training_steps", {"stage": "s", "step": 1, "metric": "loss"}, "missing value"),
        ("training_steps", STEP | {"extra": 1}, "unknown extra"),
        ("training_steps", STEP | {"step": 1.5}, "step, row 0: expected a whole number"),
        ("training_steps", STEP | {"step": True}, "step, row 0: expected a whole number"),
        ("training_steps", STEP | {"stage": None}, "not nullable"),
        ("training_steps", STEP | {"value": "2.5"}, "value, row 0: expected a number"),
        ("samples", sample(score=math.nan), "score, row 0: expected a finite number"),
        ("samples", sample() | {"half": "test"}, "one of tune, final"),
        ("environment_rows", {"environment": "e", "json": "{'a': 1}"}, "expected JSON"),
        ("environment_rows", {"environment": "e", "json": {"a": math.nan}}, "expected JSON"),
        ("environment_rows", {"environment": "e", "json": '{"a": NaN}'}, "NaN is not JSON"),
        ("human_ratings", RATING | {"at": datetime(2026, 3, 1)}, "a time with its zone"),
        ("human_ratings", RATING | {"at": "yesterday"}, "an ISO time"),
    ],
)
def test_a_wrong_row_is_refused_and_nothing_is_written(
    tmp_path: Path, table: str, row: dict[str, object], message: str
) -> None:
    store = Store(tmp_path)
    with pytest.raises(UserError, match=message):
        store.append_many({"environment_rows": [ENVIRONMENT], table: [row]})
    assert not store.shards.exists() or not list(store.shards.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": pl.lit(math.inf)}, "not finite"),
        ({"half": pl.lit("both")}, "one of tune, final"),
        ({"document": pl.lit(None, pl.String)}, "1 values are missing"),
        ({"score": pl.lit("high")}, "conversion"),
        ({"more": pl.lit(1)}, "unknown more"),
    ],
)
def test_a_frame_is_checked_as_rows_are(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    schema = {"response": pl.String, "expected": pl.String, "prompt": pl.String}
    frame = pl.DataFrame([sample()], schema_overrides=schema)
    store = Store(tmp_path)
    with pytest.raises(UserError, match=message):
        store.append("samples", frame.with_columns(**change))
    store.append("samples", frame)
    store.ingest()
    assert store.query("SELECT * EXCLUDE (batch, batch_row) FROM raw.samples").to_dicts() == [sample()]


def test_no_rows_make_no_shard(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append_many({"samples": [], "training_steps": []})
    assert not store.shards.exists()
    assert store.ingest() == 0
    assert store.query("SELECT count(*) FROM samples").item() == 0


def test_ingesting_again_changes_nothing(tmp_path: Path) -> None:
    store = build_scenario(tmp_path)
    before = content(store)
    assert store.ingest() == 0
    after = content(store)
    assert all(before[name].equals(after[name]) for name in before)


def test_a_measurement_that_came_twice_counts_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("samples", [sample(document=d) for d in ("d1", "d2")])
    store.ingest()
    store.append("samples", [sample(document=d, score=0.0) for d in ("d1", "d2")] + [sample("m2")])
    store.ingest()
    found = store.query("SELECT measurement, document, score FROM raw.samples ORDER BY ALL").rows()
    assert found == [("m1", "d1", 1.0), ("m1", "d2", 1.0), ("m2", "d1", 1.0)]


@pytest.mark.parametrize("together", [True, False])
def test_the_earliest_batch_counts_whatever_the_order_of_arrival(tmp_path: Path, *, together: bool) -> None:
    store = Store(tmp_path)
    store.append("samples", [sample(score=0.25), sample("m2", score=0.25)])
    store.append("samples", [sample(score=0.75)])
    first = batches(store)[0]
    aside = tmp_path / first.name
    if not together:
        first.rename(aside)
        store.ingest()
        assert store.query("SELECT score FROM raw.samples").rows() == [(0.75,)]
        aside.rename(first)
    store.ingest()
    live = content(store)
    assert live["samples"].select("measurement", "score").rows() == [("m1", 0.25), ("m2", 0.25)]
    store.rebuild()
    rebuilt = content(store)
    assert all(live[name].equals(rebuilt[name]) for name in live)


def test_rebuilding_gives_the_identical_content(tmp_path: Path) -> None:
    store = build_scenario(tmp_path)
    for number in range(3):
        store.append("training_steps", [STEP | {"stage": f"s{number}", "step": number}])
        store.ingest()
    before = content(store)
    assert before["samples"].height > 1000
    assert store.rebuild() == 4
    after = content(store)
    assert all(before[name].equals(after[name]) for name in before)
    store.database.unlink()
    store.ingest()
    again = content(store)
    assert all(before[name].equals(again[name]) for name in before)


def test_a_rebuild_does_not_replay_the_old_log(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("training_steps", [STEP])
    store.ingest()
    (tmp_path / "harness.duckdb.wal").write_bytes(b"left by a killed writer")
    store.rebuild()
    assert store.query("SELECT count(*) FROM raw.training_steps").item() == 1


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(bytes(data))


def _foreign(file: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(file.with_name("extra.parquet"))


@pytest.mark.parametrize(
    ("damage", "named", "message"),
    [
        (_truncate, "training_steps.parquet", "damaged"),
        (_flip, "training_steps.parquet", "damaged"),
        (Path.unlink, "training_steps.parquet", "not there"),
        (_foreign, "extra.parquet", "not written by the store"),
    ],
)
def test_a_bad_shard_is_named_and_the_others_come_in(tmp_path: Path, damage: Any, named: str, message: str) -> None:
    store = Store(tmp_path)
    for number in range(3):
        store.append("training_steps", [STEP | {"stage": f"s{number}", "step": number}])
    bad = batches(store)[1]
    damage(bad / "training_steps.parquet")
    for attempt in (store.ingest, store.ingest, store.rebuild):
        with pytest.raises(UserError, match=message) as caught:
            attempt()
        assert str(bad / named) in str(caught.value)
        assert store.query("SELECT step FROM raw.training_steps ORDER BY ALL").rows() == [(0,), (2,)]


def test_a_file_that_is_no_batch_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("training_steps", [STEP])
    (store.shards / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt: not a batch"):
        store.ingest()
    assert store.query("SELECT count(*) FROM raw.training_steps").item() == 1


def test_a_database_of_another_version_is_made_anew(tmp_path: Path) -> None:
    import duckdb

    store = Store(tmp_path)
    store.append("training_steps", [STEP])
    store.ingest()
    with duckdb.connect(str(store.database)) as connection:
        connection.execute("UPDATE raw.schema_version SET fingerprint = 'older'")
        connection.execute("DELETE FROM raw.training_steps")
    with pytest.raises(UserError, match="another version"):
        store.query("FROM suites")
    assert store.ingest() == 1
    assert store.query("SELECT count(*) FROM raw.training_steps").item() == 1


def test_a_million_samples_are_taken_in_whole(tmp_path: Path) -> None:
    count = 1_000_000
    index = pl.int_range(count, eager=True)
    frame = pl.DataFrame({"score": (index % 7).cast(pl.Float64)}).with_columns(
        measurement=(index // 10_000).cast(pl.String),
        document=(index % 10_000).cast(pl.String),
        half=pl.lit("final"),
        prompt_hash=pl.lit("p"),
        metric=pl.lit("acc"),
        response=pl.lit(None, pl.String),
        expected=pl.lit("A"),
        prompt=pl.lit(None, pl.String),
    )
    store = Store(tmp_path)
    store.append("samples", frame)
    store.ingest()
    found = store.query("SELECT count(*), sum(score), count(DISTINCT measurement) FROM raw.samples").row(0)
    assert found == (count, frame["score"].sum(), 100)
    # With a primary key the same rows take ten times this.
    assert store.database.stat().st_size < 40e6
