"""What the gates look at: the final runs of a sweep with their answers, read once, and their documents' source."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data import DataSource
from harness.errors import UserError
from harness.gates._types import Flag, Severity, Unchecked
from harness.measure._requests import Requests
from harness.objectives import main_metric
from harness.store import TABLES
from harness.suite import Task

if TYPE_CHECKING:
    import polars as pl

    from harness.measure.tasks import LeafTask
    from harness.store import Store

__all__ = ["BASE", "Asked", "Documents", "Evidence", "read_evidence", "settings_of"]

BASE = "base"

# Final measurements of the final half, each with the run it counts for. `made_of` is the artifact that the measurement
# itself says it is of, `artifact` the one that the run says it has.
_RUNS = """
    SELECT DISTINCT s.recipe, s.model, s.trial, s.seed, s.target, s.artifact, s.measurement,
        m.kind, m.task, m.artifact AS made_of, m.settings, m.data
    FROM scores s JOIN raw.measurements m USING (measurement)
    WHERE s.sweep = $sweep AND s.phase = 'final' AND s.split = 'final'
    ORDER BY recipe, model, trial, seed, target, kind, m.task, measurement
"""
# Long texts stay in the database: two answers that agree in 200 characters are one answer here.
_ANSWERS = """
    SELECT s.measurement, s.document, s.metric, s.score, left(trim(s.response), 200) AS response,
        left(trim(s.expected), 200) AS expected, length(s.response) AS characters
    FROM raw.samples s WHERE s.half = 'final' AND list_contains($keys, s.measurement)
    UNION ALL
    SELECT j.measurement, j.document, j.aspect, avg(j.score), left(any_value(trim(j.response)), 200), NULL,
        any_value(length(j.response))
    FROM raw.judge_votes j WHERE j.half = 'final' AND list_contains($keys, j.measurement) GROUP BY ALL
    ORDER BY ALL
"""


# A measurement of earlier versions recorded nothing.
_REQUESTS = f"""
    SELECT {", ".join(TABLES["requests"].names)} FROM raw.requests WHERE list_contains($keys, measurement)
