"""From a suite to concrete work: the measurements of a model, and of pairs of models, with their content keys."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.data import Half
from harness.execute import Item, ItemKind, JudgeSpec, MeasureSpec
from harness.keys import content_key
from harness.provenance import versions
from harness.resolve import Facts, Models, Run, artifact_of, policies
from harness.suite import Suite
from harness.targets import RUNTIMES, Target

__all__ = ["Answered", "AtStep", "ItemKind", "final_kinds", "measure_specs", "pair_specs", "step_specs"]


def final_kinds(suite: Suite, seed: int) -> frozenset[ItemKind]:
    """What a final run of this seed is measured for."""
    kinds: frozenset[ItemKind] = frozenset({"task", "gold", "judge", "judge_check", "profile", "domain"})
    # A seed does not change the architecture, whose latency and memory are: one seed is profiled.
    return kinds if seed == suite.seeds[0] else kinds - {"profile"}


def measure_specs(
    facts: Facts,
    recipe: str,
    models: Models,
    halves: tuple[Half, ...],
    kinds: frozenset[ItemKind],
    label: str,
    *,
    repeat: int = 0,
) -> list[tuple[Target, MeasureSpec]]:
    """The measurements of a recipe's model: quality on each quality target, a spec each, a profile on every target.

    Those of a `repeat`, for the noise floor, are the same in the same order, with keys of their own, without profile
    and judges' quality.
    """
    suite = facts.suite
    again = {"repeat": repeat} if repeat else {}
    kinds = kinds - {"profile", "judge_check"} if repeat else kinds
    own: dict[str, Any] = {"artifact": models.artifact, "halves": list(halves)}
    alike: dict[str, Any] = {"shape": models.shape} if models.shape else {"artifact": models.artifact}

    def item(
        kind: ItemKind, task: str, target: Mapping[str, object], settings: Mapping[str, Any], **more: object
    ) -> Item:
        by = alike if kind == "profile" else own
        if runtime := RUNTIMES.get(str(target["backend"])):
            # Outside torch it is the runtime that decides the numbers.
            more = {**more, "runtime": versions((runtime[1],))}
        key = content_key(kind, task=task, target=dict(target), settings=dict(settings), **by, **more, **again)
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
            judges=models.judges,
            repeat=repeat,
            alone=alone,
            limit_s=suite.budget.measure_seconds,
            memory_mb=suite.budget.memory_mb,
            label=f"{label} on {target.name}" if alone or len(scored) > 1 else label,
            # The next trial waits for a tuning measurement; nothing waits for a final one.
            urgency=0 if "tune" in halves else 2 if alone or repeat else 1,
        )
        return target, made

    specs = []
    scored = suite.quality_targets(recipe)
    # While tuning, quality is asked for on one target only: a trial has one value of its objective.
    for target in scored[:1] if "tune" in halves else scored:
        if items := _quality_items(facts, models, kinds, target, item):
            specs.append(spec(target, items, alone=False))
    if "profile" in kinds and suite.measure.profile is not None:
        settings = suite.measure.profile.model_dump()
        for target in suite.targets_of(recipe):
            what = {**target.numerics(), "threads": target.threads}
            if target.resources:
                # On a cluster they say which hardware it is, where the numerics may be the same.
                what["resources"] = target.resources
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
    if "domain" in kinds:
        for name, fingerprint in facts.domains.items():
            asked = {"dataset": suite.measure.domains[name], "limit": suite.measure.domain_limit}
            items.append(item("domain", f"domain.{name}", numerics, asked, fingerprint=fingerprint))
    judge = suite.measure.judge
    if judge is None:
        return items
    if "judge" in kinds:
        settings = judge.model_dump(include={*judge.aspects(), "limit", "max_new_tokens", "prompts"})
        off = {aspect: False for aspect in ("helpfulness", "harmlessness") if aspect not in settings}
        names = {"panel": [j.name for j in models.judges]}
        keys = [j.key for j in models.judges]
        items.append(
            item("judge", "judge", numerics, {**settings, **off, **names}, fingerprint=facts.judge, judges=keys)
        )
    if "judge_check" in kinds and judge.quality is not None:
        settings = judge.quality.model_dump()
        for one in models.judges:
            key = content_key(
                "judge_check", judge=one.key, target=dict(numerics), settings=settings, fingerprint=facts.quality
            )
            named = {**settings, "judge": one.name}
            items.append(Item(key=key, kind="judge_check", task="judge_check", settings=named, artifact=one.key))
    return items


@dataclass(frozen=True)
class AtStep:
    """The measurements on domains of one policy on the way of a run: 0 is the base model, then after each step."""

    position: int
    step: str
    artifact: str
    target: Target
    spec: MeasureSpec


def step_specs(facts: Facts, run: Run) -> list[AtStep]:
    """What a final run is asked on domains after each of its steps, the base model's and the final policy's included.

    Each on the target by which it is compared; keys do not know of the steps, so that recipes share what they share.
    """
    if not facts.domains:
        return []
    found = []
    passed = policies(facts, run)
    for position, policy in enumerate(passed):
        reference = policy.reference
        artifact = artifact_of(facts, reference)
        models = Models(policy=reference, artifact=artifact, reward=None, base=f"model:{run.model}")
        # Only the last can be an export, for a target of its own.
        recipe = run.recipe if position == len(passed) - 1 else "base"
        label = f"{run.recipe} seed {run.seed}: measuring after {policy.step}"
        specs = measure_specs(facts, recipe, models, ("final",), frozenset({"domain"}), label)
        found.append(AtStep(position, policy.step, artifact, *specs[0]))
    return found


@dataclass(frozen=True)
class Answered:
    """A final run whose answers to the judge's prompts can be compared: its models, and its judge measurement."""

    recipe: str
    seed: int
    artifact: str
    measurement: str


