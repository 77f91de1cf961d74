"""A sweep's searches as Optuna studies in a database, for Optuna's dashboard and whatever else reads them.

The sweep itself keeps no study (`harness.search`): these are copies, made from the store.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness._secrets import redacted
from harness.errors import UserError
from harness.history import history, training_rungs
from harness.keys import content_key
from harness.rungs import rung_values
from harness.search import Past, distribution
from harness.sweep._rungs import stored_curve
from harness.trackers._protocol import TrackedRun
from harness.trackers._runs import StoredRun, model_label, read_runs, read_sweep, stored_runs

if TYPE_CHECKING:
    import optuna

    from harness.store import Store
    from harness.suite import Suite

__all__ = ["export_studies", "storage_url"]

_REVISION = "harness revision"
"""User attribute of a study that is whole: a hash of what it was made from. One without it is not the harness's, or
was being written when its process was killed; only the latter has `_MADE`."""

_MADE = "harness sweep"
_FORMAT = 1

_STARTED = """
    SELECT trial, min("at") AS began FROM raw.trial_events
    WHERE sweep = ? AND recipe = ? AND model = ? AND phase = 'tune' GROUP BY trial
"""


def storage_url(to: str) -> str:
    """The URL of a storage that is named by it or by an SQLite file.

    Raises:
        UserError: it is a folder, or of an SQLite URL no file is named.
    """
    if "://" in to and not to.startswith("sqlite:///"):
        return to
    file = Path(to.removeprefix("sqlite:///"))
    if not file.name or file.is_dir():
        raise UserError(f"--to {to}: expected a file (studies.db) or an SQLAlchemy URL (sqlite:///studies.db)")
    file.parent.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{file}"


def export_studies(store: "Store", sweep: str, to: str) -> dict[str, int]:
    """Write each cell's tuning trials as a study named `<sweep>/<recipe>/<model>`.

    A study that is there as it would be written stays; one of an earlier state is replaced; other studies of the
    storage are not touched. Trials that are infeasible or failed are FAIL (which one, says the attribute `state`), as
    the search sees them; those pruned have their values at the rungs, by the rung's number, and so have complete ones
    where early stopping goes by their training.

    Args:
        store: ingested already.
        sweep: its id.
        to: an SQLite file, or the URL of an Optuna RDB storage.

    Returns:
        Name of the study → number of its trials.

    Raises:
        UserError: the sweep has no tuning trials, its suite cannot be read here, the storage cannot be opened, or
            holds a study of such a name that is not of the harness.
    """
    about = read_sweep(store, sweep)
    tuning = [one for one in stored_runs(store, sweep) if one.row["phase"] == "tune"]
    if not tuning:
        raise UserError(f"{sweep} has no tuning trials: its suite searches nothing, or none has begun yet")
    suite = _suite(store, sweep)
    cells: dict[tuple[str, str], list[StoredRun]] = {}
    for one in tuning:
        cells.setdefault((one.row["recipe"], one.row["model"]), []).append(one)
    written = {}
    with _storage(storage_url(to)) as storage:
        for (recipe, model), runs in sorted(cells.items()):
            name = f"{sweep}/{recipe}/{model_label(model)}"
            revision = content_key("study", format=_FORMAT, runs={r.name: r.revision for r in runs})
            written[name] = len(runs)
            if not _is_there(storage, name, revision):
                with store.reading():
                    details = {run.trial: run for run in read_runs(store, about, runs, curves=False)}
                    trials = [
                        _trial(suite, recipe, past, details[past.number], began, reached)
                        for past, began, reached in _history(store, suite, sweep, recipe, model)
                        if past.number in details
                    ]
                _write(storage, name, suite, trials, {_MADE: sweep, "recipe": recipe, "model": model_label(model)})
                _study(storage, name).set_user_attr(_REVISION, revision)
    return written


def _suite(store: "Store", sweep: str) -> "Suite":
    from pydantic import ValidationError

    from harness.suite import Suite

    text = store.query("SELECT suite_json FROM suites WHERE sweep = ?", [sweep])["suite_json"][0]
    try:
        return Suite.model_validate_json(text, strict=True)
    except (ValidationError, UserError) as error:
        raise UserError(
            f"the search spaces of {sweep} cannot be read from its suite here, where a method may be missing or of "
            f"another version: {error}"
        ) from error


def _history(
    store: "Store", suite: "Suite", sweep: str, recipe: str, model: str
) -> Iterator[tuple[Past, datetime, dict[int, float]]]:
    """The trials of a cell with when they began (UTC, aware) and their values at rungs, as they were logged."""
    cell = [sweep, recipe, model]
    began = dict(store.query(_STARTED, cell).rows())
    reached: dict[int, dict[int, float]] = {}
    rungs = "SELECT trial, rung, value FROM rungs WHERE sweep = ? AND recipe = ? AND model = ?"
    for trial, rung, value in store.query(rungs, cell).rows():
        reached.setdefault(trial, {})[rung] = value
    for past in history(store, suite, sweep, recipe, model):
        if past.state == "complete":
            reached[past.number] = _on_the_way(store, suite, [*cell, past.number])
        yield past, began[past.number].replace(tzinfo=UTC), reached.get(past.number, {})


def _on_the_way(store: "Store", suite: "Suite", trial: list[Any]) -> dict[int, float]:
    """The values that a trial which was not stopped had at the rungs of its training."""
    training = suite.early_stopping.training if suite.early_stopping else None
    if training is None:
        return {}
    of_trial = "sweep = ? AND recipe = ? AND model = ? AND trial = ? AND seed = ?"
    stages = dict(store.query(f"SELECT position, stage FROM lineage WHERE {of_trial}", [*trial, suite.seeds[0]]).rows())
    found: dict[int, float] = {}
    numbered = training_rungs(suite, str(trial[1]))
    for position in dict.fromkeys(position for position, _ in numbered):
        numbers = [number for number, (at, _) in enumerate(numbered, start=1) if at == position]
        points = stored_curve(store, stages[position], training.metric) if position in stages else []
        values = zip(numbers, rung_values(points, training.rungs), strict=False)
        found |= {number: value for number, value in values if value is not None}
    return found


def _trial(
    suite: "Suite", recipe: str, past: Past, run: TrackedRun, began: datetime, reached: Mapping[int, float]
) -> "optuna.trial.FrozenTrial":
    import optuna

    states = optuna.trial.TrialState
    other = {"running": states.RUNNING, "pruned": states.PRUNED}
    ended = past.state != "running"
    own = {
        f"{s.name}.{key}": value for s in suite.steps(recipe) if s.recipe == recipe for key, value in s.settings.items()
    }
    attributes = {
        **{key: value for key, value in run.facts().items() if key in ("state", "failure", "artifact")},
        "seed": run.seed,
        "trial": run.trial,
        "fixed settings": {**own, **run.fixed},
        **run.figures,
    }
    trial = optuna.trial.create_trial(
        state=states.COMPLETE if past.usable else other.get(past.state, states.FAIL),
        params=dict(past.settings),
        distributions={name: distribution(space) for name, space in suite.search_space(recipe).items()},
        values=list(past.values or ()) if past.usable else None,
        constraints=dict(past.violations) if past.usable and past.violations else None,
        intermediate_values=dict(reached),
        user_attrs=attributes,
    )
    # Optuna's own times are local and naive.
    trial.datetime_start = began.astimezone().replace(tzinfo=None)
    trial.datetime_complete = run.ended.astimezone().replace(tzinfo=None) if ended else None
    return trial


@contextlib.contextmanager
def _storage(url: str) -> "Iterator[optuna.storages.RDBStorage]":
    import optuna
    import sqlalchemy.exc

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        storage = optuna.storages.RDBStorage(url)
        yield storage
        storage.remove_session()
        storage.engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        shown = re.sub(r"(?<=://)[^/@]*@", "", url)
        raise UserError(redacted(f"--to {shown}: Optuna cannot keep studies there: {reason}")) from error


def _is_there(storage: "optuna.storages.RDBStorage", name: str, revision: str) -> bool:
    """Whether the study is there in this state; one in another state is removed.

    Raises:
        UserError: it is there, and not the harness's.
    """
    import optuna

    if name not in optuna.get_all_study_names(storage):
        return False
    study = _study(storage, name)
    if study.user_attrs.get(_REVISION) == revision:
        return True
    # One without anything was being made when its process was killed.
    if _MADE not in study.user_attrs and study.get_trials(deepcopy=False):
        raise UserError(f"a study {name} is there that the harness has not made; name another file with --to")
    optuna.delete_study(study_name=name, storage=storage)
    return False


def _study(storage: "optuna.storages.RDBStorage", name: str) -> "optuna.Study":
    import optuna

    return optuna.load_study(study_name=name, storage=storage)


def _write(
    storage: "optuna.storages.RDBStorage",
    name: str,
    suite: "Suite",
    trials: "list[optuna.trial.FrozenTrial]",
    attributes: Mapping[str, str],
) -> None:
    import optuna

    study = optuna.create_study(study_name=name, storage=storage, directions=list(suite.objectives.values()))
    for key, value in {**attributes, "objectives": json.dumps(list(suite.objectives))}.items():
        study.set_user_attr(key, value)
    study.set_metric_names(list(suite.objectives))
    study.add_trials(trials)