"""


@dataclass(frozen=True)
class Asked:
    """One model under one name of the suite: its answers on one target, of every seed.

    The untouched model's one measurement stands under every seed; it is here once, its seed None.
    """

    recipe: str
    model: str
    target: str
    task: str
    kind: str
    seeds: "Mapping[int | None, pl.DataFrame]"
    """Seed → its rows: leaf, document, metric, score, response, expected, characters; sorted."""
    settings: Mapping[str, Mapping[str, object]]
    """Leaf task → what its measurement was asked to do."""
    recorded: Mapping[str, Requests] = field(default_factory=dict)
    """Leaf task → what its measurement recorded of its requests; empty unless all leaves of the first seed did."""

    @property
    def metric(self) -> str:
        """The metric it goes by."""
        return main_metric({str(m) for rows in self.seeds.values() for m in rows["metric"].unique()})

    def flag(
        self, gate: str, severity: Severity, message: str, figures: Mapping[str, float], seed: int | None = None
    ) -> Flag:
        """A flag of this model on this task."""
        return Flag(gate, severity, self.recipe, self.model, self.task, seed, message, figures)

    def unchecked(self, gate: str, why: str) -> Unchecked:
        """Why this was not checked."""
        return Unchecked(gate, self.recipe, self.model, self.task, why)

    def for_all(self) -> "Asked":
        """The same, speaking of all recipes: what is found depends on the task and the base model alone."""
        return replace(self, recipe="")

    def graded(self) -> bool:
        """Whether scores are grades (a share of probability) and not just right or wrong."""
        return any(not r["score"].is_in([0.0, 1.0]).all() for r in self.of(self.metric).values())

    def of(self, metric: str) -> "Mapping[int | None, pl.DataFrame]":
        """Seed → the rows of one metric."""
        import polars as pl

        return {seed: rows.filter(pl.col("metric") == metric) for seed, rows in self.seeds.items()}

    def table(self, metric: str, column: str = "score") -> dict[str, list[float]]:
        """Document (`leaf/document`) → its values over the seeds, for documents that every seed has."""
        by_seed = [
            {f"{leaf}/{document}": float(value) for leaf, document, value in rows.iter_rows() if value is not None}
            for rows in (part.select("leaf", "document", column) for part in self.of(metric).values())
        ]
        common = set.intersection(*(set(one) for one in by_seed)) if by_seed else set()
        return {document: [one[document] for one in by_seed] for document in sorted(common)}


@dataclass(frozen=True)
class Documents:
    """The documents of a task as the source has them: leaf → identity → document."""

    leaves: "Mapping[str, LeafTask]"
    by_identity: Mapping[str, Mapping[str, Mapping[str, object]]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """A sweep as the gates see it. Without `source` no documents or training rows are read, without `results` no
    artifacts."""

    store: "Store"
    sweep: str
    source: DataSource | None
    results: Path | None
    suite: Mapping[str, Any]
    runs: "pl.DataFrame"
    asked: Sequence[Asked]
    _documents: dict[str, Documents | str] = field(default_factory=dict, repr=False)

    def on(self, one: Asked) -> str:
        """ " on <target>" where a sweep measured quality on several targets, else nothing."""
        targets = {a.target for a in self.asked}
        return f" on {one.target}" if len(targets) > 1 else ""

    def models(self) -> list[tuple[str, str]]:
        """(recipe, model) of every final run, in order."""
        return [
            (str(r), str(m)) for r, m in self.runs.select("recipe", "model").unique(maintain_order=True).iter_rows()
        ]

    def base_of(self, one: Asked) -> Asked | None:
        """The untouched model under the same name, on the same target if it runs there."""
        same = [a for a in self.asked if (a.recipe, a.model, a.task) == (BASE, one.model, one.task)]
        return next((a for a in same if a.target == one.target), same[0] if same else None)

    def documents(self, one: Asked) -> Documents | str:
        """The documents of a task, or why they cannot be had; read once for all models."""
        if self.source is None:
            return "no data source was given, and the store does not hold it"
        if one.task not in self._documents:
            self._documents[one.task] = _load(self.source, one)
        found = self._documents[one.task]
        return found if isinstance(found, str) else _unlike(found, one, self.source) or found


def _load(source: DataSource, one: Asked) -> Documents | str:
    from harness.measure.tasks import load_tasks

    given = next(iter(one.settings.values()), {})
    settings = {name: given[name] for name in Task.model_fields if name in given}
    if settings.get("num_fewshot") is not None:
        # Documents do not depend on it, and a number that the split cannot give would be refused.
        settings["num_fewshot"] = 0
    try:
        leaves = load_tasks(source, {one.task: Task.model_validate(settings)})[one.task]
    except UserError as error:
        return str(error)
    except ValueError as error:
        return f"its settings {settings} are not those of a task here: {error}"
    return Documents(
        {leaf.name: leaf for leaf in leaves},
        {leaf.name: dict(zip(leaf.identities, leaf.documents, strict=True)) for leaf in leaves},
    )


def _unlike(found: Documents, one: Asked, source: DataSource) -> str | None:
    """Why these are not the documents that were measured, or None."""
    measured = {(str(leaf), str(d)) for r in one.seeds.values() for leaf, d in r.select("leaf", "document").iter_rows()}
    absent = [d for leaf, d in measured if d not in found.by_identity.get(leaf, {})]
    if not absent:
        return None
    return f"{len(absent)} of its {len(measured)} documents are not in {source.name}: give the source that was measured"


def settings_of(text: object) -> dict[str, Any]:
    """A stored JSON object; {} for anything else."""
    found = json.loads(text) if isinstance(text, str) else text
    return found if isinstance(found, dict) else {}


def read_evidence(
    store: "Store", sweep: str, source: DataSource | None = None, results: Path | None = None
) -> Evidence:
    """Read a sweep, finished or not.

    Raises:
        UserError: the store knows no such sweep.
    """
    with store.reading():
        known = store.query("SELECT suite_json FROM suites WHERE sweep = $sweep", {"sweep": sweep})
        if known.is_empty():
            raise UserError(f"no sweep {sweep!r} in {store.results}: run `harness sweep SUITE` first")
        runs = store.query(_RUNS, {"sweep": sweep})
        keys = {"keys": runs["measurement"].unique().sort().to_list()}
        answers = store.query(_ANSWERS, keys)
        recorded = {r.pop("measurement"): _requests(r) for r in store.query(_REQUESTS, keys).to_dicts()}
    asked = list(_asked(runs, answers, recorded))
    return Evidence(store, sweep, source, results, settings_of(known.item()), runs, asked)


def _requests(row: dict[str, Any]) -> Requests:
    return Requests(**{**row, "other_choices": settings_of(row["other_choices"])})


def _asked(runs: "pl.DataFrame", answers: "pl.DataFrame", recorded: Mapping[str, Requests]) -> Iterator[Asked]:
    import polars as pl

    of = {str(key): part.drop("measurement") for (key,), part in answers.group_by("measurement", maintain_order=True)}
    if runs.is_empty():
        return
    # A suite asks for a group such as mmlu by one name, under which its subjects are told apart as leaves.
    names = [
        str(settings_of(settings).get("of") or task) if kind in ("task", "domain") else str(kind)
        for kind, task, settings in runs.select("kind", "task", "settings").iter_rows()
    ]
    runs = runs.with_columns(pl.Series("name", names, dtype=pl.String))
    for key, mine in runs.group_by("recipe", "model", "target", "name", "kind", maintain_order=True):
        recipe, model, target, name, kind = map(str, key)
        measured: dict[frozenset[str], tuple[int, pl.DataFrame]] = {}
        for (seed,), part in mine.group_by("seed", maintain_order=True):
            rows = [
                of[m].select(pl.lit(task, dtype=pl.String).alias("leaf"), pl.all())
                for m, task in part.select("measurement", "task").sort("task").iter_rows()
                if m in of
            ]
            # One measurement under several seeds is one answer.
            measured.setdefault(frozenset(part["measurement"].to_list()), (int(str(seed)), pl.concat(rows)))
        alone = recipe == BASE and len(measured) == 1
        seeds = {None if alone else seed: rows for seed, rows in measured.values()}
        settings = {str(t): settings_of(s) for t, s in mine.select("task", "settings").iter_rows()}
        first = mine.filter(pl.col("seed") == pl.col("seed").min()).select("task", "measurement").rows()
        known = {str(t): recorded[m] for t, m in first if m in recorded}
        yield Asked(recipe, model, target, name, kind, seeds, settings, known if len(known) == len(first) else {})
