"""What early stopping goes by: the curves and scores of a cell's earlier trials, and of what is computed already.

Everything here follows from the stored history of earlier closed batches. Rivals are the trials that completed and
those that were pruned at a rung, the latter with the values they were pruned by: neither ever changes, whatever another
sweep computes meanwhile. Trials that failed, diverged or ran out of time are nobody's rivals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from harness.execute import Item, MeasureSpec, StageSpec
from harness.history import history, training_rungs
from harness.objectives import main_metric
from harness.resolve import Facts, Run, own_stages
from harness.rungs import MeasureRungs, Point, StageRungs, judge_curve, judge_scores, rung_values
from harness.search import Past, best_trial
from harness.store import Store

__all__ = ["Rungs", "judge_measured", "judge_stage", "scores_of"]

_OF_GOLD = ("gold_reward", "rm_reward")


class Rungs:
    """Puts rungs into the specs of tuning trials; specs of final runs never come here."""

    def __init__(self, facts: Facts, store: Store, sweep: str, note: Callable[[str], None]) -> None:
        """`note` is told, once a step, where the suite's metric is not logged."""
        self._facts, self._suite, self._store, self._sweep, self._note = facts, facts.suite, store, sweep, note
        self._values: dict[tuple[str, str, int, int], list[float | None]] = {}
        self._told: set[tuple[str, int]] = set()

    def of_training(self, run: Run, trial: int, specs: Sequence[StageSpec]) -> list[StageSpec]:
        """The stages of a tuning trial, with rungs on those of the cell's own searched steps."""
        early = self._suite.early_stopping
        if early is None or early.training is None:
            return list(specs)
        asked, numbered = early.training, training_rungs(self._suite, run.recipe)
        rivals = self._rivals(run, trial)
        keys = own_stages(self._facts, run)
        found: dict[str, StageRungs] = {}
        for position in dict.fromkeys(position for position, _ in numbered):
            curves = [self._rival_values(run, rival, position) for rival in rivals]
            found[keys[position]] = StageRungs(
                at=tuple(asked.rungs),
                direction=asked.direction,
                first=1 + next(i for i, (p, _) in enumerate(numbered) if p == position),
                metric=asked.metric,
                keep=asked.keep,
                after=asked.after,
                rivals=tuple(tuple(c[i] for c in curves if len(c) > i) for i in range(len(asked.rungs))),
            )
        return [s.model_copy(update={"rungs": found[s.key]}) if s.key in found else s for s in specs]

    def of_documents(self, run: Run, trial: int, spec: MeasureSpec) -> MeasureSpec:
        """The measurements of a tuning trial, with rungs where an earlier trial has scores to be held against."""
        early = self._suite.early_stopping
        if early is None or early.documents is None:
            return spec
        (objective, direction) = next(iter(self._suite.objectives.items()))
        tasks = {i.key: str(i.settings.get("of", i.kind)) for i in spec.items if _counts(i, objective)}
        best = best_trial(self._rivals(run, trial), [direction])
        if best is None or not tasks:
            return spec
        rows = self._tuned(run, best.number)
        names = {i.key: i.task for i in spec.items if i.key in tasks}
        measured: dict[str, set[str]] = {}
        for key, name in names.items():
            measured.setdefault(tasks[key], set()).update(metric for task, metric, _, _ in rows if task == name)
        metrics = {key: _metric(objective, measured[task]) for key, task in tasks.items() if measured[task]}
        rungs = MeasureRungs(
            at=tuple(early.documents.rungs),
            direction=direction,
            first=1 + len(training_rungs(self._suite, run.recipe)),
            p=early.documents.p,
            metrics=metrics,
            tasks=tasks,
            rival={
                key: {d: score for t, m, d, score in rows if t == names[key] and m == metric}
                for key, metric in metrics.items()
            },
            against=best.number,
        )
        return spec.model_copy(update={"rungs": rungs})

    def _rivals(self, run: Run, trial: int) -> list[Past]:
        """The trials of earlier batches that completed or were pruned."""
        start = self._suite.budget.batch_start(trial)
        past = history(self._store, self._suite, self._sweep, run.recipe, run.model)
        return [p for p in past if p.number < start and p.state in ("complete", "pruned")]

    def _rival_values(self, run: Run, rival: Past, position: int) -> list[float | None]:
        """The values of an earlier trial at the rungs of one of its stages, as far as it came."""
        where = (run.recipe, run.model, rival.number, position)
        if where not in self._values:
            self._values[where] = self._read_values(run, rival, position)
        return self._values[where]

    def _read_values(self, run: Run, rival: Past, position: int) -> list[float | None]:
        early = self._suite.early_stopping
        training = early.training if early else None
        if training is None:
            return []
        numbered = training_rungs(self._suite, run.recipe)
        if rival.state == "pruned":
            reached = self._pruned_values(run, rival.number)
            if not reached:
                return []
            last = max(reached)
            # A trial that came to its documents has whole curves; one that did not, nothing beyond its last rung.
            if last <= len(numbered) and position >= numbered[last - 1][0]:
                return [reached.get(n) for n, (p, _) in enumerate(numbered, 1) if p == position and n <= last]
        past = replace(run, settings={**run.settings, run.recipe: rival.settings})
        stage = own_stages(self._facts, past)[position]
        points = stored_curve(self._store, stage, training.metric)
        if not points:
            self._tell(run, position, stage, training.metric)
        return rung_values(points, training.rungs)

    def _pruned_values(self, run: Run, trial: int) -> dict[int, float]:
        return dict(
            self._store.query(
                'SELECT rung, "value" FROM rungs WHERE sweep = ? AND recipe = ? AND model = ? AND trial = ?',
                [self._sweep, run.recipe, run.model, trial],
            ).rows()
        )

    def _tell(self, run: Run, position: int, stage: str, metric: str) -> None:
        logged = self._store.query(
            "SELECT DISTINCT metric FROM raw.training_steps WHERE stage = ? ORDER BY metric", [stage]
        )["metric"].to_list()
        if (run.recipe, position) not in self._told:
            self._told.add((run.recipe, position))
            step = self._suite.steps(run.recipe)[position].name
            self._note(
                f"{run.recipe}: no trial is stopped while {step} trains, which does not log {metric} "
                f"(early_stopping.training.metric); it logs {', '.join(logged) or 'nothing'}"
            )

    def _tuned(self, run: Run, trial: int) -> list[tuple[str, str, str, float]]:
        """(task, metric, document, score) of a tuning trial."""
        return self._store.query(
            "SELECT m.task, s.metric, s.document, s.score FROM raw.samples s JOIN raw.measurements m "
            "USING (measurement) WHERE s.half = 'tune' AND s.measurement IN (SELECT measurement FROM "
            "raw.measurement_links WHERE sweep = ? AND recipe = ? AND model = ? AND trial = ? AND phase = 'tune')",
            [self._sweep, run.recipe, run.model, trial],
        ).rows()


