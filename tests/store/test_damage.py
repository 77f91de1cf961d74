"""Damaged files, a full disk and a clock that jumps: what the user is told, and that nothing acknowledged is lost."""

import itertools
import shutil
import struct
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from harness._digests import sha256
from harness.errors import StorageError, UserError
from harness.store import Store
from harness.store import _shards as shards_module
from tests.disks import leave, remount, small_disk
from tests.store.scenario import build_scenario
from tests.store.test_store import STEP, batches, content

Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return build_scenario(tmp_path_factory.mktemp("sound"))


def _flip(file: Path, *places: int) -> None:
    data = bytearray(file.read_bytes())
    for place in places:
        data[place] ^= 0x10
    file.write_bytes(bytes(data))


def _newer(file: Path) -> None:
    """The file as a DuckDB writes it whose storage version is beyond this one's: the header with its checksum."""
    data = bytearray(file.read_bytes())
    for header in (4096, 8192):
        data[header + 56 : header + 64] = struct.pack("<Q", 999)
        digest = 5381
        for (word,) in struct.iter_unpack("<Q", data[header + 8 : header + 4096]):
            digest ^= (word * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        data[header : header + 8] = struct.pack("<Q", digest)
    file.write_bytes(bytes(data))


_DATABASES: dict[str, tuple[Change, str]] = {
    "garbage": (lambda f: f.write_bytes(bytes(range(256)) * 200), "not a valid DuckDB database"),
    "empty": (lambda f: f.write_bytes(b""), "not a valid DuckDB database"),
    "header only": (lambda f: f.write_bytes(f.read_bytes()[:4096]), "Could not read enough bytes"),
    "cut in half": (lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]), "Could not read enough bytes"),
    "a flipped bit": (lambda f: _flip(f, 12288 + 100), "checksum"),
    "flipped in every block": (lambda f: _flip(f, *range(12288 + 77, f.stat().st_size, 262144)), "checksum"),
    "a newer DuckDB": (_newer, "newer version of DuckDB|storage version number 999"),
}


@pytest.mark.parametrize("name", _DATABASES)
def test_a_damaged_database_names_the_command_that_makes_it_anew(sound: Store, tmp_path: Path, name: str) -> None:
    change, reason = _DATABASES[name]
    store = Store(tmp_path / "my results")
    shutil.copytree(sound.results, store.results)
    change(store.database)
    for ask in (lambda: store.query("SELECT avg(score) FROM raw.samples"), store.ingest):
        with pytest.raises(UserError, match=reason) as caught:
            ask()
        assert f"harness db rebuild --results '{store.results}'" in str(caught.value)
        assert "Nothing is lost" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert store.repair() == []
    before, after = content(sound), content(store)
    assert all(before[table].equals(after[table]) for table in before)


def test_a_log_left_without_its_database_is_harmless(sound: Store, tmp_path: Path) -> None:
    store = Store(tmp_path)
    shutil.copytree(sound.results, tmp_path, dirs_exist_ok=True)
    store.database.unlink()
    store.database.with_name("harness.duckdb.wal").write_bytes(bytes(range(256)) * 40)
    store.ingest()
    before, after = content(sound), content(store)
    assert all(before[table].equals(after[table]) for table in before)


def test_a_folder_in_the_databases_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "harness.duckdb").mkdir()
    with pytest.raises(UserError, match=r"harness\.duckdb is a folder: move it away"):
        Store(tmp_path).repair()


def test_a_users_query_is_not_taken_for_damage(sound: Store) -> None:
    with pytest.raises(UserError, match="The views are") as caught:
        sound.query("SELECT corrupt, checksum FROM samples")
    assert "rebuild" not in str(caught.value)


def _steps(store: Store) -> list[int]:
    return [row[0] for row in store.query("SELECT step FROM raw.training_steps ORDER BY ALL").rows()]


def test_repair_gives_up_a_damaged_shard_that_nothing_else_holds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(3):
        store.append("training_steps", [STEP | {"step": number, "stage": f"s{number}"}])
    bad = batches(store)[1]
    _flip(bad / "training_steps.parquet", 40)
    with pytest.raises(UserError, match="harness db rebuild"):
        store.ingest()
    assert _steps(store) == [0, 2]
    (line,) = store.repair()
    assert str(bad / "training_steps.parquet") in line
    assert "its rows are lost; what is left of it is in .damaged-" in line
    assert (store.shards / f".damaged-{bad.name}" / "training_steps.parquet").is_file()
    assert store.ingest() == 0
    assert _steps(store) == [0, 2]
    store.append("training_steps", [STEP | {"step": 1, "stage": "s1"}])
    assert store.ingest() == 1
    assert _steps(store) == [0, 1, 2]


