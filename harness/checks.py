"""What is refused before anything runs: models, data and libraries that a suite names and that are not to be had."""

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness._teachers import SELF
from harness.data import TRAINING_SETS, DataSource, dataset_problem
from harness.errors import UserError
from harness.gold import parse_constraints
from harness.method import MADE, find_method
from harness.models import content_problem, model_problem, resolve_model
from harness.suite import Endpoint, Suite
from harness.targets import RUNTIMES
from harness.yamlmarks import KeyPath

__all__ = ["check_gold", "judge_models", "sound_model", "suite_problems", "teachers", "training_sets"]

_SCORED = ("eager", "inductor", *RUNTIMES)
"""Backends that tasks, gold and judge run on; on another they would run in torch, and not say so."""


def suite_problems(suite: Suite, source: DataSource) -> Iterable[str]:
    """Everything that is missing or broken, a line each with its place in the suite; the hub is asked for its data."""
    where = str(suite.source or suite.name)
    if problem := source.problem():
        yield f"{suite.place('data')}: data: {problem}"
        return
    for index, name in enumerate(suite.models):
        if problem := model_problem(name):
            yield f"{suite.place('models', index)}: models: {name!r}: {problem}"
    for name in teachers(suite):
        if problem := model_problem(name):
            role = next((r for r in ("teacher", "judge") if _stands(suite, r, name)), "models")
            said = {"models": "the model to merge"}.get(role, f"the {role}")
            yield f"{_setting_place(suite, role, name)}: {said} {name!r}: {problem}"
    yield from _judge_problems(suite, source)
    yield from _dataset_problems(suite, source)
    yield from _import_problems(suite, where)
    yield from _outside_problems(suite, where)
    yield from _soft_prompt_problems(suite, where)
    yield from _quality_problems(suite, where)
    if suite.measure.tasks:
        from harness.measure.tasks import task_datasets, task_problem

        for name, settings in suite.measure.tasks.items():
            if problem := task_problem(source, name, settings) or source.unreachable(*task_datasets(name)):
                yield f"{suite.place('measure', 'tasks', name)}: measure.tasks.{name}: {problem}"


def _dataset_problems(suite: Suite, source: DataSource) -> Iterable[str]:
    gold = suite.measure.gold
    named: list[tuple[str, tuple[str, ...]]] = [(name, ()) for name, _ in training_sets(suite)]
    if gold is not None:
        named.append((gold.dataset, ("measure", "gold", "dataset")))
    named += [(dataset, ("measure", "domains", name)) for name, dataset in suite.measure.domains.items()]
    for name, keys in named:
        problem = dataset_problem(name, source)
        if problem is None and name not in TRAINING_SETS:
            problem = source.unreachable(name.partition(":")[0])
        if problem is not None:
            place = suite.place(
                *(keys or _stands(suite, "dataset", name) or _stands(suite, None, name) or ("recipes",))
            )
            yield f"{place}: {'.'.join(keys) or f'dataset {name!r}'}: {problem}"


def _setting_place(suite: Suite, setting: str, value: str) -> str:
    """Where the first step stands that gives a setting this value."""
    return suite.place(*(_stands(suite, setting, value) or ("recipes",)))


def _stands(suite: Suite, setting: str | None, value: str) -> KeyPath | None:
    """The same, or None where it stands nowhere; without a setting: of any."""

    def gives(given: object) -> bool:
        if isinstance(given, dict):
            given = given.get("values", ())
        return given == value or (isinstance(given, list) and value in given)

    def look(steps: list[Any], path: KeyPath) -> KeyPath | None:
        for index, step in enumerate(steps):
            for key, given in step.items():
                here = (*path, index, key)
                if isinstance(given, list) and (found := look(given, here)):
                    return found
                # A pipeline holds the settings of several steps.
                inside = dict(given) if isinstance(given, dict) else {}
                holders: list[tuple[KeyPath, Any]] = [((), inside), *(((k,), g) for k, g in inside.items())]
                for below, holder in holders:
                    for name, has in holder.items() if isinstance(holder, dict) else ():
                        if setting in (None, name) and gives(has):
                            return (*here, *below, name)
        return None

    return next((p for r, steps in suite.recipes.items() if (p := look(steps, ("recipes", r)))), None)


def judge_models(suite: Suite) -> list[str]:
    """The models that judge, where they are neither recipes' nor the suite's own."""
    known = ("self", "base", *suite.recipes, *suite.models)
    judging = suite.measure.judge
    return [name for name in judging.models if name is not None and name not in known] if judging else []


