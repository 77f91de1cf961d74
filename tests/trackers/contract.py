"""What every tracker must do. Subclass `TrackerContract` for each, with what its own library reads of a place."""

import math
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.store import Store
from harness.trackers import TrackedRun, TrackedSweep, open_tracker, refuse_missing, track
from harness.trackers._protocol import MOST_POINTS
from harness.trackers._runs import read_runs, read_sweep, stored_runs
from tests.report.stores import derive
from tests.store.scenario import SWEEP

__all__ = ["FACTS", "Seen", "TrackerContract", "everything"]

FACTS = ("sweep", "suite", "recipe", "model", "trial", "seed", "phase", "state", "failure", "artifact")
"""What a run is, beside its settings and figures."""

SECRET = "hunter2-hunter2-hunter2"
FOLDER = "/home/somebody/models/tiny"


@dataclass
class Seen:
    """One run as the tracker's own library reads it; texts where the library keeps texts only."""

    facts: dict[str, str] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def everything(store: Store, sweep: str = SWEEP) -> dict[str, TrackedRun]:
    """What there is to track of a sweep."""
    ended = [run for run in stored_runs(store, sweep) if run.ended]
    return {run.name: run for run in read_runs(store, read_sweep(store, sweep), ended)}


class _DiedError(Exception):
    """Stands for the death of the process."""


