"""TensorBoard: an event file a run, in a folder of its own.

Written by tensorboardX, which needs nothing that is not here already; TensorBoard itself only shows them. Of its
library's own writer nothing is used but the encoding: it puts the machine's name into the file's, and each writer is a
thread.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness._disk import writing
from harness.trackers._protocol import Setting, TrackedRun, TrackedSweep
from harness.trackers._runs import path_part

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import SessionStartInfo
    from tensorboardX.proto.summary_pb2 import Summary

__all__ = ["TensorBoard", "opened"]

_PREFIX = "events.out.tfevents."
_ENCODING = ("record_writer", "proto.event_pb2", "proto.summary_pb2", "proto.plugin_hparams_pb2", "proto.api_pb2")
"""The modules of tensorboardX that are used here."""


def opened(place: str | None, default: Path, sweep: TrackedSweep) -> "TensorBoard":
    """The event files of a sweep below a folder."""
    return TensorBoard(Path(place) if place else default, sweep)


class TensorBoard:
    """The event files of one sweep: `<folder>/<sweep>/<run>/events.out.tfevents.<when it ended>.<revision>`.

    A file is written aside and renamed: half of one is never visible.
    """

    def __init__(self, folder: Path, sweep: TrackedSweep) -> None:
        self.look = f"tensorboard --logdir {folder}"
        self._folder = folder / path_part(sweep.sweep)
        self._files: dict[str, Path] = {}
        for file in self._folder.glob(f"*/*/*/{_PREFIX}*"):
            self._files[file.parent.relative_to(self._folder).as_posix()] = file

    def known(self) -> Mapping[str, str]:
        """By the names of the files."""
        return {name: file.name.rpartition(".")[2] for name, file in self._files.items()}

    def remove(self, name: str) -> None:
        """Remove its file."""
        with writing(self._folder):
            self._files.pop(name).unlink(missing_ok=True)

    def write(self, run: TrackedRun) -> None:
        """Write its file."""
        _load_encoding()
        from tensorboardX.record_writer import RecordWriter

        folder = self._folder / run.name
        file = folder / f"{_PREFIX}{run.ended.timestamp():.0f}.{run.revision}"
        aside = folder / ".partial"
        with writing(self._folder):
            folder.mkdir(parents=True, exist_ok=True)
            aside.unlink(missing_ok=True)
            writer = RecordWriter(str(aside))
            for event in _events(run):
                writer.write(event.SerializeToString())
            writer.close()
            aside.rename(file)
        self._files[run.name] = file

    def close(self) -> None:
        """Nothing is left open."""


def _load_encoding() -> None:
    """Import `_ENCODING`, but not what the package itself does: all of torch, for seconds, to know an array of its."""
    name = "tensorboardX"
    spec = importlib.util.find_spec(name) if not {name, "torch"} & sys.modules.keys() else None
    if spec is None:
        return
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        for module in _ENCODING:
            importlib.import_module(f"{name}.{module}")
    finally:
        # Whoever asks for the package itself gets it whole.
        del sys.modules[name]


def _events(run: TrackedRun) -> "Iterator[Event]":
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    at = run.ended.timestamp()
    yield Event(wall_time=run.began.timestamp(), file_version="brain.Event:2")
    yield Event(wall_time=run.began.timestamp(), summary=_session(run, began=True))
    values = [Summary.Value(tag=name, simple_value=value) for name, value in run.figures.items()]
    yield Event(wall_time=at, step=0, summary=Summary(value=values))
    steps: dict[int, dict[str, float]] = {}
    for name, points in run.curves.items():
        for step, value in points:
            steps.setdefault(step, {})[name] = value
    for step, found in sorted(steps.items()):
        values = [Summary.Value(tag=name, simple_value=value) for name, value in found.items()]
        yield Event(wall_time=at, step=step, summary=Summary(value=values))
    yield Event(wall_time=at, summary=_session(run, began=False))


def _session(run: TrackedRun, *, began: bool) -> "Summary":
    """What TensorBoard's table of hyperparameters goes by: the settings of a run, or how it ended."""
    from tensorboardX.proto.api_pb2 import Status
    from tensorboardX.proto.plugin_hparams_pb2 import (
        HParamsPluginData,
        SessionEndInfo,
        SessionStartInfo,
    )
    from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

    if began:
        start = SessionStartInfo(start_time_secs=run.began.timestamp(), group_name=run.name)
        facts = {k: v for k, v in run.facts().items() if k not in ("sweep", "suite", "trial", "seed", "artifact")}
        for name, value in {**facts, "trial": run.trial, "seed": run.seed, **run.settings}.items():
            _set(start, name, value)
        data, tag = HParamsPluginData(session_start_info=start), "_hparams_/session_start_info"
    else:
        status = Status.Value("STATUS_SUCCESS" if run.state == "complete" else "STATUS_FAILURE")
        end = SessionEndInfo(status=status, end_time_secs=run.ended.timestamp())
        data, tag = HParamsPluginData(session_end_info=end), "_hparams_/session_end_info"
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])


def _set(start: "SessionStartInfo", name: str, value: Setting) -> None:
    if isinstance(value, bool):
        start.hparams[name].bool_value = value
    elif isinstance(value, int | float):
        start.hparams[name].number_value = value
    else:
        start.hparams[name].string_value = "null" if value is None else value