def _judge_problems(suite: Suite, source: DataSource) -> Iterable[str]:
    judging = suite.measure.judge
    from harness.measure.judge import endpoint_problem, prompt_problems, quality_problem

    for label, endpoint in suite.judges.items():
        if problem := endpoint_problem(endpoint):
            yield f"{suite.place('judges', label)}: judges.{label}: {problem}"
    if judging is None:
        return

    where = ("measure", "judge", "panel") if judging.panel else ("measure", "judge", "model")
    for index, (judge, name) in enumerate(zip(judging.judges, judging.models, strict=True)):
        place = suite.place(*where, index) if judging.panel else suite.place(*where)
        problem = None
        if isinstance(judge, Endpoint):
            problem = endpoint_problem(judge)
        elif name in judge_models(suite) and (wrong := model_problem(str(name))):
            problem = f"{name!r}: {wrong}"
        if problem:
            yield f"{place}: {'.'.join(where)}: {problem}"
    for below, wrong in prompt_problems(judging, source):
        path = ("measure", "judge", *below)
        yield f"{suite.place(*path)}: {'.'.join(path)}: {wrong}"
    if judging.quality is not None and (problem := quality_problem(source, judging.quality)):
        yield f"{suite.place('measure', 'judge', 'quality', 'pairs')}: measure.judge.quality.pairs: {problem}"


def sound_model(suite: Suite, name: str) -> Path:
    """The folder of a model, looked through: a stage would find out late, and a comparison perhaps never."""
    kinds = {kind for _, kind in training_sets(suite)}
    folder = resolve_model(name)
    measure = suite.measure
    chat = bool(kinds - {"text"} or measure.domains) or measure.gold is not None or measure.judge is not None
    if problem := content_problem(folder, chat=chat):
        raise UserError(f"model {name!r}: {problem}")
    return folder


def check_gold(name: str, rows: Iterable[Mapping[str, object]]) -> None:
    """Read the constraints of every prompt of the gold task.

    Raises:
        UserError: one is not what `harness.gold` can check.
    """
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


def _outside_problems(suite: Suite, where: str) -> Iterable[str]:
    """What steps name outside the suite (a function that verifies, a constitution) and that cannot be had."""
    for recipe in suite.recipe_order():
        for step in (s for s in suite.steps(recipe) if s.recipe == recipe and s.round == 0):
            method = find_method(step.method)
            if not method.fixed & step.spaces.keys():
                try:
                    method.reads(step.settings)
                except UserError as error:
                    yield f"{where}: recipes.{recipe}: {step.name}: {error}"


def _soft_prompt_problems(suite: Suite, where: str) -> Iterable[str]:
    for recipe in suite.recipe_order():
        if any("prompt_tuning" in step.choices("adapter") for step in suite.steps(recipe)):
            for target in suite.targets_of(recipe):
                if target.attention not in ("sdpa", "eager"):
                    yield (
                        f"{where}: recipes.{recipe}: {target.attention} attention (target {target.name}) runs no "
                        "soft prompt (adapter prompt_tuning): leave that target out, or choose another adapter"
                    )


def _quality_problems(suite: Suite, where: str) -> Iterable[str]:
    measure = suite.measure
    if not measure.tasks and not measure.domains and measure.gold is None and measure.judge is None:
        return
    asked = {t.name: t for recipe in ("base", *suite.recipes) for t in suite.quality_targets(recipe)}
    for target in asked.values():
        if target.backend not in _SCORED:
            yield (
                f"{where}: measure.quality_target: quality is not measured on backend {target.backend} (target "
                f"{target.name}), only latency and memory are: name another, or set measure.every_numerics: false"
            )


def teachers(suite: Suite) -> list[str]:
    """The models that steps name as teacher or judge and that are neither a recipe's nor one of the suite's own."""
    named = [name for recipe in suite.recipe_order() for step in suite.steps(recipe) for _, name in step.named]
    known = {SELF, "base", *suite.recipes, *suite.models, *suite.judges}
    return list(dict.fromkeys(str(name) for name in named if name is not None and name not in known))


def training_sets(suite: Suite) -> list[tuple[str, str]]:
    """(dataset, kind) of every step, also each value of a searched dataset, and what steps name beside it."""
    found: dict[tuple[str, str], None] = {}
    for recipe in suite.recipe_order():
        for step in suite.steps(recipe):
            found.update(dict.fromkeys((name, str(kind)) for name, kind in step.datasets.items()))
            kind = find_method(step.method).dataset_kind
            if kind is None:
                continue
            space = step.spaces.get("dataset")
            names = (space.values or ()) if space else (step.settings.get("dataset"),)
            found.update({(str(n), str(kind)): None for n in names if n not in (None, MADE)})
    return list(found)
