"""The recipes of a suite: ordered steps from the base model, checked against the methods they name."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from harness._pipelines import PIPELINES, Pipeline
from harness._spaces import SettingsReader, Space, explain, quoted, suggestion
from harness._teachers import NAMED_ROLES, inherited, teacher_problems
from harness.errors import UserError
from harness.method import MADE, TORCH_BACKENDS, DatasetKind, Method, Params, find_method, method_names
from harness.yamlmarks import KeyPath, Problem

__all__ = ["MOST_ROUNDS", "NAME_PATTERN", "Recipe", "Step", "read_recipes"]

MOST_ROUNDS = 100
"""A repeated group is written out, each round with artifacts of its own."""

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
"""Names of suites, recipes and targets: they name files and stand in pages."""

_METHOD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*")
_DECLARED = ("name", "version", "params", "needs", "produces")


@dataclass(frozen=True)
class Step:
    """A method with its settings, as one recipe has it."""

    name: str
    """Unique among the recipe's own steps: the method's name, from its second use on with a number (`dpo_2`)."""
    method: str
    """What `find_method` takes."""
    settings: Mapping[str, object]
    """Every setting that is not searched, typed and with the method's defaults filled in."""
    spaces: Mapping[str, Space]
    """The searched settings."""
    recipe: str
    """The recipe that owns the step: another than the one asked about where that one uses it."""
    round: int = 0
    """Which time round a repeated group of steps this is, from 0; the settings are those of every round."""

    def choices(self, setting: str) -> tuple[object, ...]:
        """What a setting may be in some trial: its one value, or the values (the ends) it is searched in."""
        if (space := self.spaces.get(setting)) is None:
            return (self.settings.get(setting),)
        return space.values if space.values is not None else (space.low, space.high)

    @property
    def needs(self) -> frozenset[str]:
        """The roles of the models it needs."""
        method = find_method(self.method)
        # As in `runs_on`: where what decides it is searched, that is said elsewhere.
        return method.needs if method.fixed & self.spaces.keys() else method.needs_with(self.settings)

    @property
    def named_roles(self) -> list[str]:
        """The roles whose model a setting names, in order."""
        return sorted(self.needs & NAMED_ROLES)

    @property
    def named(self) -> list[tuple[str, object]]:
        """(role, name) of every model that it may name; a teacher None is the policy before it was compressed."""
        of_roles = [(role, name) for role in self.named_roles for name in self.choices(role)]
        return [*of_roles, *(("merge", name) for name in self.merged or ())]

    @property
    def merged(self) -> tuple[str, ...] | None:
        """The models that it merges, by name; none: those of its recipe's own steps. None where it merges nothing."""
        method = find_method(self.method)
        found = None if method.fixed & self.spaces.keys() else method.merges(self.settings)
        return None if found is None else tuple(found)

    @property
    def datasets(self) -> dict[str, DatasetKind]:
        """The datasets that some trial of the step names beside `dataset`, with their kinds."""
        method = find_method(self.method)
        found = dict(method.datasets(self.settings))
        for setting in self.spaces:
            for value in self.choices(setting):
                found |= method.datasets({**self.settings, setting: value})
        return found

    @property
    def runs_on(self) -> frozenset[str]:
        """The backends that run the policy it leaves."""
        method = find_method(self.method)
        # What decides it must not be searched; where it is, that is said, and all of torch is as good a guess as any.
        return TORCH_BACKENDS if method.fixed & self.spaces.keys() else method.runs_on(self.settings)

    def imports(self) -> dict[str, str]:
        """Module that some trial of the step imports and that may be missing → the extra it is in."""
        method = find_method(self.method)
        found = dict(method.imports(self.settings)) if not method.fixed & self.spaces.keys() else {}
        for setting in self.spaces:
            for value in self.choices(setting):
                found |= method.imports({**self.settings, setting: value})
        return found

    @property
    def deploys(self) -> bool:
        """Whether no step may follow it."""
        method = find_method(self.method)
        return not method.fixed & self.spaces.keys() and method.deploys(self.settings)

    @property
    def compresses(self) -> bool:
        """Whether the policy comes out smaller in every trial."""
        marked = find_method(self.method).compresses
        return None not in self.choices(marked) if isinstance(marked, str) else marked

    def resolve(self, chosen: Mapping[str, object]) -> Params:
        """The step's settings with a value for each search space.

        Args:
            chosen: flat names (`dpo.beta`) → values; names of other steps are ignored.

        Raises:
            UserError: a space has no value, or the method refuses the combination.
        """
        missing = [f"{self.name}.{k}" for k in self.spaces if f"{self.name}.{k}" not in chosen]
        if missing:
            raise UserError(f"recipe {self.recipe!r}: no value for {', '.join(missing)}")
        values = {**self.settings, **{k: chosen[f"{self.name}.{k}"] for k in self.spaces}}
        try:
            return find_method(self.method).params.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {explain(e)}" for e in error.errors(include_url=False))
            raise UserError(f"recipe {self.recipe!r}, step {self.name}: {wrong}") from error


