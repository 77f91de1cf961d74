"""The recipes of a suite: ordered steps from the base model, checked against the methods they name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness._pipelines import PIPELINES, Pipeline
from harness._recipe_checks import check_cycles, check_deployed, check_order
from harness._spaces import SettingsReader, quoted, suggestion
from harness._steps import Recipe, Step
from harness._teachers import teacher_problems
from harness.errors import UserError
from harness.method import Method, Params, find_method, method_names
from harness.yamlmarks import KeyPath, Problem

__all__ = ["MOST_ROUNDS", "NAME_PATTERN", "read_recipes"]

MOST_ROUNDS = 100
"""A repeated group is written out, each round with artifacts of its own."""

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
"""Names of suites, recipes and targets: they name files and stand in pages."""

_METHOD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")
_DECLARED = ("name", "version", "params", "needs", "produces")


def read_recipes(
    raw: object, models: Sequence[str] = (), judges: Sequence[str] = ()
) -> tuple[dict[str, tuple[Step, ...]], dict[str, str | None], list[Problem]]:
    """Read the suite's key `recipes`.

    Args:
        raw: what stands there.
        models: the suite's base models, which a step may also name as its teacher.
        judges: the suite's judges behind endpoints, which a step may name as its judge.

    Returns:
        Each recipe's own steps, the recipe each one uses, and what is wrong (all of it; then the rest is partial).
    """
    problems: list[Problem] = []
    if not isinstance(raw, dict) or not raw:
        message = f"expected a mapping of recipe names to lists of steps, got {quoted(raw)}"
        return {}, {}, [Problem(("recipes",), message)]
    recipes = {name: _recipe(name, steps, list(raw), problems) for name, steps in raw.items()}
    steps = {name: tuple(recipe.steps) for name, recipe in recipes.items()}
    uses = {name: recipe.uses for name, recipe in recipes.items()}
    check_cycles(recipes, problems)
    if not problems:
        check_order(recipes, problems)
        check_deployed(recipes, problems)
        problems += teacher_problems(recipes, models, judges)
    # What is wrong with a repeated step is wrong in every round.
    return steps, uses, list(dict.fromkeys(problems))


def _recipe(name: str, raw: object, names: Sequence[str], problems: list[Problem]) -> Recipe:
    path: KeyPath = ("recipes", name)
    recipe = Recipe(name, None, [], [])
    if not re.fullmatch(NAME_PATTERN, name):
        problems.append(Problem(path, "expected a name of letters, digits, _ . - (it names files)", on_key=True))
    if name == "base":
        problems.append(Problem(path, "the name base is taken: it stands for the untouched base model", on_key=True))
    if not isinstance(raw, list) or not raw:
        problems.append(Problem(path, f"expected a list of steps, got {quoted(raw)}"))
        return recipe
    counts: dict[str, int] = {}
    for index, step in enumerate(raw):
        here: KeyPath = (*path, index)
        if isinstance(step, dict) and set(step) & {"repeat", "steps"}:
            _repeated(recipe, here, step, counts, problems)
        elif isinstance(step, dict) and list(step) == ["use"]:
            recipe.uses = _used(name, index, step["use"], names, problems) or recipe.uses
        else:
            _add(recipe, here, step, counts, problems)
    if len(raw) == 1 and isinstance(raw[0], dict) and list(raw[0]) == ["use"]:
        problems.append(Problem(path, "has no step of its own; it would repeat the recipe it uses", on_key=True))
    return recipe


def _add(recipe: Recipe, here: KeyPath, raw: object, counts: dict[str, int], problems: list[Problem]) -> None:
    """Add the steps of one entry: a method with its settings, or a ready pipeline."""
    if not isinstance(raw, dict) or len(raw) != 1:
        shown = f"the keys {', '.join(raw)}" if isinstance(raw, dict) and raw else quoted(raw)
        problems.append(Problem(here, f"a step is one method with its settings, or use: recipe; got {shown}"))
        return
    ((key, value),) = raw.items()
    entries: list[tuple[str, object]] = [(key, value)]
    if key == "pipeline":
        here = (*here, key)
        entries = _ready(here, value, problems)
    elif key in ("use", "repeat"):
        problems.append(Problem((*here, key), f"{key} stands among a recipe's own steps only", on_key=True))
        return
    for method, settings in entries:
        if (found := _step(recipe.name, (*here, method), settings, counts, problems)) is not None:
            recipe.steps.append(found)
            recipe.places.append((*here, method))


def _repeated(
    recipe: Recipe, here: KeyPath, raw: Mapping[str, object], counts: dict[str, int], problems: list[Problem]
) -> None:
    """Add a group of steps as many times as `repeat` says; each round goes on from the one before."""
    before, times, inner = len(problems), raw.get("repeat"), raw.get("steps")
    for key in raw:
        if key not in ("repeat", "steps"):
            wrong = f"unknown key of a repeated group{suggestion(key, ('repeat', 'steps'))}"
            problems.append(Problem((*here, key), wrong, on_key=True))
    if isinstance(times, bool) or not isinstance(times, int) or not 1 <= times <= MOST_ROUNDS:
        wrong = f"expected how many times, a whole number from 1 to {MOST_ROUNDS}, got {quoted(times)}"
        problems.append(Problem((*here, "repeat"), wrong))
    if len(problems) == before and (not isinstance(inner, list) or not inner):
        problems.append(Problem((*here, "steps"), f"expected the list of steps to repeat, got {quoted(inner)}"))
    if len(problems) > before or not isinstance(inner, list) or not isinstance(times, int):
        return
    first = len(recipe.steps)
    for index, step in enumerate(inner):
        _add(recipe, (*here, "steps", index), step, counts, problems)
    group, places = recipe.steps[first:], recipe.places[first:]
    for number in range(1, times):
        recipe.steps += [replace(step, round=number) for step in group]
        recipe.places += places


def _ready(here: KeyPath, raw: object, problems: list[Problem]) -> list[tuple[str, object]]:
    """The steps of a ready pipeline, with the settings that the suite gives in place of the paper's."""
    given: dict[str, Any] = dict(raw) if isinstance(raw, dict) else {"name": raw}
    name = given.pop("name", None)
    found: Pipeline | None = PIPELINES.get(name) if isinstance(name, str) else None
    if found is None:
        problems.append(Problem(here, f"no pipeline {quoted(name)}{suggestion(name, PIPELINES)}"))
        return []
    before = len(problems)
    for key, settings in given.items():
        if key not in found.names:
            wrong = f"{name} has no step {quoted(key)}{suggestion(key, found.names)}"
            problems.append(Problem((*here, key), wrong, on_key=True))
        elif not isinstance(settings, dict):
            problems.append(Problem((*here, key), f"expected a mapping of settings, got {quoted(settings)}"))
    if len(problems) > before:
        return []
    return [
        (method, {**settings, **given.get(step, {})})
        for step, (method, settings) in zip(found.names, found.steps, strict=True)
    ]