def test_repair_takes_from_the_database_what_the_shards_have_lost(sound: Store, tmp_path: Path) -> None:
    store = Store(tmp_path)
    shutil.copytree(sound.results, tmp_path, dirs_exist_ok=True)
    _event(store, "running")
    _event(store, "complete")
    store.ingest()
    before = content(store)
    first, middle, _ = batches(store)
    _flip(first / "samples.parquet", 1000)
    shutil.rmtree(middle)
    said = store.repair()
    assert len(said) == 2
    assert all("in the database and are written again" in line for line in said)
    assert f"{middle}: not there" in said[1]
    after = content(store)
    # The batches have new names, in the same order; the rows are the same.
    assert store.query("SELECT state FROM trials WHERE sweep = 'w'").rows() == [("complete",)]
    for name in before.keys() - {"ledger", "owners"}:
        assert before[name].drop("batch").sort(pl.all()).equals(after[name].drop("batch").sort(pl.all()))
    assert store.repair() == []


def test_a_new_version_does_not_replace_a_database_that_has_more_than_the_shards(tmp_path: Path) -> None:
    import duckdb

    store = Store(tmp_path)
    store.append("training_steps", [STEP])
    store.append("training_steps", [STEP | {"step": 2, "stage": "s2"}])
    store.ingest()
    with duckdb.connect(str(store.database)) as connection:
        connection.execute("UPDATE raw.schema_version SET fingerprint = 'older'")
        connection.execute("ALTER TABLE raw.failure_events DROP COLUMN command")
    _flip(batches(store)[0] / "training_steps.parquet", 40)
    with pytest.raises(UserError, match="the database was left as it is"):
        store.ingest()
    assert "1 rows were in the database" in store.repair()[0]
    assert _steps(store) == [1, 2]


def test_shards_of_before_have_null_in_the_columns_that_came_since(tmp_path: Path) -> None:
    old = {"recipe": "r", "model": "m", "sweep": "w", "trial": 0, "seed": 0, "stage": "s", "measurement": None}
    old |= {"kind": "failed", "message": "no", "traceback": "t"}
    at = datetime(2026, 3, 1, tzinfo=UTC)
    schema = {"measurement": pl.String, "at": pl.Datetime("us")}
    batch = tmp_path / "shards" / f"{1:020d}-{'0' * 12}"
    batch.mkdir(parents=True)
    file = batch / "failure_events.parquet"
    frame = pl.DataFrame([old | {"at": at.replace(tzinfo=None)}], schema_overrides=schema)
    frame.select("sweep", "recipe", "model", "trial", "seed", pl.all().exclude(*list(old)[:5])).write_parquet(file)
    (batch / shards_module.MANIFEST).write_text(f'{{"{file.name}": "{sha256(file)}"}}')
    store = Store(tmp_path)
    new = {"peak_mb": 512.0, "step": 3, "seconds": 1.5, "command": "harness run-stage k"}
    store.append("failure_events", [old | new | {"kind": "pruned", "at": at}])
    assert store.ingest() == 2
    rows = store.query("SELECT kind, peak_mb, step, seconds, command FROM failures ORDER BY kind").rows()
    assert rows == [("failed", None, None, None, None), ("pruned", 512.0, 3, 1.5, "harness run-stage k")]
    told = dict(store.query("SELECT column_name, description FROM dictionary WHERE view_name = 'failures'").rows())
    assert {"peak_mb", "step", "command"} <= told.keys()
    assert "deadline" in told["kind"]
    state = "SELECT description FROM dictionary WHERE view_name = 'trials' AND column_name = 'state'"
    assert "pruned" in store.query(state).item()


def _event(store: Store, state: str, at: datetime | None = None) -> None:
    row: dict[str, object] = dict.fromkeys(("objectives", "artifact", "reward_artifact", "seconds"))
    row |= {"sweep": "w", "recipe": "r", "model": "m", "trial": 0, "seed": 0, "phase": "tune", "settings": {}}
    store.append("trial_events", [row | {"state": state, "at": at or datetime.now(UTC)}])


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("clock_file_lost", [False, True])
def test_a_clock_set_back_does_not_bring_back_an_earlier_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, restarted: bool, clock_file_lost: bool
) -> None:
    store, now = Store(tmp_path), datetime.now(UTC)
    real = time.time_ns
    hours = itertools.chain((0, 48), itertools.repeat(-24))
    monkeypatch.setattr(time, "time_ns", lambda: real() + next(hours) * 3_600_000_000_000)
    for number, state in enumerate(("running", "failed", "running", "complete")):
        # As the clock says it to the user: forwards by two days, then back to yesterday.
        _event(store, state, now + timedelta(hours=(0, 48, -24, -24)[number]))
        store.append("samples", [_sample(float(number))])
        if restarted:
            monkeypatch.setattr(shards_module, "_LISTED", set())
        if clock_file_lost:
            (store.shards / ".clock").unlink()
            monkeypatch.setattr(shards_module, "_LISTED", set())
    store.ingest()
    assert store.query("SELECT state FROM trials").rows() == [("complete",)]
    # Of one measurement that came four times the first counts.
    assert store.query("SELECT score FROM raw.samples").rows() == [(0.0,)]
    names = [path.name for path in batches(store)]
    assert len(names) == 8
    store.rebuild()
    assert store.query("SELECT state FROM trials").rows() == [("complete",)]


