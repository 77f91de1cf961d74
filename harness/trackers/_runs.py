"""From the store to what is tracked: the runs of a sweep that have ended, some at a time."""

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.keys import content_key
from harness.publish._scrub import Scrubber
from harness.store._views import LONGEST_UNFINISHED
from harness.trackers._protocol import MOST_POINTS, Setting, TrackedRun, TrackedSweep

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["StoredRun", "model_label", "path_part", "read_runs", "read_sweep", "stored_runs"]

_FORMAT = 1
"""Raised where a run that a tracker has must be written again, because more is tracked of it."""

_AT_A_TIME = 50

_STORED = """
    SELECT recipe, model, trial, seed, phase, state, settings, objectives, artifact, seconds, recorded_at
    FROM trials WHERE sweep = ? ORDER BY recorded_at, recipe, model, phase, trial, seed
"""
_WANTED = """
    wanted AS (
        SELECT unnest($recipes) AS recipe, unnest($models) AS model, unnest($trials) AS trial, unnest($seeds) AS seed
    )
"""
_RUN = "recipe, model, trial, seed"
_LINKS = f"""
    WITH {_WANTED},
    links AS (
        SELECT DISTINCT {_RUN}, l.phase, l.target, l.measurement
        FROM raw.measurement_links l JOIN wanted USING ({_RUN}) WHERE l.sweep = $sweep
    )
"""
# As the view `scores` has it, but for these measurements alone, and of a group of tasks the mean over all documents.
_SCORES = f"""
    {_LINKS},
    per_document AS (
        SELECT measurement, half, metric, score FROM raw.samples WHERE measurement IN (SELECT measurement FROM links)
        UNION ALL
        SELECT measurement, half, aspect AS metric, avg(score) AS score FROM raw.judge_votes
        WHERE measurement IN (SELECT measurement FROM links) AND score IS NOT NULL
        GROUP BY measurement, half, aspect, document
    ),
    figures AS (
        SELECT measurement, half, metric, sum(score) AS total, count(*) AS n FROM per_document GROUP BY ALL
    ),
    named AS (
        SELECT measurement, CASE kind WHEN 'task' THEN coalesce(settings->>'$.of', task) ELSE kind END AS task
        FROM raw.measurements
    )
    SELECT {_RUN}, l.phase, f.half, l.target, m.task, f.metric, sum(f.total) / sum(f.n) AS "value"
    FROM links l JOIN figures f USING (measurement) JOIN named m USING (measurement) GROUP BY ALL
"""
_PROFILES = f"""
    {_LINKS}
    SELECT {_RUN}, l.phase, l.target, p.setting, p.metric, median(p."value") AS "value"
    FROM links l JOIN raw.profile_samples p USING (measurement) GROUP BY ALL
"""
# A stage that did not complete is no part of a run's chain; its failure names it.
_STAGES = f"""
    WITH {_WANTED},
    used AS (
        SELECT {_RUN}, l."position", l.step AS method, l.stage
        FROM raw.stage_links l JOIN wanted USING ({_RUN}) WHERE l.sweep = $sweep
        UNION
        SELECT {_RUN}, NULL, c.method, e.stage
        FROM raw.failure_events e JOIN wanted USING ({_RUN}) JOIN raw.training_curves c USING (stage)
        WHERE e.sweep = $sweep
    )
    SELECT recipe, model, trial, u.seed, u.method, stage, s.params
    FROM used u LEFT JOIN raw.stages s USING (stage) ORDER BY u."position" NULLS LAST
"""
_CURVES = f"""
    WITH longest AS ({LONGEST_UNFINISHED}),
    steps AS (
        SELECT stage, metric, step, "value", batch, batch_row FROM raw.training_steps
        WHERE stage IN (SELECT unnest($stages))
        UNION ALL
        SELECT u.stage, u.metric, u.step, u."value", u.batch, u.batch_row
        FROM raw.unfinished_steps u JOIN longest USING (curve) WHERE u.stage IN (SELECT unnest($stages))
    ),
    points AS (
        SELECT stage, metric, step, arg_max("value", (batch, batch_row)) AS "value" FROM steps
        GROUP BY stage, metric, step
    ),
    counted AS (
        SELECT *, row_number() OVER (PARTITION BY stage, metric ORDER BY step) - 1 AS place,
            count(*) OVER (PARTITION BY stage, metric) - 1 AS last
        FROM points
    )
    SELECT stage, metric, step, "value" FROM counted
    WHERE last < {MOST_POINTS}
        OR place = 0 OR place * {MOST_POINTS - 1} // last > (place - 1) * {MOST_POINTS - 1} // last
    ORDER BY stage, metric, step
"""
_FAILURES = f"""
    WITH {_WANTED}
    SELECT {_RUN}, arg_max(e.kind, (e.batch, e.batch_row)) AS kind
    FROM raw.failure_events e JOIN wanted USING ({_RUN}) WHERE e.sweep = $sweep GROUP BY ALL
"""

