"""Which files of a folder of lm-eval results belong together, and which run of each task counts."""

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.foreign._provenance import model_label
from harness.foreign._reading import brief, read_object

__all__ = ["ForeignRun", "TaskFile", "config_of", "find_tasks", "is_task_name", "section"]

_RESULTS = re.compile(r".+_(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d{1,6})?)\.json")
_TASK = re.compile(r"[^/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_LONGEST_NAME = 200
"""Bytes: with the date behind it, a file's name has room for no more."""


@dataclass(frozen=True)
class ForeignRun:
    """One run of lm-eval: its results file as it was read, and the date in its name."""

    path: Path
    date: str
    results: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """What the run was started with."""
        return section(self, "config")

    @property
    def tasks(self) -> list[str]:
        """The tasks with documents of their own; groups have none."""
        return list(section(self, "configs"))

    def samples(self, task: str) -> Path:
        """Where lm-eval writes the samples of a task of this run."""
        return self.path.parent / f"samples_{task}_{self.date}.jsonl"


@dataclass(frozen=True)
class TaskFile:
    """A task, the run whose figures count for it, and how many runs of the folder have it."""

    task: str
    run: ForeignRun
    runs: int


def section(run: ForeignRun, name: str) -> Mapping[str, Any]:
    """A part of the results that is an object by name.

    Raises:
        UserError: it is not there, or no object.
    """
    found = run.results.get(name)
    if not isinstance(found, dict):
        got = "nothing" if name not in run.results else brief(found)
        raise UserError(f"{run.path}: {name}: expected an object, as lm-eval's results have it, got {got}")
    return found


def config_of(run: ForeignRun, task: str) -> Mapping[str, Any]:
    """How a task was configured.

    Raises:
        UserError: the results do not say it.
    """
    found = section(run, "configs").get(task)
    if not isinstance(found, dict):
        raise UserError(f"{run.path}: configs: {brief(task)}: expected the task's configuration, got {brief(found)}")
    return found


def is_task_name(name: str) -> bool:
    """Whether this can name a task, and so a file in the folder at hand and nowhere else."""
    return _TASK.fullmatch(name) is not None and len(name.encode()) <= _LONGEST_NAME


def find_tasks(folder: Path) -> list[TaskFile]:
    """The latest run of each task below a folder, by the dates in the names of the files; tasks in order of name.

    Args:
        folder: what `--output_path` named, or the folder in it that lm-eval made for the model.

    Raises:
        UserError: no results; results of several models, or of one model with several settings, in the runs that count;
            a damaged results file; or the latest run of a task has no samples.
    """
    runs = [_read(path, date) for path, date in _results_files(folder)]
    labels = sorted({model_label(run.results) for run in runs})
    if len(labels) > 1:
        names = ", ".join(brief(label) for label in labels)
        raise UserError(f"{folder}: holds results of {len(labels)} models ({names}); import each of the folders in it")
    having: dict[str, list[ForeignRun]] = {}
    for run in sorted(runs, key=lambda r: (_instant(r.date), str(r.path))):
        for task in run.tasks:
            having.setdefault(task, []).append(run)
    found = [TaskFile(task, having[task][-1], len(having[task])) for task in sorted(having)]
    _check_samples(found)
    return found


def _instant(date: str) -> str:
    # Without a fraction where that happened to be 0, which would sort behind every other fraction.
    return date if "." in date else f"{date}.0"


def _results_files(folder: Path) -> list[tuple[Path, str]]:
    if not folder.is_dir():
        problem = "is a file" if folder.is_file() else "no such folder"
        raise UserError(f"{folder}: {problem}; expected the folder that lm-eval's --output_path named")
    try:
        # Not through links: what lies behind one is no part of the folder.
        places = [folder, *sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())]
        found = [(path, match["date"]) for place in places for path in sorted(place.iterdir())
                 if (match := _RESULTS.fullmatch(path.name))]  # fmt: skip
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from error
    if not found:
        raise UserError(
            f"{folder}: no results_<date>.json in it or in a folder in it; expected what "
            "`lm_eval run --log_samples --output_path DIR` writes"
        )
    return found


def _read(path: Path, date: str) -> ForeignRun:
    try:
        datetime.datetime.strptime(date.partition(".")[0], "%Y-%m-%dT%H-%M-%S")  # local time there
    except ValueError as error:
        raise UserError(f"{path}: {date} is no date; expected results_<date>.json as lm-eval names it") from error
    run = ForeignRun(path, date, read_object(path))
    for name in ("results", "configs", "config"):
        section(run, name)
    for task in run.tasks:
        if not is_task_name(task):
            raise UserError(f"{path}: configs: {brief(task)} cannot be the name of a task")
        config_of(run, task)
    if not run.tasks:
        raise UserError(f"{path}: configs: names no task")
    return run


def _check_samples(found: Sequence[TaskFile]) -> None:
    for one in found:
        path = one.run.samples(one.task)
        if path.exists() or path.is_symlink():
            continue
        others = [task for task in one.run.tasks if one.run.samples(task).exists()]
        if others:
            raise UserError(
                f"{one.run.path}: its samples of {brief(one.task)} are missing: expected {brief(path.name)} beside it; "
                "copy that file here too"
            )
        earlier = "; or remove this file, and an earlier run counts" if one.runs > 1 else ""
        raise UserError(
            f"{one.run.path}: no samples beside it, so there are no scores to compare by document: run lm-eval again "
            f"with --log_samples{earlier}"
        )
