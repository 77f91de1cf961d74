"""trackio: a project a sweep, in a local SQLite file; nothing goes to a Space unless the user runs `trackio sync`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.trackers._protocol import TrackedRun, TrackedSweep

__all__ = ["Trackio", "opened"]

_NAME, _REVISION = "harness run", "harness revision"
"""Keys of a run's configuration."""


def opened(place: str | None, default: Path, sweep: TrackedSweep) -> "Trackio":
    """The project of a sweep in a folder."""
    return Trackio(Path(place or os.environ.get("TRACKIO_DIR") or default), sweep)


class Trackio:
    """The runs of one sweep.

    They are written by trackio's own storage and not by `trackio.init`, which puts the present time at every point,
    prints, watches the hardware in a thread, and may write to a Space that an environment variable names. A run's
    points and configuration go in one transaction: half of a run is never there.
    """

    def __init__(self, folder: Path, sweep: TrackedSweep) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.look = f"TRACKIO_DIR={folder} trackio show --project {sweep.sweep}"
        self._folder, self._project = folder.absolute(), sweep.sweep
        configs = self._storage().get_all_run_configs(self._project)
        found = [(key, config) for key, config in configs.items() if _NAME in config]
        self._keys = {str(config[_NAME]): str(key) for key, config in found}
        self._revisions = {str(config[_NAME]): str(config[_REVISION]) for _, config in found}

    def _storage(self) -> Any:  # noqa: ANN401  # trackio has no types for it
        import trackio.sqlite_storage
        import trackio.utils

        # It reads where its files are once, when it is imported.
        for module in (trackio.utils, trackio.sqlite_storage):
            module.TRACKIO_DIR = self._folder
        return trackio.sqlite_storage.SQLiteStorage

    def known(self) -> Mapping[str, str]:
        """By their configurations, when it was opened and since."""
        return dict(self._revisions)

    def remove(self, name: str) -> None:
        """Delete it."""
        self._storage().delete_run(self._project, name, run_id=self._keys.pop(name))
        del self._revisions[name]

    def write(self, run: TrackedRun) -> None:
        """Write a run in one transaction."""
        steps: dict[int, dict[str, float]] = {0: dict(run.figures)}
        for name, points in run.curves.items():
            for step, value in points:
                steps.setdefault(step, {})[name] = value
        rising = sorted(steps)
        config = {
            **run.fixed,
            **run.settings,
            **run.facts(),
            _NAME: run.name,
            _REVISION: run.revision,
            "_Group": run.recipe,
            "_Created": run.began.isoformat(),
        }
        self._storage().bulk_log(
            self._project,
            run.name,
            [steps[step] for step in rising],
            steps=rising,
            timestamps=[run.ended.isoformat()] * len(rising),
            config=config,
            run_id=run.key,
        )
        self._keys[run.name], self._revisions[run.name] = run.key, run.revision

    def close(self) -> None:
        """Each write was a transaction of its own."""
