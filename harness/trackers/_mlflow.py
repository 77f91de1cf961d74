"""MLflow: an experiment a sweep, in a local SQLite file or on the server that the user names."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from harness._secrets import redacted
from harness.errors import UserError
from harness.trackers._protocol import Setting, TrackedRun, TrackedSweep

__all__ = ["MLflow", "opened"]

_NAME, _REVISION = "harness.run", "harness.revision"
"""Tags of a run: the latter is set last, so that one without it is not wholly there."""

_METRICS, _OTHERS, _RUNS = 1000, 100, 1000
"""How much MLflow takes, and gives, at once."""

_LONGEST_NAME, _LONGEST_VALUE = 250, 6000


def opened(place: str | None, default: Path, sweep: TrackedSweep) -> "MLflow":
    """The experiment of a sweep in the store or on the server that `place` or MLFLOW_TRACKING_URI names.

    Raises:
        UserError: it cannot be had there.
    """
    uri = place or os.environ.get("MLFLOW_TRACKING_URI") or str(default)
    if "://" not in uri:
        file = Path(uri) if Path(uri).suffix and not Path(uri).is_dir() else Path(uri) / default.name
        file.parent.mkdir(parents=True, exist_ok=True)
        uri = f"sqlite:///{file}"
    # It reports how it is used to its makers unless told not to before it is imported.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Its first use of a database is told in dozens of lines.
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _answering(uri):
        return MLflow(uri, sweep)


@contextlib.contextmanager
def _answering(uri: str) -> Iterator[None]:
    """What MLflow refuses within the block is the user's to mend: a server that is gone, a file that is none of its."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise UserError(redacted(f"MLflow at {uri}: {reason}")) from error


class MLflow:
    """The runs of one sweep, in the experiment of its name."""

    def __init__(self, uri: str, sweep: TrackedSweep) -> None:
        from mlflow import MlflowClient

        self.look = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else uri
        self._uri, self._client = uri, MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(sweep.sweep)
        if found is None:
            tags = {"suite": sweep.suite, "mlflow.note.content": sweep.question}
            self._experiment = self._client.create_experiment(sweep.sweep, tags=tags)
        elif found.lifecycle_stage == "deleted":
            raise UserError(f"MLflow at {uri}: the experiment {sweep.sweep} was deleted; restore it, or name another")
        else:
            self._experiment = found.experiment_id
        self._ids: dict[str, list[str]] = {}
        self._revisions: dict[str, str] = {}
        for run in self._runs():
            name, revision = run.data.tags.get(_NAME), run.data.tags.get(_REVISION, "")
            if name is not None:
                self._ids.setdefault(name, []).append(run.info.run_id)
                self._revisions[name] = revision if len(self._ids[name]) == 1 else ""

    def _runs(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_runs([self._experiment], max_results=_RUNS, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def known(self) -> Mapping[str, str]:
        """By their tags, when it was opened and since."""
        return dict(self._revisions)

    def remove(self, name: str) -> None:
        """Delete it, as MLflow does: it can be restored."""
        with _answering(self._uri):
            for run_id in self._ids.pop(name):
                self._client.delete_run(run_id)
        del self._revisions[name]

    def write(self, run: TrackedRun) -> None:
        """Write a run in batches, then say that it is whole."""
        with _answering(self._uri):
            self._write(run)

    def _write(self, run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param, RunTag

        at = _milliseconds(run.ended)
        made = self._client.create_run(
            self._experiment, start_time=_milliseconds(run.began), tags={_NAME: run.name}, run_name=run.name
        )
        run_id = made.info.run_id
        tags = [RunTag(name, value) for name, value in run.facts().items()]
        params = [Param(_key(name), _text(value)) for name, value in {**run.fixed, **run.settings}.items()]
        for some in _some([*tags, *params], _OTHERS):
            self._client.log_batch(
                run_id,
                tags=[one for one in some if isinstance(one, RunTag)],
                params=[one for one in some if isinstance(one, Param)],
            )
        metrics = [Metric(_key(name), value, at, 0) for name, value in run.figures.items()]
        for name, points in run.curves.items():
            metrics += [Metric(_key(name), value, at, step) for step, value in points]
        for some in _some(metrics, _METRICS):
            self._client.log_batch(run_id, metrics=some)
        status = "FINISHED" if run.state == "complete" else "KILLED" if run.state == "pruned" else "FAILED"
        self._client.set_terminated(run_id, status=status, end_time=at)
        self._client.set_tag(run_id, _REVISION, run.revision)
        self._ids[run.name], self._revisions[run.name] = [run_id], run.revision

    def close(self) -> None:
        """Each call was an exchange of its own."""


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _some(things: Sequence[Any], count: int) -> Iterator[list[Any]]:
    for start in range(0, len(things), count):
        yield list(things[start : start + count])


def _key(name: str) -> str:
    """A name as MLflow takes it: letters, digits, and `_-. :/`; not as a path that leads elsewhere."""
    return re.sub(r"[^\w\-. :/]", "_", name).replace("..", "_.")[:_LONGEST_NAME]


def _text(value: Setting) -> str:
    return str(value)[:_LONGEST_VALUE]