class _Breaking(Mapping[str, Sequence[tuple[int, float]]]):
    """Curves whose reading fails after the first: as if the process died there."""

    def __init__(self, curves: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        self._curves = curves

    def __getitem__(self, name: str) -> Sequence[tuple[int, float]]:
        return self._curves[name]

    def __len__(self) -> int:
        return len(self._curves)

    def __iter__(self) -> Iterator[str]:
        yield next(iter(self._curves))
        raise _DiedError


class TrackerContract(ABC):
    """The tests; `name` is the tracker's."""

    name: str
    local: Sequence[str] = ()
    """Names of files that never leave the machine, and may name it."""

    @abstractmethod
    def seen(self, place: Path, sweep: str) -> list[tuple[str, Seen]]:
        """The runs of a sweep that lie in a place, each with its name; read by the tracker's own library."""

    def to(self, place: Path) -> str:
        """What `--to` is to say for a folder."""
        return str(place)

    @pytest.fixture(autouse=True)
    def _here(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Only where it is installed, in an empty folder, with no way to another machine."""
        try:
            refuse_missing([self.name])
        except Exception as error:  # noqa: BLE001  # a UserError: the reason
            pytest.skip(str(error))
        here = tmp_path / "elsewhere"
        here.mkdir()
        monkeypatch.chdir(here)
        connect = socket.socket.connect

        def local(self: socket.socket, address: Any) -> None:
            if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
                raise AssertionError(f"a connection to {address}")
            connect(self, address)

        monkeypatch.setattr(socket.socket, "connect", local)

    def _tracked(self, store: Store, place: Path, sweep: str = SWEEP) -> int:
        with open_tracker(self.name, self.to(place), store, sweep) as tracker:
            return track(store, sweep, tracker)

    def _same(self, place: Path, wanted: Mapping[str, TrackedRun], sweep: str = SWEEP) -> None:
        found = self.seen(place, sweep)
        assert sorted(name for name, _ in found) == sorted(wanted)
        for name, seen in found:
            run = wanted[name]
            assert {k: v for k, v in seen.facts.items() if k in FACTS} == {
                k: v for k, v in run.facts().items() if k in seen.facts
            }
            assert {"recipe", "model", "trial", "seed", "phase", "state"} <= seen.facts.keys()
            assert ("failure" in seen.facts) == (run.failure is not None)
            assert {k: str(v) for k, v in seen.settings.items()} == {k: str(v) for k, v in self.settings(run).items()}
            assert seen.figures == pytest.approx({self.tag(k): v for k, v in run.figures.items()}, rel=1e-6)
            assert seen.curves.keys() == {self.tag(k) for k in run.curves}
            for curve, points in run.curves.items():
                found_points = seen.curves[self.tag(curve)]
                assert [step for step, _ in found_points] == [step for step, _ in points]
                assert [v for _, v in found_points] == pytest.approx([v for _, v in points], rel=1e-6, nan_ok=True)

    def tag(self, name: str) -> str:
        """What the tracker calls a figure or curve."""
        return name

    def settings(self, run: TrackedRun) -> Mapping[str, object]:
        """The settings that the tracker is to have of a run."""
        return {**run.settings, **run.fixed}

    def test_everything_of_every_run_arrives(self, store: Store, tmp_path: Path) -> None:
        wanted = everything(store)
        assert len(wanted) == 14
        assert {run.failure for run in wanted.values()} == {None, "failed", "infeasible"}
        assert self._tracked(store, tmp_path / "place") == 14
        self._same(tmp_path / "place", wanted)

    def test_twice_is_once(self, store: Store, tmp_path: Path) -> None:
        place = tmp_path / "place"
        self._tracked(store, place)
        assert self._tracked(store, place) == 0
        self._same(place, everything(store))

    def test_a_sweep_is_followed_as_it_goes(self, store: Store, tmp_path: Path) -> None:
        def early(frame: pl.DataFrame) -> pl.DataFrame:
            return frame.filter(pl.col("phase") == "tune")

        half = derive(store, tmp_path / "half", {"trial_events": early})
        place = tmp_path / "place"
        assert self._tracked(half, place) == 8
        self._same(place, everything(half))
        assert self._tracked(store, place) == 6
        self._same(place, everything(store))

    def test_a_run_that_is_run_again_is_replaced(self, store: Store, tmp_path: Path) -> None:
        place = tmp_path / "place"
        self._tracked(store, place)

        def again(frame: pl.DataFrame) -> pl.DataFrame:
            failed = frame.filter(pl.col("state") == "failed")
            # Its clock stood still: what was written last counts.
            return pl.concat(
                [frame, failed.with_columns(state=pl.lit("complete"), objectives=pl.lit('{"gold_reward": 0.5}'))]
            )

        retried = derive(store, tmp_path / "retried", {"trial_events": again})
        assert self._tracked(retried, place) == 1
        self._same(place, everything(retried))

    def test_what_is_run_again_now_stays_until_it_has_ended(self, store: Store, tmp_path: Path) -> None:
        place = tmp_path / "place"
        self._tracked(store, place)

        def running(frame: pl.DataFrame) -> pl.DataFrame:
            return pl.concat([frame, frame.filter(pl.col("state") == "failed").with_columns(state=pl.lit("running"))])

        assert self._tracked(derive(store, tmp_path / "running", {"trial_events": running}), place) == 0
        self._same(place, everything(store))

    def test_what_is_no_part_of_the_comparison_any_more_is_taken_out(self, store: Store, tmp_path: Path) -> None:
        place = tmp_path / "place"
        self._tracked(store, place)

        def chosen(frame: pl.DataFrame) -> pl.DataFrame:
            final = frame.filter((pl.col("recipe") == "dpo") & (pl.col("phase") == "final"))
            return pl.concat([frame, final.with_columns(trial=pl.lit(0, dtype=frame.schema["trial"]))])

        other = derive(store, tmp_path / "other", {"trial_events": chosen})
        wanted = everything(other)
        assert not [name for name in wanted if name.startswith("dpo/") and "final-001" in name]
        assert self._tracked(other, place) == 2
        self._same(place, wanted)

    def test_two_sweeps_share_a_place(self, store: Store, tmp_path: Path) -> None:
        place = tmp_path / "place"

        def renamed(frame: pl.DataFrame) -> pl.DataFrame:
            return frame.with_columns(sweep=pl.lit("other-5e6f7a8b"))

        tables = ("sweep_events", "trial_events", "stage_links", "measurement_links", "failure_events")
        other = derive(store, tmp_path / "other", dict.fromkeys(tables, renamed))
        self._tracked(store, place)
        self._tracked(other, place, "other-5e6f7a8b")
        self._same(place, everything(store))
        self._same(place, everything(other, "other-5e6f7a8b"), "other-5e6f7a8b")

    def test_a_run_that_was_half_written_is_written_again(self, store: Store, tmp_path: Path) -> None:
        place = tmp_path / "place"
        wanted = everything(store)
        run = next(run for run in wanted.values() if len(run.curves) > 1)
        with (
            pytest.raises(_DiedError),
            open_tracker(self.name, self.to(place), store, SWEEP) as tracker,
        ):
            tracker.write(replace(run, curves=_Breaking(run.curves)))
        assert self._tracked(store, place) == len(wanted)
        self._same(place, wanted)

    def test_odd_values_arrive(self, store: Store, tmp_path: Path) -> None:
        place = tmp_path / "place"
        run = _odd(read_sweep(store, SWEEP))
        with open_tracker(self.name, self.to(place), store, SWEEP) as tracker:
            tracker.write(run)
            assert tracker.known() == {run.name: run.revision}
        self._same(place, {run.name: run})
        with open_tracker(self.name, self.to(place), store, SWEEP) as tracker:
            assert tracker.known() == {run.name: run.revision}
            tracker.remove(run.name)
            assert tracker.known() == {}
        assert self.seen(place, SWEEP) == []

    def test_nothing_leaves_that_should_not(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SOME_API_KEY", SECRET)

        def named(frame: pl.DataFrame) -> pl.DataFrame:
            return frame.with_columns(model=pl.lit(FOLDER))

        def settings(frame: pl.DataFrame) -> pl.DataFrame:
            return named(frame).with_columns(settings=pl.lit(f'{{"dpo.beta": 0.1, "dpo.dataset": "x?token={SECRET}"}}'))

        def failed(frame: pl.DataFrame) -> pl.DataFrame:
            return named(frame).with_columns(message=pl.lit(f"{SECRET} in {FOLDER}"))

        changes = {
            "trial_events": settings,
            "failure_events": failed,
            "stage_links": named,
            "measurement_links": named,
            "sweep_events": lambda frame: frame.with_columns(question=pl.lit(f"Is {SECRET} in {FOLDER}?")),
        }
        dirty = derive(store, tmp_path / "dirty", changes)
        place = tmp_path / "place"
        self._tracked(dirty, place)
        wanted = everything(dirty)
        self._same(place, wanted)
        assert {run.model.rpartition("-")[0] for run in wanted.values()} == {"tiny"}
        forbidden = [SECRET, "/home/somebody", "What is 3", "The answer of", "Traceback"]
        # Two or three letters are in a log of bytes by chance.
        forbidden += [host] if len(host := socket.gethostname()) > 3 else []
        for file in place.rglob("*"):
            content = file.read_bytes() if file.is_file() and file.name not in self.local else b""
            found = [word for word in forbidden if word.encode() in content or word in str(file.relative_to(place))]
            assert not found, (file, found)


def _odd(sweep: TrackedSweep) -> TrackedRun:
    values = [math.nan if i == 7 else 1.0 / (i + 1) for i in range(MOST_POINTS)]
    return TrackedRun(
        sweep=sweep,
        name="odd/org-name-1a2b3c/tune-000-seed-4294967295",
        revision="0123456789ab",
        recipe="odd",
        model="org/name",
        trial=0,
        seed=2**32 - 1,
        phase="tune",
        state="pruned",
        failure="pruned",
        artifact=None,
        settings={
            "sft.flag": True,
            "sft.none": None,
            "sft.word": 'a "quoted"\nword — é',
            "sft.count": 3,
            "sft.rate": 1e-7,
        },
        fixed={"sft.list": "[1, 2]"},
        figures={"objective/score": -0.25, "seconds": 0.0, "tune/cpu fp32/a, b=c?/acc": 1.0},
        curves={
            "train/sft/loss": [(i * 10, value) for i, value in enumerate(values)],
            "train/sft/rewards/chosen": [(0, -1.5)],
        },
        began=datetime(2026, 3, 1, 9, 0, tzinfo=UTC),
        ended=datetime(2026, 3, 1, 9, 0, 1, 500_000, tzinfo=UTC),
    )
