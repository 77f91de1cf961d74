"""Queries in a row on one opening of the database: what they see, and that others get their turn."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.store import Store
from harness.store import _query as query_module
from tests.store.test_store import STEP, sample

COUNT = "SELECT count(*) FROM raw.training_steps"
WRITE = f"""
import sys
from pathlib import Path
from harness.store import Store
store = Store(Path(sys.argv[1]))
store.append("training_steps", [{STEP | {"stage": "s2"}!r}])
print(store.ingest())
"""


MEASUREMENT = {
    **{"artifact": "a1", "target": {}, "kind": "task", "task": "mmlu", "settings": {}, "data": "bundled"},
    **{"seconds": 1.0, "environment": "e1", "at": "2026-01-01T00:00:00+00:00"},
}


def _elsewhere(results: Path) -> "subprocess.Popen[str]":
    """Another process that writes a row and takes it in."""
    return subprocess.Popen([sys.executable, "-c", WRITE, str(results)], stdout=subprocess.PIPE, text=True)


def test_a_fresh_block_sees_what_was_written_before_it_and_what_it_takes_in_itself(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("training_steps", [STEP])
    with store.fresh():
        assert store.query(COUNT).item() == 1
        store.append("training_steps", [STEP | {"stage": "s2"}])
        assert store.query(COUNT).item() == 1
        assert store.ingest() == 1
        assert store.query(COUNT).item() == 2
    assert store.ingest() == 0
    assert store.query(COUNT).item() == 2


def test_a_fresh_block_where_nothing_is_new_reads_too(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("training_steps", [STEP])
    for _ in range(2):
        with store.fresh():
            assert store.query(COUNT).item() == 1


def test_a_fresh_block_makes_a_database_of_another_version_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.append("training_steps", [STEP])
    with monkeypatch.context() as patch:
        patch.setattr("harness.store._ingest.fingerprint", lambda: "another")
        store.ingest()
    store = Store(tmp_path)
    with store.fresh():
        assert store.query(COUNT).item() == 1


def _measured(key: str) -> dict[str, list[dict[str, object]]]:
    return {"measurements": [MEASUREMENT | {"measurement": key}], "samples": [sample(measurement=key)]}


SAMPLES = "SELECT measurement FROM raw.samples ORDER BY ALL"


def test_the_newest_rows_are_asked_alone_where_they_hold_what_is_asked_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append_many(_measured("m1"))
    store.ingest()
    before = store.database.stat()
    store.append_many(_measured("m2"))
    with store.newest(["m2"]):
        assert store.query(SAMPLES)["measurement"].to_list() == ["m2"]
        with pytest.raises(RuntimeError, match=r"Store\.fresh"):
            store.ingest()
    # The database was not touched, and has everything with the next ingest.
    assert store.database.stat() == before
    assert store.ingest() == 1
    assert store.query(SAMPLES)["measurement"].to_list() == ["m1", "m2"]


def test_newest_answers_from_the_database_what_the_newest_rows_lack(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append_many(_measured("m1"))
    store.ingest()
    store.append_many(_measured("m2"))
    with store.newest(["m1", "m2"]):
        assert store.query(SAMPLES)["measurement"].to_list() == ["m1", "m2"]
    # Also before the first ingest, and for a measurement that was asked for already.
    for other in (store, Store(tmp_path)):
        for _ in range(2):
            with other.newest(["m2"]):
                assert "m2" in other.query(SAMPLES)["measurement"].to_list()


def test_what_another_asks_for_is_among_the_newest_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.append_many(_measured("m0"))
    store.ingest()
    for key in ("m1", "m2"):
        store.append_many(_measured(key))
    monkeypatch.setattr(Store, "fresh", lambda _: pytest.fail("it was in memory"))
    for key in ("m2", "m1"):
        with store.newest([key]):
            assert key in store.query(SAMPLES)["measurement"].to_list()


def test_many_batches_are_taken_in_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.store._store._MANY", 2)
    store = Store(tmp_path)
    store.append_many(_measured("m0"))
    store.ingest()
    for key in ("m1", "m2", "m3"):
        store.append_many(_measured(key))
    with store.newest(["m3"]):
        assert store.query(SAMPLES).height == 4
    assert store.ingest() == 0


def test_newest_names_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append_many(_measured("m0"))
    store.ingest()
    store.append_many(_measured("m1"))
    newest = max(store.shards.glob("*/samples.parquet"))
    newest.write_bytes(newest.read_bytes()[:-1])
    for _ in range(2):
        with pytest.raises(UserError, match=r"samples\.parquet"), store.newest(["m1"]):
            raise AssertionError("the block must not begin")


def test_a_fresh_block_names_damage_and_leaves_nothing_open(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("samples", [sample()])
    shard = next(store.shards.glob("*/samples.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"samples\.parquet"), store.fresh():
        raise AssertionError("the block must not begin")
    other = _elsewhere(tmp_path)
    other.communicate(timeout=60)
    # The same damage; a lock that is held would let it wait until it is killed.
    assert other.returncode == 1


def test_reading_keeps_one_opening_and_lets_a_writer_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.append("training_steps", [STEP])
    store.ingest()
    opened = 0
    real = query_module._opened

    def counted(database: Path, wait: float | None) -> object:
        nonlocal opened
        opened += 1
        return real(database, wait)

    monkeypatch.setattr(query_module, "_opened", counted)
    with store.reading():
        for _ in range(20):
            store.query(COUNT)
        assert opened < 20
        other = _elsewhere(tmp_path)
        deadline = time.monotonic() + 60
        while store.query(COUNT).item() == 1:
            assert time.monotonic() < deadline
        assert other.communicate(timeout=60)[0] == "1\n"
    assert store.query(COUNT).item() == 2


def test_reading_within_reading_and_writing_within_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append("training_steps", [STEP])
    store.ingest()
    with store.reading():
        assert store.query(COUNT).item() == 1
        with store.reading():
            assert store.query(COUNT).item() == 1
            store.append("training_steps", [STEP | {"stage": "s2"}])
            store.ingest()
        assert store.query(COUNT).item() == 2