def _used(name: str, index: int, value: object, names: Sequence[str], problems: list[Problem]) -> str | None:
    path: KeyPath = ("recipes", name, index, "use")
    others = [n for n in names if n != name]
    if index > 0:
        problems.append(Problem(path, "use stands first: its result is what the recipe begins with", on_key=True))
    if value == "base":
        problems.append(Problem(path, "every recipe begins with the base model; leave use: base out"))
    elif value == name:
        problems.append(Problem(path, "a recipe cannot use itself"))
    elif not isinstance(value, str) or value not in names:
        problems.append(Problem(path, f"no recipe {quoted(value)}{suggestion(value, others)}"))
    else:
        return value
    return None


def _step(recipe: str, path: KeyPath, raw: object, counts: dict[str, int], problems: list[Problem]) -> Step | None:
    method = _method(path, problems)
    if method is None:
        return None
    counts[method.name] = counts.get(method.name, 0) + 1
    name = method.name if counts[method.name] == 1 else f"{method.name}_{counts[method.name]}"
    if not isinstance(raw, dict):
        problems.append(Problem(path, f"expected a mapping of settings ({{}} for the defaults), got {quoted(raw)}"))
        return None
    before = len(problems)
    settings, spaces = SettingsReader(method, path, problems).read(raw)
    return None if len(problems) > before else Step(name, str(path[-1]), settings, spaces, recipe)


def _method(path: KeyPath, problems: list[Problem]) -> type[Method[Params]] | None:
    key = str(path[-1])
    message = ""
    if not _METHOD_NAME.fullmatch(key) or (":" not in key and key not in method_names()):
        near = suggestion(key, [*method_names(), "pipeline", "repeat", "use"]) or "; `harness list methods` shows them"
        message = f"unknown method{near}; your own method is package.module:Class"
    else:
        try:
            method = find_method(key)
        except UserError as error:
            message = str(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # importing a module of the user's runs it, whatever it does
            message = f"importing this method's module ends with {type(error).__name__}: {error}"
        else:
            missing = [word for word in _DECLARED if not hasattr(method, word)]
            if not missing and re.fullmatch(NAME_PATTERN, method.name) and "." not in method.name:
                return method
            message = f"this method's name {method.name!r} is not of letters, digits, _ and -" if not missing else ""
            message = message or f"this method declares no {', '.join(missing)} (see harness.method.Method)"
    problems.append(Problem(path, message, on_key=True))
    return None
