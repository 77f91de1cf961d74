"""Tracking beside a sweep: what has ended is there before its end, and no tracker slows, fails or holds up a sweep."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import polars as pl
import pytest

from harness.errors import StorageError, UserError
from harness.store import Store
from harness.trackers import TrackedRun, Tracker, _live, _open, tracking
from tests.report.stores import derive
from tests.store.scenario import SWEEP
from tests.trackers.contract import everything

ROOT = Path(__file__).parent.parent.parent

SUITE = """
name: tracked
models: [{model}]
recipes:
  sft: [{{sft: {{steps: 3, batch_size: 2, learning_rate: {{min: 1e-5, max: 1e-3, log: true}}}}}}]
measure: {{gold: {{limit: 8, max_new_tokens: 6}}}}
objectives: {{gold_reward: maximize}}
precision: float32
budget: {{trials_per_cell: {trials}, batch: 1}}
"""


def _events(results: Path, sweep: str = SWEEP) -> set[str]:
    below = results / "tensorboard" / sweep
    return {file.parent.relative_to(below).as_posix() for file in below.rglob("*tfevents*")}


class _Notes(list[str]):
    """What was noted."""

    def __call__(self, text: str) -> None:
        self.append(text)


def _copy(store: Store, results: Path) -> Store:
    return derive(store, results, {})


def test_what_has_ended_is_there_while_the_sweep_runs_and_the_rest_at_its_end(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_live, "EVERY_S", 0.05)
    notes = _Notes()
    results = tmp_path / "results"

    def tuning(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.filter(pl.col("phase") == "tune")

    half = derive(store, results, {"trial_events": tuning})
    rest = store.query("SELECT * EXCLUDE (batch, batch_row) FROM raw.trial_events WHERE phase = 'final'").to_dicts()

    async def sweep() -> None:
        async with tracking(results, SWEEP, ["tensorboard"], notes):
            deadline = time.monotonic() + 30
            while len(_events(results)) < 8 and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            assert _events(results) == {name for name in everything(store) if "/tune-" in name}
            monkeypatch.setattr(_live, "EVERY_S", 1000.0)
            half.append("trial_events", [{**row, "at": row["at"].isoformat() + "+00:00"} for row in rest])
            half.ingest()

    asyncio.run(sweep())
    assert _events(results) == everything(store).keys()
    assert notes == []


def test_an_interrupted_sweep_is_tracked_as_far_as_it_came(store: Store, tmp_path: Path) -> None:
    results, notes = tmp_path / "results", _Notes()
    _copy(store, results)

    async def sweep() -> None:
        async with tracking(results, SWEEP, ["tensorboard"], notes):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(sweep())
    assert _events(results) == everything(store).keys()
    assert notes == []


def test_after_a_disk_has_refused_nothing_more_is_written(store: Store, tmp_path: Path) -> None:
    results, notes = tmp_path / "results", _Notes()
    _copy(store, results)

    async def sweep() -> None:
        async with tracking(results, SWEEP, ["tensorboard"], notes):
            raise StorageError("full")

    with pytest.raises(StorageError):
        asyncio.run(sweep())
    assert _events(results) == set()
    assert notes == []


def test_a_tracker_that_fails_is_left_out_and_that_is_said_once(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_live, "EVERY_S", 0.02)
    results, notes = tmp_path / "results", _Notes()
    _copy(store, results)
    (results / "tensorboard").write_text("in the way")

    async def sweep() -> str:
        async with tracking(results, SWEEP, ["tensorboard"], notes):
            await asyncio.sleep(1.0)
        return "done"

    assert asyncio.run(sweep()) == "done"
    assert len(notes) == 1
    assert "tensorboard: left out from here on" in notes[0]
    assert f"harness export tensorboard {SWEEP}" in notes[0]


class _Hanging:
    """A server that never answers."""

    look = "nowhere"

    def __init__(self) -> None:
        self.asked = threading.Event()

    def known(self) -> Mapping[str, str]:
        return {}

    def remove(self, name: str) -> None:
        pass

    def write(self, run: TrackedRun) -> None:
        self.asked.set()
        time.sleep(60)

    def close(self) -> None:
        pass


def test_a_tracker_that_hangs_holds_up_neither_the_sweep_nor_the_other_trackers(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, notes, real = _Hanging(), _Notes(), _live.open_tracker
    results = tmp_path / "results"
    _copy(store, results)

    @contextlib.contextmanager
    def opened(name: str, place: str | None, store: Store, sweep: str) -> Iterator[Tracker]:
        if name == "tensorboard":
            with real(name, place, store, sweep) as tracker:
                yield tracker
        else:
            yield hanging

    monkeypatch.setattr(_live, "open_tracker", opened)
    monkeypatch.setattr(_live, "refuse_missing", lambda names: None)
    monkeypatch.setattr(_live, "EVERY_S", 0.02)
    monkeypatch.setattr(_live, "_LAST_S", 1.0)

    async def sweep() -> float:
        async with tracking(results, SWEEP, ["mlflow", "tensorboard"], notes):
            await asyncio.to_thread(hanging.asked.wait, 30)
            began = time.monotonic()
        return time.monotonic() - began

    assert asyncio.run(sweep()) < 5
    assert _events(results) == everything(store).keys()
    assert len(notes) == 1
    assert f"mlflow: not all is written after 1 s; for the rest: harness export mlflow {SWEEP}" in notes[0]


def test_a_tracker_that_is_not_installed_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = _open._Kind("no_such_module", "posttrain-harness[wandb]", "wandb")
    monkeypatch.setitem(_open.TRACKERS, "wandb", kind)
    ran: list[str] = []

    async def sweep() -> None:
        async with tracking(tmp_path, SWEEP, ["wandb"], ran.append):
            ran.append("the sweep")

    with pytest.raises(UserError, match=r"pip install 'posttrain-harness\[wandb\]'"):
        asyncio.run(sweep())
    assert ran == []


def _ended(results: Path) -> bool:
    # Of what was written, not of the database, which the sweep fills now and then.
    # What a worker writes aside is no batch yet, and is renamed at any moment.
    written = (pl.read_parquet(file) for file in results.glob("shards/[!.]*/trial_events.parquet"))
    ended = (pl.col("state") == "complete") & (pl.col("phase") == "tune")
    return any(not events.filter(ended).is_empty() for events in written)


def _command(suite: Path, results: Path) -> list[str]:
    places = ["--results", str(results), "--reports", str(results / "reports"), "--workers", "1"]
    return [sys.executable, "-m", "harness.cli", "sweep", str(suite), *places]


def test_every_sweep_leaves_event_files_one_interrupted_too(tiny_model: Path, tmp_path: Path) -> None:
    suite, results = tmp_path / "tracked.yaml", tmp_path / "results"
    suite.write_text(SUITE.format(model=tiny_model, trials=40))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        _command(suite, results), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and child.poll() is None and not _ended(results):
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=120)
    assert child.returncode == 130, said
    assert "left out" not in said
    sweep = Store(results).query("SELECT sweep FROM suites")["sweep"][0]
    found, wanted = _events(results, sweep), everything(Store(results), sweep)
    assert found == wanted.keys()
    assert {name.split("/")[0] for name in found} == {"base", "sft"}
    assert any(run.curves for run in wanted.values())
