"""From a suite to a plan: every check that can be made before anything runs, and what the sweep will cost."""

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from harness._available import PartialSuite, missing_targets, refusals
from harness._sizes import bytes_below
from harness.data import DataSource, dataset_problem, load_training_set
from harness.errors import UserError
from harness.execute import StageSpec
from harness.gold import parse_constraints
from harness.keys import content_key
from harness.method import find_method
from harness.models import content_problem, folder_fingerprint, model_problem, resolve_model
from harness.outlook import CellOutlook, Outlook, orphaned
from harness.resolve import Facts
from harness.store import Store
from harness.suite import Suite
from harness.targets import RUNTIMES, fast_bf16, machine

__all__ = ["Cell", "Estimate", "Plan", "disk_problem", "gather_facts", "make_plan"]

_SCORED = ("eager", "inductor", *RUNTIMES)
"""Backends that tasks, gold and judge run on; on another they would run in torch, and not say so."""


@dataclass(frozen=True)
class Cell:
    """One recipe × one base model, with its budget. `searched` is empty where nothing is tuned."""

    recipe: str
    model: str
    trials: int
    searched: tuple[str, ...]
    steps: tuple[str, ...]
    new: int = 0
    """Stages to compute; what cells share counts for the first of them."""
    cached: int = 0
    """Stages whose artifacts are there."""
    undecided: int = 0
    """Stages whose settings the search has yet to suggest, at most."""


@dataclass
class Estimate:
    """What is known of the cost before the start; None is unknown, and shown so."""

    stages: int = 0
    """Stages after sharing: new, cached and undecided."""
    new: int = 0
    """To compute, with settings that are known."""
    cached: int = 0
    """Complete artifacts."""
    undecided: int = 0
    """Stages whose settings the search has yet to suggest, at most."""
    measurements: int = 0
    """Measurements that are known to be asked for; those of undecided stages come on top."""
    measured: int = 0
    """Of those, in the store."""
    orphaned: int = 0
    """Artifacts that earlier versions of this suite have left, and that this one does not go by."""
    orphaned_gb: float = 0.0
    seconds: float | None = None
    disk_gb: float | None = None


@dataclass
class Plan:
    """Cells, cost and facts of one sweep."""

    suite: Suite
    facts: Facts
    cells: list[Cell]
    sweep: str
    estimate: Estimate = field(default_factory=Estimate)
    skipped: dict[str, str] = field(default_factory=dict)
    """Target of the suite that is left out → what this machine lacks for it."""
    unmeasured: tuple[str, ...] = ()
    """Recipes that are not run, since every target that could run what they leave is left out."""

    def to_json(self) -> dict[str, object]:
        """As it is stored with the sweep."""
        return {
            "cells": [asdict(c) for c in self.cells],
            "estimate": asdict(self.estimate),
            "skipped": dict(self.skipped),
            "unmeasured": list(self.unmeasured),
            "precision": self.facts.precision,
            "data": self.facts.source.label(),
            "models": dict(self.facts.models),
            "datasets": {f"{name} ({kind})": print_ for (name, kind), print_ in self.facts.datasets.items()},
        }


def gather_facts(
    suite: Suite,
    data: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    *,
    skip_unavailable: bool = False,
) -> Facts:
    """Check everything a suite needs from the outside world, and fingerprint it.

    Args:
        suite: the suite.
        data: `--data`, which goes before the suite's own key.
        say: told what takes a while.
        skip_unavailable: leave out targets that this machine cannot run; the facts' suite is then one without them.

    Raises:
        UserError: all that is missing, a line each, with where it could come from.
    """
    source = DataSource(data or suite.data)
    missing = missing_targets(suite)
    problems = [*_problems(suite, source), *refusals(suite, missing, skip=skip_unavailable)]
    if problems:
        raise UserError("\n".join(problems))
    if missing:
        suite = PartialSuite.of(suite, missing)
    automatic: Literal["float32", "bfloat16"] = "bfloat16" if fast_bf16() else "float32"
    precision = automatic if suite.precision == "auto" else suite.precision
    from harness.measure.tasks import task_fingerprint

    models = {}
    for name in (*suite.models, *_teachers(suite)):
        say(f"preparing the model {name}")
        models[name] = content_key("model", files=folder_fingerprint(_sound_model(suite, name)))
    if (judging := _judge_model(suite)) is not None:
        say(f"preparing the model {judging}")
        _sound_model(suite, judging)
    say("reading the data")
    datasets = {
        (name, kind): load_training_set(name, kind, source)[1]  # type: ignore[arg-type]  # a method's declared kind
        for name, kind in _datasets(suite)
    }
    gold: dict[str, object] | None = None
    if suite.measure.gold is not None:
        rows, fingerprint = load_training_set(suite.measure.gold.dataset, "prompts", source, split="test")
        if "constraints" not in rows.column_names:
            raise UserError(f"measure.gold.dataset: {suite.measure.gold.dataset!r} has no column constraints")
        _check_gold(suite.measure.gold.dataset, rows)
        gold = {"rows": fingerprint}
    judge = None
    if suite.measure.judge is not None:
        from harness.measure.judge import judge_fingerprint

        judge = judge_fingerprint(source, suite.measure.judge.model_dump(exclude={"cost_per_vote"}))
    tasks: dict[str, Mapping[str, Mapping[str, object]]] = {}
    for name, settings in suite.measure.tasks.items():
        say(f"reading the documents of {name}")
        tasks[name] = task_fingerprint(source, name, settings)
    return Facts(
        suite=suite,
        source=source,
        precision=precision,
        models=models,
        datasets=datasets,
        tasks=tasks,
        gold=gold,
        judge=judge,
        machine=machine(),
    )


