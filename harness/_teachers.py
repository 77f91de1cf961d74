"""Who learns from whom in a suite: the teachers, judges and merged models that steps name, checked before all else."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness._spaces import quoted, suggestion
from harness.method import find_method
from harness.models import BUNDLED_MODELS
from harness.yamlmarks import KeyPath, Problem

if TYPE_CHECKING:
    from harness._steps import Recipe, Step

__all__ = ["NAMED_ROLES", "SELF", "dependencies", "inherited", "teacher_problems"]

NAMED_ROLES = frozenset({"judge", "teacher"})
"""Roles whose model a setting of the same name names: a recipe, a model, base."""
SELF = "self"
"""As a judge: the policy as it comes into the step."""


def dependencies(steps: Mapping[str, Sequence["Step"]], uses: Mapping[str, str | None], recipe: str) -> list[str]:
    """The recipes whose results this one needs, each after those it needs itself: used, teaching, judging or merged.

    Args:
        steps: recipe → its own steps.
        uses: recipe → the recipe it uses.
        recipe: the one asked about, not in the answer; `base` needs none.
    """
    found: dict[str, None] = {}
    for need in _needs(steps, uses, recipe):
        found |= dict.fromkeys([*dependencies(steps, uses, need), need])
    return list(found)


def _needs(steps: Mapping[str, Sequence["Step"]], uses: Mapping[str, str | None], recipe: str) -> list[str]:
    named = [uses.get(recipe), *(name for step in steps.get(recipe, ()) for _, name in step.named)]
    return [name for name in named if isinstance(name, str) and name in steps]


def teacher_problems(
    recipes: Mapping[str, "Recipe"], models: Sequence[str], judges: Sequence[str] = ()
) -> list[Problem]:
    """What is wrong with the teachers, judges and merged models that steps name, or do not name.

    Args:
        recipes: recipes that use each other in no circle.
        models: the suite's base models.
        judges: the suite's judges behind endpoints.
    """
    problems: list[Problem] = []
    named = [(r, i, *one) for r in recipes.values() for i in range(len(r.steps)) for one in _named(r, i)]
    for recipe, _, role, name, path in named:
        if name == recipe.name:
            problems.append(Problem(path, f"a recipe cannot be its own {role}" + _OR_ELSE.get(role, "")))
        elif name is None and role == "judge":
            wrong = "this step needs a judge: set judge to self, base, a recipe or a model"
            problems.append(Problem(path, wrong, on_key=True))
        elif name is not None and (message := _unknown(str(name), _known(role, recipe.name, recipes, models, judges))):
            problems.append(Problem(path, message))
    if not problems:
        _check_circles(recipes, named, problems)
    if not problems:
        for recipe, index, role, name, path in named:
            if role == "teacher" and (message := _same(recipe, index, name, recipes, models)):
                problems.append(Problem(path, message, on_key=name is None))
    return problems


_OR_ELSE = {
    "judge": "; self is the policy as it comes into the step",
    "merge": "; without models its own steps before this one are merged",
}


def _named(recipe: "Recipe", index: int) -> list[tuple[str, object, KeyPath]]:
    """Role and name of each model that a step may name, and where it is named."""
    step, place = recipe.steps[index], recipe.places[index]
    found: list[tuple[str, object, KeyPath]] = []
    for role in step.named_roles:
        for position, name in enumerate(step.choices(role)):
            here = (*place, role, "values", position) if role in step.spaces else (*place, role)
            found.append((role, name, place if name is None else here))
    return [*found, *(("merge", name, (*place, "models", n)) for n, name in enumerate(step.merged or ()))]


def _known(
    role: str, recipe: str, recipes: Mapping[str, "Recipe"], models: Sequence[str], judges: Sequence[str]
) -> list[str]:
    own = [SELF, *judges] if role == "judge" else []
    return [*own, "base", *(r for r in recipes if r != recipe), *models, *BUNDLED_MODELS]


def _unknown(name: str, known: Sequence[str]) -> str | None:
    if name in known or "/" in name or name.startswith((".", "~")):
        return None
    return f"no recipe or model {quoted(name)}{suggestion(name, known)}; a hub id is org/name, a folder here is ./name"


def _check_circles(
    recipes: Mapping[str, "Recipe"],
    named: Sequence[tuple["Recipe", int, str, object, KeyPath]],
    problems: list[Problem],
) -> None:
    steps = {name: tuple(recipe.steps) for name, recipe in recipes.items()}
    uses = {name: recipe.uses for name, recipe in recipes.items()}

    def route(start: str, goal: str, passed: tuple[str, ...]) -> tuple[str, ...] | None:
        if start == goal:
            return (*passed, start)
        on = (n for n in _needs(steps, uses, start) if n not in passed)
        return next((found for n in on if (found := route(n, goal, (*passed, start)))), None)

    reported: set[str] = set()
    for recipe, _, _, name, path in named:
        back = route(name, recipe.name, ()) if isinstance(name, str) and name in recipes else None
        if back is not None and recipe.name not in reported:
            reported.update(back)
            problems.append(Problem(path, f"recipes need each other in a circle: {' → '.join((recipe.name, *back))}"))


def _same(
    recipe: "Recipe", index: int, name: object, recipes: Mapping[str, "Recipe"], models: Sequence[str]
) -> str | None:
    """Why this teacher would be the student itself, or None."""
    step = recipe.steps[index]
    before = [*inherited(recipe, recipes), *recipe.steps[:index]]
    student = _policy(before)
    marked = find_method(step.method).compresses
    if step.compresses:
        return None
    remedy = f"set {marked}, or " if isinstance(marked, str) else ""
    remedy += "put a step that compresses the policy (such as prune_heads) before it"
    if name is None:
        if any(s.compresses for s in before):
            return None
        return f"{step.method} has no teacher: nothing before it compresses the policy; name a teacher, {remedy}"
    taught: object = name
    if name == "base" or (name in models and name not in recipes):
        taught = None
    elif isinstance(name, str) and name in recipes:
        taught = _policy([*inherited(recipes[name], recipes), *recipes[name].steps])
    return f"{step.method} would learn from itself: name another teacher, {remedy}" if taught == student else None


def _policy(steps: Sequence["Step"]) -> tuple[str, str] | None:
    """Which step made the policy after these; None is the base model."""
    made = [(s.recipe, s.name) for s in steps if find_method(s.method).produces == "policy"]
    return made[-1] if made else None


def inherited(recipe: "Recipe", recipes: Mapping[str, "Recipe"]) -> list["Step"]:
    """The steps of the recipes it uses, from the base model on."""
    steps: list[Step] = []
    while recipe.uses is not None:
        recipe = recipes[recipe.uses]
        steps = [*recipe.steps, *steps]
    return steps
