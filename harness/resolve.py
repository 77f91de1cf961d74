"""From a suite to concrete work: the stages of a run with their content keys, and the measurements of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.data import DataSource, Half
from harness.execute import Item, MeasureSpec, StageSpec
from harness.keys import content_key
from harness.method import find_method
from harness.provenance import versions
from harness.suite import Setting, Suite
from harness.targets import Target

__all__ = ["Facts", "Models", "Run", "chain", "chain_ends", "measure_specs", "proxy_recipe"]

Settings = Mapping[str, Setting]
ItemKind = Literal["task", "gold", "judge", "profile"]


@dataclass(frozen=True)
class Facts:
    """What was found out about a suite's world before anything runs: the fingerprints that enter content keys."""

    suite: Suite
    source: DataSource
    precision: Literal["float32", "bfloat16"]
    models: Mapping[str, str]
    """Base model → its artifact key."""
    datasets: Mapping[tuple[str, str], str]
    """(dataset, kind) → fingerprint of its rows."""
    tasks: Mapping[str, Mapping[str, Mapping[str, object]]]
    """Task of the suite → leaf task → what decides its scores beside the model."""
    gold: Mapping[str, object] | None
    judge: str | None
    """Fingerprint of the judge's prompts and template."""
    machine: Mapping[str, object]
    library_versions: Mapping[str, str] = field(default_factory=versions)


@dataclass(frozen=True)
class Run:
    """A recipe from one base model with one seed and its settings (own and used recipes', by recipe)."""

    recipe: str
    model: str
    seed: int
    settings: Mapping[str, Settings]


def chain(facts: Facts, run: Run, steps: int | None = None) -> list[StageSpec]:
    """The stages of a run in order (only the first `steps` if given), each with its content key; none for `base`."""
    reference = f"model:{run.model}"
    policy, reward = reference, None
    keys = {reference: facts.models[run.model]}
    specs: list[StageSpec] = []
    for step in facts.suite.steps(run.recipe)[:steps]:
        method = find_method(step.method)
        params = step.resolve(run.settings.get(step.recipe, {}))
        inputs: dict[str, str] = {}
        for role in sorted(method.needs):
            found = {"policy": policy, "reference": policy, "reward": reward, "teacher": reference}[role]
            # The suite was checked for a reward model before every method that needs one.
            if found is not None:
                inputs[role] = found
        dataset = getattr(params, "dataset", None) if method.dataset_kind else None
        fingerprint = facts.datasets[dataset, str(method.dataset_kind)] if dataset else None
        settings: dict[str, Any] = params.model_dump(mode="json")
        key = content_key(
            "stage",
            method=step.method,
            version=method.version,
            params=settings,
            inputs={role: keys.get(ref, ref) for role, ref in inputs.items()},
            dataset=fingerprint,
            seed=run.seed,
            precision=facts.precision,
            versions=dict(facts.library_versions),
        )
        specs.append(
            StageSpec(
                key=key,
                method=step.method,
                version=method.version,
                params=settings,
                inputs=inputs,
                dataset=dataset,
                dataset_fingerprint=fingerprint,
                data=facts.source.name,
                seed=run.seed,
                precision=facts.precision,
                limit_s=None if (m := facts.suite.budget.stage_minutes) is None else m * 60,
                label=f"{run.recipe} {step.name} seed {run.seed}",
            )
        )
        if method.produces == "reward":
            reward = key
        else:
            policy = key
    return specs


def chain_ends(facts: Facts, run: Run, specs: Sequence[StageSpec]) -> "Models":
    """The models a run leaves: its final policy, and its reward model if it trains one."""
    rewards = [s.key for s in specs if find_method(s.method).produces == "reward"]
    policies = [s.key for s in specs if find_method(s.method).produces == "policy"]
    base = f"model:{run.model}"
    return Models(
        policy=policies[-1] if policies else base,
        artifact=policies[-1] if policies else facts.models[run.model],
        reward=rewards[-1] if rewards else None,
        base=base,
    )


@dataclass(frozen=True)
class Models:
    """References of the models around a measurement; `artifact` is the policy's key in the store."""

    policy: str
    artifact: str
    reward: str | None
    base: str
    judge: str | None = None


def proxy_recipe(suite: Suite) -> str | None:
    """The recipe whose reward model scores every model beside the gold reward: the first that trains one."""
    for recipe in suite.recipe_order():
        if any(find_method(s.method).produces == "reward" for s in suite.steps(recipe)):
            return recipe
    return None


def measure_specs(
    facts: Facts, models: Models, halves: tuple[Half, ...], kinds: frozenset[ItemKind], label: str
) -> list[tuple[Target, MeasureSpec]]:
    """The measurements of one model: quality on each quality target in one spec, and a profile on every target."""
    suite = facts.suite
    own: dict[str, Any] = {"artifact": models.artifact, "halves": list(halves)}

    def item(
        kind: ItemKind, task: str, target: Mapping[str, object], settings: Mapping[str, Any], **more: object
    ) -> Item:
        key = content_key(kind, task=task, target=dict(target), settings=dict(settings), **own, **more)
        return Item(key=key, kind=kind, task=task, settings=dict(settings))

    def spec(target: Target, items: list[Item], *, alone: bool) -> tuple[Target, MeasureSpec]:
        made = MeasureSpec(
            key=content_key("measure", items=[i.key for i in items]),
            model=models.policy,
            artifact=models.artifact,
            target=target.model_dump(),
            data=facts.source.name,
            halves=halves,
            scorer=suite.scorer,
            items=tuple(items),
            reward=models.reward,
            base=models.base,
            judge=models.judge,
            alone=alone,
            label=label if not alone else f"{label} on {target.name}",
            # The next trial waits for a tuning measurement; nothing waits for a final one.
            urgency=0 if "tune" in halves else 2 if alone else 1,
        )
        return target, made

    specs = []
    # While tuning, quality is asked for on one target only: a trial has one value of its objective.
    for target in [suite.quality_target] if "tune" in halves else suite.quality_targets():
        if items := _quality_items(facts, models, kinds, target, item):
            specs.append(spec(target, items, alone=False))
    if "profile" in kinds and suite.measure.profile is not None:
        settings = suite.measure.profile.model_dump()
        for target in suite.targets:
            what = {**target.numerics(), "threads": target.threads}
            one = item("profile", "profile", what, settings, machine=dict(facts.machine))
            specs.append(spec(target, [one], alone=True))
    return specs


def _quality_items(
    facts: Facts, models: Models, kinds: frozenset[ItemKind], target: Target, item: Callable[..., Item]
) -> list[Item]:
    suite = facts.suite
    key_of = {f"model:{name}": key for name, key in facts.models.items()}
    numerics = target.numerics()
    items: list[Item] = []
    if "gold" in kinds and suite.measure.gold is not None and facts.gold is not None:
        reward, base = models.reward, key_of[models.base]
        settings = suite.measure.gold.model_dump()
        items.append(item("gold", "gold", numerics, settings, data=dict(facts.gold), reward=reward, base=base))
    if "task" in kinds:
        for name, leaves in facts.tasks.items():
            asked = suite.measure.tasks[name].model_dump()
            items += [
                item("task", leaf, numerics, {"of": name, **asked}, fingerprint=dict(found), scorer=suite.scorer)
                for leaf, found in leaves.items()
            ]
    if "judge" in kinds and suite.measure.judge is not None:
        judge = models.judge or models.policy
        settings = suite.measure.judge.model_dump()
        items.append(
            item("judge", "judge", numerics, settings, fingerprint=facts.judge, judge=key_of.get(judge, judge))
        )
    return items
