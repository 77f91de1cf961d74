"""The models that grade a run's model beside the gold rules: the proxy reward model, and the judges."""

from collections.abc import Mapping
from dataclasses import dataclass

from harness.data import Half
from harness.execute import JudgeSpec, StageSpec
from harness.history import owners
from harness.keys import content_key
from harness.method import find_method
from harness.resolve import Facts, Models, Run, Settings, chain, chain_ends
from harness.suite import Endpoint, Speaker, Suite

__all__ = ["Proxy", "given_judge", "judge_of_recipe", "proxy_of"]


@dataclass(frozen=True)
class Proxy:
    """The reward model that scores every model beside the gold reward: that of the first recipe that trains one."""

    recipe: str
    steps: int
    """Steps of the recipe up to the reward model's."""
    searched: bool
    """Some of these steps' settings are."""
    owners: frozenset[str]
    """Recipes whose chosen settings decide which reward model it is."""

    def grades(self, phase: Half) -> bool:
        """Whether it scores models of this phase: while tuning, one that is being searched cannot judge its search."""
        return not (self.searched and phase == "tune")

    def stages(self, facts: Facts, run: Run, settings: Mapping[str, Settings]) -> list[StageSpec]:
        """The stages that make the one for a run, of the same base model and seed; its own is the last."""
        return chain(facts, Run(self.recipe, run.model, run.seed, settings), self.steps)


def proxy_of(suite: Suite) -> Proxy | None:
    """The suite's proxy reward model; None where it has no gold reward, or trains no reward model."""
    if suite.measure.gold is None:
        return None
    for recipe in suite.recipe_order():
        steps = suite.steps(recipe)
        if rewards := [i for i, step in enumerate(steps) if find_method(step.method).produces == "reward"]:
            count = rewards[-1] + 1
            searched = any(step.spaces for step in steps[:count])
            needed = owners(suite, recipe)
            return Proxy(recipe, count, searched, frozenset(needed if searched else needed - {recipe}))
    return None


def given_judge(facts: Facts, judge: str | Endpoint | Speaker, models: Models) -> JudgeSpec | None:
    """A judge that the suite names, for a run's model; None where it is a recipe's (`judge_of_recipe`)."""
    if isinstance(judge, Endpoint):
        return JudgeSpec(name=judge.label, key=judge.key, endpoint=judge.model_dump(mode="json"))
    name = judge.local if isinstance(judge, Speaker) else judge
    if name == "self":
        return _speaking(judge, JudgeSpec(name=name, key=models.artifact, model=models.policy, own=True))
    if name in facts.suite.recipes:
        return None
    reference = models.base if name == "base" else f"model:{name}"
    return _speaking(judge, JudgeSpec(name=name, key=facts.models[reference.removeprefix("model:")], model=reference))


def judge_of_recipe(
    facts: Facts, judge: str | Speaker, model: str, settings: Mapping[str, Settings]
) -> tuple[Run, JudgeSpec]:
    """The run whose model judges, of the suite's first seed, and the judge that it makes."""
    recipe = judge.local if isinstance(judge, Speaker) else judge
    run = Run(recipe, model, facts.suite.seeds[0], settings)
    made = chain_ends(facts, run, chain(facts, run))
    return run, _speaking(judge, JudgeSpec(name=recipe, key=made.artifact, model=made.policy))


def _speaking(judge: str | Speaker, spec: JudgeSpec) -> JudgeSpec:
    if isinstance(judge, str):
        return spec
    key = content_key("words", judge=spec.key, max_tokens=judge.max_tokens)
    return spec.model_copy(update={"name": judge.label, "key": key, "words": judge.max_tokens})