def _problems(suite: Suite, source: DataSource) -> Iterable[str]:
    where = str(suite.source or suite.name)
    if problem := source.problem():
        yield f"{suite.place('data')}: data: {problem}"
        return
    for index, name in enumerate(suite.models):
        if problem := model_problem(name):
            yield f"{suite.place('models', index)}: models: {name!r}: {problem}"
    for name in _teachers(suite):
        if problem := model_problem(name):
            yield f"{_setting_place(suite, 'teacher', name)}: the teacher {name!r}: {problem}"
    if (judging := _judge_model(suite)) is not None and (problem := model_problem(judging)):
        yield f"{suite.place('measure', 'judge', 'model')}: measure.judge.model: {judging!r}: {problem}"
    yield from _dataset_problems(suite, source)
    yield from _import_problems(suite, where)
    yield from _quality_problems(suite, where)
    if suite.measure.tasks:
        from harness.measure.tasks import task_problem

        for name, settings in suite.measure.tasks.items():
            if problem := task_problem(source, name, settings):
                yield f"{suite.place('measure', 'tasks', name)}: measure.tasks.{name}: {problem}"


def _dataset_problems(suite: Suite, source: DataSource) -> Iterable[str]:
    for name, _ in _datasets(suite):
        if problem := dataset_problem(name, source):
            yield f"{_setting_place(suite, 'dataset', name)}: dataset {name!r}: {problem}"
    if suite.measure.gold is not None and (p := dataset_problem(suite.measure.gold.dataset, source)):
        yield f"{suite.place('measure', 'gold', 'dataset')}: measure.gold.dataset: {p}"
    judge = suite.measure.judge
    if judge is not None and judge.prompts is not None and (p := dataset_problem(judge.prompts, source)):
        yield f"{suite.place('measure', 'judge', 'prompts')}: measure.judge.prompts: {p}"


def _setting_place(suite: Suite, setting: str, value: str) -> str:
    """Where the first step stands that gives a setting this value."""
    for recipe, steps in suite.recipes.items():
        for index, step in enumerate(steps):
            for method, settings in step.items():
                given = settings.get(setting) if isinstance(settings, dict) else None
                if given == value or (isinstance(given, dict) and value in given.get("values", ())):
                    return suite.place("recipes", recipe, index, method, setting)
    return suite.place("recipes")


def _judge_model(suite: Suite) -> str | None:
    """The model that judges, where it is neither a recipe's nor one of the suite's own."""
    judge = suite.measure.judge
    known = ("self", "base", *suite.recipes, *suite.models)
    return None if judge is None or judge.model in known else judge.model


def _sound_model(suite: Suite, name: str) -> Path:
    """The folder of a model, looked through: a stage would find out late, and a comparison perhaps never."""
    kinds = {kind for _, kind in _datasets(suite)}
    folder = resolve_model(name)
    chat = bool(kinds - {"text"}) or suite.measure.gold is not None or suite.measure.judge is not None
    if problem := content_problem(folder, chat=chat):
        raise UserError(f"model {name!r}: {problem}")
    return folder


def _check_gold(name: str, rows: Iterable[Mapping[str, object]]) -> None:
    for number, row in enumerate(rows, start=1):
        try:
            parse_constraints(str(row["constraints"]))
        except ValueError as error:
            raise UserError(f"measure.gold.dataset: {name!r}, row {number}: {error}") from error


def _import_problems(suite: Suite, where: str) -> Iterable[str]:
    for recipe in suite.recipe_order():
        for step in (s for s in suite.steps(recipe) if s.recipe == recipe):
            for module, extra in step.imports().items():
                if importlib.util.find_spec(module) is None:
                    need = f"needs {module}: pip install 'posttrain-harness[{extra}]'"
                    yield f"{where}: recipes.{recipe}: {step.method} {need}"


