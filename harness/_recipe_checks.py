"""What is wrong with recipes as a whole: circles, and steps that lack what those before them would have to leave."""

from collections.abc import Mapping

from harness._steps import Recipe, Step
from harness._teachers import inherited
from harness.method import MADE, find_method
from harness.yamlmarks import Problem

__all__ = ["check_cycles", "check_deployed", "check_order"]


def check_cycles(recipes: Mapping[str, Recipe], problems: list[Problem]) -> None:
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


def check_order(recipes: Mapping[str, Recipe], problems: list[Problem]) -> None:
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


def check_deployed(recipes: Mapping[str, Recipe], problems: list[Problem]) -> None:
    for recipe in recipes.values():
        before = inherited(recipe, recipes)
        for step, path in zip(recipe.steps, recipe.places, strict=True):
            for name in sorted(find_method(step.method).fixed & step.spaces.keys()):
                message = (
                    f"{name} decides what a step needs or where its model runs, so it is not searched: give a value, "
                    "or two recipes"
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