_Run = tuple[str, str, int, int]
_Row = dict[str, Any]


class StoredRun:
    """A run of a sweep as far as its row says; the rest is read when it is wanted."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row = row
        self.ended = row["state"] != "running"
        self.name = "/".join(
            (path_part(row["recipe"]), path_part(row["model"]), f"{row['phase']}-{row['trial']:03d}-seed-{row['seed']}")
        )
        decides = {k: str(row[k]) for k in ("state", "settings", "objectives", "artifact", "recorded_at")}
        self.revision = content_key("tracked", format=_FORMAT, **decides)[:12]


def read_sweep(store: "Store", sweep: str) -> TrackedSweep:
    """What is tracked of the sweep itself.

    Raises:
        UserError: the store knows no such sweep.
    """
    rows = store.query("SELECT suite, question FROM suites WHERE sweep = ?", [sweep]).rows()
    if not rows:
        raise UserError(f"no sweep {sweep!r} in {store.results}: `harness status` lists those it has")
    clean = _cleaner()
    return TrackedSweep(sweep, clean(rows[0][0]), clean(rows[0][1]))


def stored_runs(store: "Store", sweep: str) -> list[StoredRun]:
    """The tuning trials and final runs of a sweep, in the order in which they came into their state."""
    return [StoredRun(row) for row in store.query(_STORED, [sweep]).iter_rows(named=True)]


def read_runs(
    store: "Store", sweep: TrackedSweep, runs: Sequence[StoredRun], *, curves: bool = True
) -> Iterator[TrackedRun]:
    """The whole of these runs, in their order, or all but their curves; the store is asked for some at a time."""
    clean = _cleaner()
    for start in range(0, len(runs), _AT_A_TIME):
        some = runs[start : start + _AT_A_TIME]
        details = _Details(store, sweep.sweep, some, clean, curves=curves)
        for one in some:
            yield details.run(sweep, one)


class _Details:
    def __init__(
        self, store: "Store", sweep: str, stored: Sequence[StoredRun], clean: Callable[[str], str], *, curves: bool
    ) -> None:
        runs = list(dict.fromkeys(_run(one.row) for one in stored))
        columns = zip(("recipes", "models", "trials", "seeds"), zip(*runs, strict=True), strict=True)
        wanted = {"sweep": sweep, **{name: list(values) for name, values in columns}}
        self._clean = clean
        self._figures: dict[tuple[object, ...], dict[str, float]] = {}
        for *run, phase, half, target, task, metric, value in store.query(_SCORES, wanted).rows():
            self._figure((*run, phase), (half, target, task, metric), value)
        for *run, phase, target, setting, metric, value in store.query(_PROFILES, wanted).rows():
            self._figure((*run, phase), ("profile", target, setting, metric), value)
        self._stages: dict[_Run, dict[str, tuple[str, _Row]]] = {}
        for recipe, model, trial, seed, method, stage, params in store.query(_STAGES, wanted).rows():
            found = self._stages.setdefault((recipe, model, trial, seed), {})
            found.setdefault(stage, (method, json.loads(params) if params else {}))
        self._failures = {tuple(run): kind for *run, kind in store.query(_FAILURES, wanted).rows()}
        self._points: dict[str, dict[str, list[tuple[int, float]]]] = {}
        stages = sorted({stage for found in self._stages.values() for stage in found})
        if stages and curves:
            for stage, metric, step, value in store.query(_CURVES, {"stages": stages}).rows():
                self._points.setdefault(stage, {}).setdefault(metric, []).append((step, value))

    def _figure(self, run: tuple[object, ...], parts: Sequence[str], value: float) -> None:
        self._figures.setdefault(run, {})["/".join(map(self._clean, parts))] = value

    def run(self, sweep: TrackedSweep, stored: StoredRun) -> TrackedRun:
        row, run, clean = stored.row, _run(stored.row), self._clean
        searched = {clean(k): _setting(v, clean) for k, v in json.loads(row["settings"]).items()}
        fixed: dict[str, Setting] = {}
        curves: dict[str, list[tuple[int, float]]] = {}
        taken: dict[str, int] = {}
        for stage, (method, params) in self._stages.get(run, {}).items():
            step = clean(method)
            taken[step] = taken.get(step, 0) + 1
            step += f"_{taken[step]}" if taken[step] > 1 else ""
            fixed |= {f"{step}.{clean(k)}": _setting(v, clean) for k, v in params.items()}
            for metric, points in self._points.get(stage, {}).items():
                curves[f"train/{step}/{clean(metric)}"] = points
        objectives = json.loads(row["objectives"] or "{}")
        figures = {f"objective/{clean(name)}": float(value) for name, value in objectives.items()}
        seconds = row["seconds"]
        if seconds is not None:
            figures["seconds"] = seconds
        at: datetime = row["recorded_at"].replace(tzinfo=UTC)
        return TrackedRun(
            sweep=sweep,
            name=stored.name,
            revision=stored.revision,
            recipe=clean(row["recipe"]),
            model=model_label(row["model"]),
            trial=row["trial"],
            seed=row["seed"],
            phase=row["phase"],
            state=row["state"],
            failure=None if row["state"] == "complete" else self._failures.get(run),
            artifact=row["artifact"],
            settings=searched,
            fixed={k: v for k, v in fixed.items() if k not in searched},
            figures=figures | self._figures.get((*run, row["phase"]), {}),
            curves=curves,
            began=at - timedelta(seconds=seconds or 0.0),
            ended=at,
        )


@functools.lru_cache(maxsize=1024)
def model_label(model: str) -> str:
    """The base model as it is shown: a name or hub id as it is, a folder by its last part and a hash."""
    if _cleaner()(model) == model and not model.startswith((".", "~")):
        return model
    return path_part(model)


def _run(row: Mapping[str, Any]) -> _Run:
    return row["recipe"], row["model"], row["trial"], row["seed"]


def _setting(value: object, clean: Callable[[str], str]) -> Setting:
    if value is None or isinstance(value, bool | int | float):
        return value
    return clean(value if isinstance(value, str) else json.dumps(value, sort_keys=True))


def _cleaner() -> Callable[[str], str]:
    # Names of users and hosts stay: a tracker is the user's own place, and a hub id may begin with them.
    return functools.lru_cache(maxsize=None)(Scrubber().name)


@functools.lru_cache(maxsize=1024)
def path_part(text: str) -> str:
    """A name as one part of a path. What has lost something gets a hash, so that no two become one."""
    name = text if re.fullmatch(r"[\w-][\w.-]*", text, re.ASCII) else ""
    if name and len(name) <= 100:
        return name
    last = _cleaner()(text).rstrip("/").rpartition("/")[2]
    short = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-.")[:100] or "model"
    return f"{short}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