def _quality_problems(suite: Suite, where: str) -> Iterable[str]:
    measure = suite.measure
    if not measure.tasks and measure.gold is None and measure.judge is None:
        return
    asked = {t.name: t for recipe in ("base", *suite.recipes) for t in suite.quality_targets(recipe)}
    for target in asked.values():
        if target.backend not in _SCORED:
            yield (
                f"{where}: measure.quality_target: quality is not measured on backend {target.backend} (target "
                f"{target.name}), only latency and memory are: name another, or set measure.every_numerics: false"
            )


def _teachers(suite: Suite) -> list[str]:
    """The models that steps name as their teacher and that are neither a recipe's nor one of the suite's own."""
    named = [name for recipe in suite.recipe_order() for step in suite.steps(recipe) for name in step.teachers]
    known = {"base", *suite.recipes, *suite.models}
    return list(dict.fromkeys(str(name) for name in named if name is not None and name not in known))


def _datasets(suite: Suite) -> list[tuple[str, str]]:
    """(dataset, kind) of every step, also each value of a searched dataset."""
    found: dict[tuple[str, str], None] = {}
    for recipe in suite.recipe_order():
        for step in suite.steps(recipe):
            kind = find_method(step.method).dataset_kind
            if kind is None:
                continue
            space = step.spaces.get("dataset")
            names = (space.values or ()) if space else (step.settings.get("dataset"),)
            found.update({(str(n), str(kind)): None for n in names if n is not None})
    return list(found)


def make_plan(suite: Suite, facts: Facts, results: Path, outlook: Outlook | None = None) -> Plan:
    """Cells and cost. `outlook`: what the sweep will find (`look_ahead`); without it, all stages count as undecided."""
    cells = []
    # A whole suite has a target for every recipe; one without the targets that this machine lacks may not.
    unmeasured = tuple(r for r in suite.recipe_order() if not suite.targets_of(r))
    for model in suite.models:
        for recipe in suite.recipe_order():
            if recipe in unmeasured:
                continue
            space = suite.search_space(recipe)
            trials = suite.budget.trials_per_cell if space else 0
            found = outlook.cells[recipe, model] if outlook else CellOutlook(undecided=_stages(suite, recipe))
            steps = tuple(s.method for s in suite.steps(recipe))
            cells.append(Cell(recipe, model, trials, tuple(space), steps, found.new, found.cached, found.undecided))
    estimate = Estimate(
        new=sum(cell.new for cell in cells),
        cached=sum(cell.cached for cell in cells),
        undecided=sum(cell.undecided for cell in cells),
    )
    estimate.stages = estimate.new + estimate.cached + estimate.undecided
    missing = estimate.new + estimate.undecided
    estimate.disk_gb = _disk(suite, missing) if missing else 0.0
    if not missing:
        estimate.seconds = 0.0
    if outlook is not None:
        estimate.measurements, estimate.measured = len(outlook.measurements), outlook.measured
        store = Store(results)
        if store.ready():
            if missing and not estimate.undecided:
                estimate.seconds = _seconds(store, outlook.new)
            orphans = orphaned(store, suite, outlook)
            estimate.orphaned = len(orphans)
            estimate.orphaned_gb = round(sum(map(bytes_below, orphans)) / 2**30, 3)
    skipped = dict(suite.skipped) if isinstance(suite, PartialSuite) else {}
    return Plan(suite, facts, cells, suite.sweep_id(), estimate, skipped, unmeasured)


def _stages(suite: Suite, recipe: str) -> int:
    """Stages of a cell after sharing, at most."""
    own = [step for step in suite.steps(recipe) if step.recipe == recipe]
    fixed = next((i for i, step in enumerate(own) if step.spaces), len(own))
    # Trials share what comes before the first searched step; the chosen trial is one of the tuning runs.
    tuned = suite.budget.trials_per_cell + len(suite.seeds) - 1
    return fixed * len(suite.seeds) + (len(own) - fixed) * tuned


def _disk(suite: Suite, stages: int) -> float | None:
    sizes = []
    for name in suite.models:
        sizes.append(bytes_below(resolve_model(name)))
    return round(stages * max(sizes) / 2**30, 1) if sizes else None


def _seconds(store: Store, waiting: Iterable[StageSpec]) -> float | None:
    """Training seconds from earlier stages of the same method; None as soon as one has never been run here."""
    past = dict(store.query("SELECT method, median(seconds) FROM stages GROUP BY method").rows())
    known = [past.get(spec.method) for spec in waiting]
    return None if None in known else sum(seconds for seconds in known if seconds is not None)


def disk_problem(plan: Plan, results: Path) -> str | None:
    """Why the artifacts would not fit, or None."""
    need = plan.estimate.disk_gb
    place = next(p for p in [results, *results.absolute().parents] if p.exists())
    free = shutil.disk_usage(place).free / 2**30
    if need is not None and need > free:
        return (
            f"{results}: the artifacts need about {need:.1f} GB, {free:.1f} GB are free; use --results on another disk"
        )
    return None
