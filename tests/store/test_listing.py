"""The names of batches: read again where the folder changed, and only there."""

import os
from pathlib import Path

import pytest

from harness.store import _listing
from harness.store._listing import Listing, batch_names


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """One entry for each time that the folder was read."""
    done: list[Path] = []

    def counted(folder: Path) -> list[str]:
        done.append(folder)
        return batch_names(folder)

    monkeypatch.setattr(_listing, "batch_names", counted)
    return done


def test_a_settled_folder_is_read_no_more_and_a_changed_one_is(
    tmp_path: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("harness.store._listing.time.monotonic", lambda: now)
    listing = Listing(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / ".aside-c").mkdir()
    assert listing.names() == ["b"]
    now += 2
    for _ in range(5):
        assert listing.names() == ["b"]
    assert len(readings) == 2
    (tmp_path / "a").mkdir()
    assert listing.names() == ["a", "b"]
    (tmp_path / "b").rmdir()
    assert listing.names() == ["a"]


def test_a_name_in_the_same_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    listing = Listing(tmp_path)
    (tmp_path / "a").mkdir()
    assert listing.names() == ["a"]
    tick = tmp_path.stat()
    (tmp_path / "b").mkdir()
    os.utime(tmp_path, ns=(tick.st_atime_ns, tick.st_mtime_ns))
    assert listing.names() == ["a", "b"]


def test_a_folder_that_comes_later_and_one_put_in_its_place(
    tmp_path: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("harness.store._listing.time.monotonic", lambda: now)
    shards = tmp_path / "shards"
    listing = Listing(shards)
    assert listing.names() == []
    now += 2
    assert listing.names() == []
    (shards / "a").mkdir(parents=True)
    assert listing.names() == ["a"]
    now += 2
    assert listing.names() == ["a"]
    time = shards.stat()
    shards.rename(tmp_path / "old")
    (shards / "b").mkdir(parents=True)
    os.utime(shards, ns=(time.st_atime_ns, time.st_mtime_ns))
    assert listing.names() == ["b"]
