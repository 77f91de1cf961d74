"""From a suite to concrete work: the stages of a run with their content keys, and the measurements of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from harness.data import DataSource, Half
from harness.execute import Item, ItemKind, JudgeSpec, MeasureSpec, StageSpec
from harness.keys import content_key
from harness.method import Method, Params, find_method
from harness.provenance import versions
from harness.suite import Setting, Step, Suite
from harness.targets import RUNTIMES, Target

__all__ = [
    "Answered",
    "Facts",
    "ItemKind",
    "Models",
    "Run",
    "Settings",
    "chain",
    "chain_ends",
    "final_kinds",
    "measure_specs",
    "own_stages",
    "pair_specs",
]

Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class Facts:
    """What was found out about a suite's world before anything runs: the fingerprints that enter content keys."""

    suite: Suite
    source: DataSource
    precision: Literal["float32", "bfloat16"]
    models: Mapping[str, str]
    """Base model, or model that a step names as its teacher or the suite as a judge → its artifact key."""
    datasets: Mapping[tuple[str, str], str]
    """(dataset, kind) → fingerprint of its rows."""
    tasks: Mapping[str, Mapping[str, Mapping[str, object]]]
    """Task of the suite → leaf task → what decides its scores beside the model."""
    gold: Mapping[str, object] | None
    judge: str | None
    """Fingerprint of the judge's prompts and template."""
    machine: Mapping[str, object]
    quality: str | None = None
    """Fingerprint of what a judge's quality is measured with."""
    library_versions: Mapping[str, str] = field(default_factory=versions)


@dataclass(frozen=True)
class Run:
    """A recipe from one base model with one seed and its settings (own and used recipes', by recipe)."""

    recipe: str
    model: str
    seed: int
    settings: Mapping[str, Settings]


def chain(facts: Facts, run: Run, steps: int | None = None) -> list[StageSpec]:
    """The stages of a run in order (only its first `steps` steps if given), each with its content key; none for `base`.

    Where a step learns from another recipe's policy, that recipe's stages stand before it, each stage once.
    """
    return list(_walk(facts, run, steps).stages.values())


def chain_ends(facts: Facts, run: Run, specs: Sequence[StageSpec]) -> "Models":
    """The models a run leaves: its final policy, and its reward model if it trains one."""
    own = set(_walk(facts, run).own)
    rewards = [s.key for s in specs if s.key in own and find_method(s.method).produces == "reward"]
    policies = [s.key for s in specs if s.key in own and find_method(s.method).produces == "policy"]
    base = f"model:{run.model}"
    return Models(
        policy=policies[-1] if policies else base,
        artifact=policies[-1] if policies else facts.models[run.model],
        reward=rewards[-1] if rewards else None,
        base=base,
    )


def own_stages(facts: Facts, run: Run) -> list[str]:
    """The keys of a run's stages by the position of their step, without those of its teachers."""
    return list(_walk(facts, run).own)


@dataclass
class _Line:
    """How far a run has come: its stages so far (with those of its teachers), and its models now."""

    policy: str
    reward: str | None = None
    whole: str | None = None
    """The policy as it was before the first step that compressed it."""
    stages: dict[str, StageSpec] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)


def _walk(facts: Facts, run: Run, steps: int | None = None) -> _Line:
    line = _Line(policy=f"model:{run.model}")
    for step in facts.suite.steps(run.recipe)[:steps]:
        method = find_method(step.method)
        params = step.resolve(run.settings.get(step.recipe, {}))
        if line.whole is None and _compresses(method, params):
            line.whole = line.policy
        roles = {"policy": line.policy, "reference": line.policy, "reward": line.reward}
        if "teacher" in method.needs:
            roles["teacher"] = _teacher(facts, run, params, line)
        # The suite was checked for a reward model and a teacher before every method that needs one.
        inputs: dict[str, str] = {
            str(role): found for role in sorted(method.needs) if (found := roles[role]) is not None
        }
        spec = _stage(facts, run, step, params, inputs)
        line.stages.setdefault(spec.key, spec)
        line.own.append(spec.key)
        if method.produces == "reward":
            line.reward = spec.key
        else:
            line.policy = spec.key
    return line


def _compresses(method: type[Method[Params]], params: Params) -> bool:
    if isinstance(method.compresses, str):
        return getattr(params, method.compresses) is not None
    return method.compresses


def _teacher(facts: Facts, run: Run, params: Params, line: _Line) -> str | None:
    """The model that a step's `teacher` means; stages that make it are added to the line."""
    name = getattr(params, "teacher", None)
    if name is None:
        return line.whole
    if name in facts.suite.recipes:
        taught = _walk(facts, replace(run, recipe=name))
        for key, spec in taught.stages.items():
            line.stages.setdefault(key, spec)
        return taught.policy
    return f"model:{run.model if name == 'base' else name}"


def _stage(facts: Facts, run: Run, step: Step, params: Params, inputs: dict[str, str]) -> StageSpec:
    method = find_method(step.method)
    dataset = getattr(params, "dataset", None) if method.dataset_kind else None
    fingerprint = facts.datasets[dataset, str(method.dataset_kind)] if dataset else None
    settings: dict[str, Any] = params.model_dump(mode="json")
    # A teacher counts by what it is: under another name in another suite it gives the same student.
    named = {"teacher"} if "teacher" in inputs else set()
    key = content_key(
        "stage",
        method=step.method,
        version=method.version,
        params={k: v for k, v in settings.items() if k not in named},
        inputs={role: _artifact(facts, reference) for role, reference in inputs.items()},
        dataset=fingerprint,
        seed=run.seed,
        precision=facts.precision,
        versions={**facts.library_versions, **versions(method.libraries)},
    )
    return StageSpec(
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
        limit_s=_times(facts.suite.budget.stage_minutes, 60),
        memory_mb=_times(facts.suite.budget.memory_gb, 1024),
        label=f"{run.recipe} {step.name} seed {run.seed}",
    )


def _times(amount: float | None, factor: float) -> float | None:
    return None if amount is None else amount * factor


def _artifact(facts: Facts, reference: str) -> str:
    return facts.models[reference.removeprefix("model:")] if reference.startswith("model:") else reference


@dataclass(frozen=True)
class Models:
    """References of the models around a measurement; `artifact` is the policy's key in the store."""

    policy: str
    artifact: str
    reward: str | None
    base: str
    judges: tuple[JudgeSpec, ...] = ()
    shape: str | None = None
    """What decides the policy's latency and memory (`harness._shapes`); None: its artifact."""


def final_kinds(suite: Suite, seed: int) -> frozenset[ItemKind]:
    """What a final run of this seed is measured for."""
    kinds: frozenset[ItemKind] = frozenset({"task", "gold", "judge", "judge_check", "profile"})
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
            limit_s=_times(suite.budget.measure_minutes, 60),
            memory_mb=_times(suite.budget.memory_gb, 1024),
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
                    limit_s=_times(suite.budget.measure_minutes, 60),
                    memory_mb=_times(suite.budget.memory_gb, 1024),
                    label=f"{first.recipe} seed {first.seed}: compared in pairs",
                    urgency=1,
                )
            )
    return specs