def _counts(item: Item, objective: str) -> bool:
    """Whether the objective is made of this measurement."""
    if item.kind == "gold":
        return objective in _OF_GOLD
    return item.kind == "task" and (objective == "score" or item.settings["of"] == objective.rpartition(".")[0])


def _metric(objective: str, measured: set[str]) -> str:
    if objective in _OF_GOLD:
        return objective
    return main_metric(measured) if objective == "score" else objective.rpartition(".")[2]


def stored_curve(store: Store, stage: str, metric: str) -> list[Point]:
    """What a completed stage logged of a metric, in order."""
    rows = store.query(
        'SELECT s.step, coalesce(c.total, max(s.step) OVER ()), s."value" FROM raw.training_steps s '
        "LEFT JOIN raw.training_curves c ON c.curve = s.stage AND c.metric = s.metric "
        "WHERE s.stage = ? AND s.metric = ? ORDER BY s.batch_row",
        [stage, metric],
    ).rows()
    return [Point(*row) for row in rows]


def judge_stage(store: Store, spec: StageSpec) -> None:
    """Whether a stage that is there already would have been computed to its end.

    Raises:
        HopelessError: it would have been stopped at one of the spec's rungs.
    """
    if spec.rungs is not None:
        store.ingest()
        judge_curve(spec.rungs, stored_curve(store, spec.key, spec.rungs.metric))


def scores_of(store: Store, metrics: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Key of a stored measurement → document of the tuning half → its score under the metric of that key."""
    store.ingest()
    found: dict[str, dict[str, float]] = {key: {} for key in metrics}
    rows = store.query(
        "SELECT measurement, metric, document, score FROM raw.samples "
        "WHERE half = 'tune' AND list_contains(?, measurement)",
        [list(metrics)],
    ).rows()
    for key, metric, document, score in rows:
        if metrics[key] == metric:
            found[key][document] = score
    return found


def judge_measured(store: Store, rungs: MeasureRungs) -> None:
    """Whether measurements that are all there already would have been made to their end.

    Raises:
        HopelessError: they would have been stopped at one of the rungs.
    """
    judge_scores(rungs, scores_of(store, rungs.metrics))
