"""From a suite to a plan: every check that can be made before anything runs, and what the sweep will cost."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from harness._available import PartialSuite, missing_targets, refusals
from harness._sizes import bytes_below
from harness.checks import check_gold, judge_models, sound_model, suite_problems, teachers, training_sets
from harness.data import DataSource, load_training_set
from harness.errors import UserError
from harness.execute import StageSpec
from harness.keys import content_key
from harness.models import folder_fingerprint, resolve_model
from harness.outlook import CellOutlook, Outlook, orphaned
from harness.resolve import Facts
from harness.store import Store
from harness.suite import Suite
from harness.targets import fast_bf16, machine

__all__ = ["Cell", "Estimate", "Plan", "disk_problem", "gather_facts", "make_plan"]


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
    repeats: int = 0
    """Of the measurements, those that are made of the base models a second time, for the noise floor."""
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
    elsewhere: bool = False,
) -> Facts:
    """Check everything a suite needs from the outside world, and fingerprint it.

    Args:
        suite: the suite.
        data: `--data`, which goes before the suite's own key.
        say: told what takes a while.
        skip_unavailable: leave out targets that this machine cannot run; the facts' suite is then one without them.
        elsewhere: it runs on a cluster, whose machines this one cannot ask what they lack.

    Raises:
        UserError: all that is missing, a line each, with where it could come from.
    """
    source = DataSource(data or suite.data)
    missing = {} if elsewhere else missing_targets(suite)
    problems = [*suite_problems(suite, source), *refusals(suite, missing, skip=skip_unavailable)]
    if problems:
        raise UserError("\n".join(problems))
    if missing:
        suite = PartialSuite.of(suite, missing)
    automatic: Literal["float32", "bfloat16"] = "bfloat16" if fast_bf16() else "float32"
    precision = automatic if suite.precision == "auto" else suite.precision
    from harness.measure.tasks import task_fingerprint

    models = {}
    for name in dict.fromkeys((*suite.models, *teachers(suite), *judge_models(suite))):
        say(f"preparing the model {name}")
        models[name] = content_key("model", files=folder_fingerprint(sound_model(suite, name)))
    say("reading the data")
    datasets = {
        (name, kind): load_training_set(name, kind, source)[1]  # type: ignore[arg-type]  # a method's declared kind
        for name, kind in training_sets(suite)
    }
    gold: dict[str, object] | None = None
    if suite.measure.gold is not None:
        rows, fingerprint = load_training_set(suite.measure.gold.dataset, "prompts", source, split="test")
        if "constraints" not in rows.column_names:
            raise UserError(f"measure.gold.dataset: {suite.measure.gold.dataset!r} has no column constraints")
        check_gold(suite.measure.gold.dataset, rows)
        gold = {"rows": fingerprint}
    domains = _domains(suite, source)
    judge = quality = None
    if (judging := suite.measure.judge) is not None:
        from harness.measure.judge import judge_fingerprint, quality_fingerprint

        judge = judge_fingerprint(source, judging)
        quality = quality_fingerprint(source, judging.quality) if judging.quality else None
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
        quality=quality,
        domains=domains,
        machine=machine(),
    )


def _domains(suite: Suite, source: DataSource) -> dict[str, str]:
    """Domain → fingerprint of its documents, none of which is trained on.

    Raises:
        UserError: a document is a row of a training set, answer and all.
    """
    found: dict[str, str] = {}
    if not suite.measure.domains:
        return found
    from harness.measure.domains import domain_documents, domain_fingerprint, domain_overlap

    names = [name for name, kind in training_sets(suite) if kind == "instructions"]
    trained = {name: load_training_set(name, "instructions", source)[0] for name in names}
    limit = suite.measure.domain_limit
    for domain, dataset in suite.measure.domains.items():
        rows, _ = load_training_set(dataset, "instructions", source, split="test")
        documents = domain_documents(rows, limit)
        for name, own in trained.items():
            if known := domain_overlap(documents, own):
                place = suite.place("measure", "domains", domain)
                raise UserError(
                    f"{place}: measure.domains.{domain}: {known} of {len(documents)} documents of {dataset!r} are rows "
                    f"of {name!r}, which a step trains on; name the held-out split, as in <org>/<dataset>:config:test"
                )
        found[domain] = domain_fingerprint(rows, limit)
    return found


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
        estimate.repeats = len(outlook.repeats)
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