def pair_specs(facts: Facts, model: str, sides: Sequence[Answered], judges: Sequence[JudgeSpec]) -> list[MeasureSpec]:
    """The comparisons in pairs among the final runs from one base model: a spec for each run that comes first.

    Runs of the same seed are compared, and each with the base model, which has one. The first of a pair is the one that
    comes first in the suite's order, the base model last: so each pair is asked once, in both orders of its answers.
    """
    suite = facts.suite
    pairwise = suite.measure.judge.pairwise if suite.measure.judge is not None else None
    if pairwise is None or not judges:
        return []
    order = [*suite.recipes, "base"]
    ranked = sorted(sides, key=lambda side: (order.index(side.recipe), side.seed))
    target, base = suite.quality_target, f"model:{model}"
    specs = []
    for first in ranked:
        items = []
        for second in ranked:
            if order.index(second.recipe) <= order.index(first.recipe):
                continue
            if second.recipe != "base" and second.seed != first.seed:
                continue
            if not pairwise.round_robin and pairwise.against not in (first.recipe, second.recipe):
                continue
            settings = {"a": first.measurement, "b": second.measurement, "limit": pairwise.limit}
            # Who judges is in the key with its name, which stands in the rows.
            panel = [[j.name, j.key] for j in judges]
            key = content_key("pairs", **settings, target=target.numerics(), judges=panel, prompts=facts.judge)
            items.append(Item(key=key, kind="pairs", task="pairs", settings=settings, artifact=first.artifact))
        if items:
            specs.append(
                MeasureSpec(
                    key=content_key("measure", items=[i.key for i in items]),
                    model=base,
                    artifact=first.artifact,
                    target=target.model_dump(),
                    data=facts.source.name,
                    halves=("final",),
                    scorer=suite.scorer,
                    items=tuple(items),
                    base=base,
                    judges=tuple(judges),
                    limit_s=suite.budget.measure_seconds,
                    memory_mb=suite.budget.memory_mb,
                    label=f"{first.recipe} seed {first.seed}: compared in pairs",
                    urgency=1,
                )
            )
    return specs