def _sample(score: float) -> dict[str, object]:
    named = {"measurement": "m1", "document": "d1", "half": "final", "prompt_hash": "p", "metric": "acc"}
    return {**named, "score": score, **dict.fromkeys(("response", "expected", "prompt"))}


def test_a_clock_set_forward_takes_no_living_writers_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, real, waited = Store(tmp_path), time.time, []
    dead = store.shards / ".aside-dead"
    dead.mkdir(parents=True)

    def sync(folder: Path) -> None:
        # Between the writing and the renaming of a batch another process ingests, two days later by the clock.
        monkeypatch.setattr(time, "time", lambda: real() + 48 * 3600)
        waited.append(shards_module.remove_stale(store.shards))
        assert folder.is_dir()

    monkeypatch.setattr(shards_module, "sync_folder", sync)
    store.append("training_steps", [STEP])
    assert waited == [1]
    assert not dead.exists()
    store.ingest()
    assert _steps(store) == [1]


def _append(store: Store, number: int) -> None:
    frame = pl.DataFrame({"step": pl.int_range(2000, eager=True)}).with_columns(
        stage=pl.lit(f"s{number}"), metric=pl.lit("loss"), value=(pl.col("step") * 7919 % 1000) / 7
    )
    store.append("training_steps", frame)


def _fill(store: Store) -> None:
    """Append until the disk refuses; how many batches it took stands beside the disk."""
    for number in range(1000):
        _append(store, number)
        (store.results.parents[1] / "acknowledged").write_text(str(number + 1))


def test_a_disk_that_fills_up_loses_no_row_that_was_acknowledged(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        store = Store(disk / "results")
        with pytest.raises(StorageError, match=r"shards: No space left on device \(.* MiB free\)") as caught:
            _fill(store)
        assert "free some space there, and run the same command again" in str(caught.value)
        acknowledged = int((tmp_path / "acknowledged").read_text())
        assert acknowledged > 3
        assert not list(store.shards.glob(".aside-*"))
        assert len(batches(store)) == acknowledged
        shutil.copytree(store.results, tmp_path / "larger")
    larger = Store(tmp_path / "larger")
    assert larger.ingest() == acknowledged
    counts = larger.query("SELECT stage, count(*) FROM raw.training_steps GROUP BY ALL").rows()
    assert dict(counts) == {f"s{number}": 2000 for number in range(acknowledged)}


def test_a_disk_too_full_for_the_database_leaves_it_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 24 * 1024) as disk:
        store = Store(disk / "results")
        _append(store, 0)
        store.ingest()
        for number in range(1, 60):
            _append(store, number)
        full = f"cannot write in {store.results}: No space left on device"
        # Refused where the rows are written, where they are committed, and where the log is merged.
        for kib in (0, 300, 1000):
            ballast = leave(disk, kib)
            with pytest.raises(StorageError, match=full):
                store.ingest()
            assert store.query("SELECT DISTINCT stage FROM raw.training_steps").rows() == [("s0",)]
        with pytest.raises(StorageError, match=full):
            store.rebuild()
        assert not list(store.results.glob(".harness.rebuild*"))
        ballast.unlink()
        assert store.ingest() == 59
        assert store.query("SELECT count(*), count(DISTINCT stage) FROM raw.training_steps").rows() == [(120_000, 60)]
        before = content(store)
        store.rebuild()
        after = content(store)
        assert all(before[name].equals(after[name]) for name in before)


def test_a_read_only_folder_can_be_read_and_says_so_when_written(sound: Store, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 32 * 1024) as disk:
        shutil.copytree(sound.results, disk / "results")
        remount(disk, "ro")
        store = Store(disk / "results")
        try:
            for write in (store.ingest, store.rebuild, lambda: store.append("training_steps", [STEP])):
                with pytest.raises(StorageError, match=r"Read-only file system .* make it writable for you"):
                    write()
            assert store.query("SELECT count(*) FROM trials").item() > 0
        finally:
            remount(disk, "rw")