@dataclass
class Recipe:
    """One recipe of a suite, as it was read."""

    name: str
    uses: str | None
    steps: list[Step]
    places: list[KeyPath]
    """Where each step's method stands."""


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
    _check_cycles(recipes, problems)
    if not problems:
        _check_order(recipes, problems)
        _check_deployed(recipes, problems)
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


def _check_cycles(recipes: Mapping[str, Recipe], problems: list[Problem]) -> None:
    reported: set[str] = set()
    for start in recipes:
        chain = [start]
        while (use := recipes[chain[-1]].uses) is not None and use not in chain:
            chain.append(use)
        if use is not None and use not in reported:
            cycle = [*chain[chain.index(use) :], use]
            reported.update(cycle)
            problems.append(
                Problem(("recipes", use, 0, "use"), f"recipes use each other in a circle: {' → '.join(cycle)}")
            )


def _check_order(recipes: Mapping[str, Recipe], problems: list[Problem]) -> None:
    """Every step finds what it needs of the steps before it: a reward model, a dataset that was made."""
    for recipe in recipes.values():
        before = [find_method(s.method) for s in inherited(recipe, recipes)]
        for step, path in zip(recipe.steps, recipe.places, strict=True):
            method = find_method(step.method)
            if "reward" in step.needs and not any(m.produces == "reward" for m in before):
                message = f"{step.method} needs a reward model: put a step that makes one (reward_model) before it"
                problems.append(Problem(path, message, on_key=True))
            if method.dataset_kind and MADE in step.choices("dataset"):
                if "dataset" in step.spaces:
                    message = f"{MADE} is what the steps before leave, and cannot be searched beside other datasets"
                    problems.append(Problem((*path, "dataset"), message))
                elif method.dataset_kind not in {m.makes for m in before if m.produces == "dataset"}:
                    message = f"no step before it makes {method.dataset_kind}; put one there, or name a dataset"
                    problems.append(Problem((*path, "dataset"), message))
            if step.merged is not None and (wrong := _too_few(step, recipe, recipe.steps.index(step))):
                problems.append(Problem(path, wrong, on_key=True))
            before.append(method)


def _too_few(step: Step, recipe: Recipe, place: int) -> str | None:
    """Why a step has not the models that it merges, or None."""
    own = [s for s in recipe.steps[:place] if find_method(s.method).produces == "policy" and s.merged is None]
    count = len(step.merged or own)
    if count < 2:
        return f"{step.method} needs at least two policies: put training steps before it in its recipe, or name models"
    weights = step.settings.get("weights")
    if isinstance(weights, list) and len(weights) != count:
        return f"{step.method} merges {count} policies, and weights has {len(weights)}; give one for each"
    return None


def _check_deployed(recipes: Mapping[str, Recipe], problems: list[Problem]) -> None:
    for recipe in recipes.values():
        before = inherited(recipe, recipes)
        for step, path in zip(recipe.steps, recipe.places, strict=True):
            for name in sorted(find_method(step.method).fixed & step.spaces.keys()):
                message = (
                    f"{name} decides what a step needs or where its model runs, so it is not searched: give a value"
                )
                problems.append(Problem((*path, name), message, on_key=True))
            if deployed := next((s for s in before if s.deploys), None):
                message = f"no step may follow {deployed.method}: what it leaves is for running only; put it last"
                problems.append(Problem(path, message, on_key=True))
            for role, model in step.named:
                own = [s for s in _all_steps(str(model), recipes) if find_method(s.method).produces == "policy"]
                if own and "eager" not in own[-1].runs_on:
                    message = f"{model} is exported, and a {role} must run in torch: name the recipe it begins with"
                    problems.append(Problem(path, message, on_key=True))
                elif own and role == "merge" and own[-1].deploys:
                    message = f"{model} is packed for running and cannot be merged: name the recipe it begins with"
                    problems.append(Problem(path, message, on_key=True))
            before.append(step)


def _all_steps(name: str, recipes: Mapping[str, Recipe]) -> list[Step]:
    return [*inherited(recipes[name], recipes), *recipes[name].steps] if name in recipes else []


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
