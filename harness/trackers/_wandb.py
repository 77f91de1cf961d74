"""Weights & Biases: a run a run, grouped by sweep, in a project of the suite's name.

Offline unless the user's WANDB_MODE says otherwise: `wandb sync` sends what lies in the folder. What W&B finds out by
itself about a machine (host, user, program, git, load) is turned off; a run carries what the harness gives it.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness._disk import replace, writing
from harness._secrets import redacted
from harness.errors import UserError
from harness.trackers._protocol import TrackedRun, TrackedSweep

if TYPE_CHECKING:
    import wandb

__all__ = ["WandB", "opened"]

_MARK = "harness.json"
"""Beside a run's own files: which run it is, and once it is whole its revision."""

_LONGEST_TAG = 64


def opened(place: str | None, default: Path, sweep: TrackedSweep) -> "WandB":
    """The runs of a sweep below a folder.

    Raises:
        UserError: WANDB_MODE asks for a mode in which nothing is kept.
    """
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode not in ("offline", "online"):
        raise UserError(f"WANDB_MODE={mode}: expected offline (the default here) or online")
    # Its errors go to its makers unless told not to before it is imported.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    return WandB(Path(place or os.environ.get("WANDB_DIR") or default), mode, sweep)


class WandB:
    """The runs of one sweep, each in a folder of W&B's making: `<folder>/wandb/<mode>run-<time>-<key>`."""

    def __init__(self, folder: Path, mode: str, sweep: TrackedSweep) -> None:
        self._folder, self._mode, self._sweep = folder.absolute(), mode, sweep
        self.look = (
            f"wandb sync {folder / 'wandb'}/offline-run-* sends them to your account"
            if mode == "offline"
            else "https://wandb.ai"
        )
        self._marks: dict[str, tuple[Path, str]] = {}
        for mark in sorted(self._folder.glob(f"wandb/*run-*/{_MARK}")):
            found = json.loads(mark.read_text(encoding="utf-8"))
            if found["sweep"] == sweep.sweep:
                self._marks[found["run"]] = mark.parent, found["revision"]

    def known(self) -> Mapping[str, str]:
        """By the marks in the folder, when it was opened and since."""
        return {name: revision for name, (_, revision) in self._marks.items()}

    def remove(self, name: str) -> None:
        """Remove its folder; what was sent to a server stays there."""
        folder, _ = self._marks.pop(name)
        with writing(self._folder):
            shutil.rmtree(folder)

    def write(self, run: TrackedRun) -> None:
        """Write a run as W&B does, then say that it is whole.

        Raises:
            UserError: W&B refuses it: online without an account, or a server that does not answer.
        """
        import wandb

        try:
            self._write(run)
        except wandb.Error as error:
            raise UserError(redacted(f"W&B ({self._mode}): {' '.join(str(error).split())}")) from error

    def _write(self, run: TrackedRun) -> None:
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            # One that died before it had its mark.
            for left in self._folder.glob(f"wandb/*run-*-{run.key}"):
                shutil.rmtree(left)
            begun = self._begun(run)
            folder = Path(begun.dir).parent
            self._marks[run.name] = folder, ""
            mark = {"sweep": run.sweep.sweep, "run": run.name, "revision": ""}
            replace(folder / _MARK, json.dumps(mark))
            try:
                for step, values in _by_step(run):
                    begun.log(values, step=step)
                begun.summary.update(dict(run.figures))
            except BaseException:
                begun.finish(exit_code=1)
                raise
            begun.finish(exit_code=0 if run.state == "complete" else 1)
            replace(folder / _MARK, json.dumps({**mark, "revision": run.revision}))
        self._marks[run.name] = folder, run.revision

    def _begun(self, run: TrackedRun) -> "wandb.Run":
        import wandb

        quiet = wandb.Settings(
            console="off",
            silent=True,
            save_code=False,
            disable_code=True,
            disable_git=True,
            host="",
            username="",
            email="",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_start_time=run.began.timestamp(),
        )
        return wandb.init(
            project=run.sweep.suite,
            id=run.key,
            name=run.name,
            group=run.sweep.sweep,
            job_type=run.phase,
            tags=[part[:_LONGEST_TAG] for part in (run.recipe, run.state, *([run.failure] if run.failure else []))],
            notes=run.sweep.question,
            config={**run.fixed, **run.settings, **run.facts()},
            dir=str(self._folder),
            mode="online" if self._mode == "online" else "offline",
            reinit="create_new",
            settings=quiet,
        )

    def close(self) -> None:
        """Each run was finished."""


def _by_step(run: TrackedRun) -> Iterator[tuple[int, dict[str, float]]]:
    """The points of all curves by training step, as W&B takes them: steps rising."""
    found: dict[int, dict[str, float]] = {}
    for name, points in run.curves.items():
        for step, value in points:
            found.setdefault(step, {})[name] = value
    yield from sorted(found.items())
