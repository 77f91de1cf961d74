"""From a suite to concrete work: the stages of a run with their content keys, and the models it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from harness._teachers import NAMED_ROLES, SELF
from harness.data import DataSource
from harness.errors import UserError
from harness.execute import ENDPOINT, JudgeSpec, StageSpec
from harness.keys import content_key
from harness.method import MADE, Method, Params, find_method
from harness.provenance import versions
from harness.suite import Setting, Step, Suite

__all__ = [
    "Facts",
    "Models",
    "Policy",
    "Run",
    "Settings",
    "artifact_of",
    "chain",
    "chain_ends",
    "own_stages",
    "policies",
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
    domains: Mapping[str, str] = field(default_factory=dict)
    """Domain → fingerprint of its held-out documents."""
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


@dataclass(frozen=True)
class Policy:
    """A policy on the way of a run: the step that made it, the recipe that owns the step, and its reference."""

    recipe: str
    step: str
    reference: str
    merged: bool = False


def policies(facts: Facts, run: Run) -> list[Policy]:
    """The policies of a run in order: the base model, then one after each step that makes one."""
    return [Policy(run.recipe, "base", f"model:{run.model}"), *_walk(facts, run).policies]


@dataclass
class _Line:
    """How far a run has come: its stages so far (with those of its teachers), and its models now."""

    policy: str
    reward: str | None = None
    whole: str | None = None
    """The policy as it was before the first step that compressed it."""
    policies: list[Policy] = field(default_factory=list)
    made: dict[str, str] = field(default_factory=dict)
    """Kind → the newest dataset of that kind that a step has made."""
    stages: dict[str, StageSpec] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)


def _walk(facts: Facts, run: Run, steps: int | None = None) -> _Line:
    line = _Line(policy=f"model:{run.model}")
    for step in facts.suite.steps(run.recipe)[:steps]:
        method = find_method(step.method)
        params = step.resolve(run.settings.get(step.recipe, {}))
        settings = params.model_dump(mode="json")
        if line.whole is None and _compresses(method, params):
            line.whole = line.policy
        # The suite was checked for a model in every role that a step needs, and for a dataset made before.
        inputs = {role: _in_role(facts, run, role, settings, line) for role in sorted(method.needs_with(settings))}
        if settings.get("dataset") == MADE and method.dataset_kind:
            inputs["data"] = line.made[method.dataset_kind]
        if (merged := method.merges(settings)) is not None:
            own = [p.reference for p in line.policies if p.recipe == step.recipe and not p.merged]
            parts = [_named(facts, run, name, line) for name in merged] or own
            inputs |= {f"merge_{place}": reference for place, reference in enumerate(parts)}
        if (prepared := method.prepares(settings)) is not None:
            before = _prepared(facts, run, step, prepared, inputs)
            line.stages.setdefault(before.key, before)
            inputs["prepared"] = before.key
        spec = _stage(facts, run, step, method, settings, inputs)
        line.stages.setdefault(spec.key, spec)
        line.own.append(spec.key)
        if method.produces == "reward":
            line.reward = spec.key
        elif method.produces == "dataset":
            line.made[str(method.makes)] = spec.key
        else:
            line.policy = spec.key
            line.policies.append(Policy(step.recipe, f"{step.name}{_round(step)}", spec.key, merged is not None))
    return line


def _compresses(method: type[Method[Params]], params: Params) -> bool:
    if isinstance(method.compresses, str):
        return getattr(params, method.compresses) is not None
    return method.compresses


def _in_role(facts: Facts, run: Run, role: str, settings: Mapping[str, object], line: _Line) -> str:
    """The reference of the model in this role; stages that make another recipe's are added to the line."""
    if role in NAMED_ROLES:
        found = _named(facts, run, settings.get(role), line) if settings.get(role) is not None else line.whole
    else:
        origin = f"model:{run.model}"
        found = {"policy": line.policy, "reference": line.policy, "reward": line.reward, "origin": origin}[role]
    if found is None:
        raise UserError(f"recipe {run.recipe!r}: a step needs a {role} model and has none")
    return found


def _named(facts: Facts, run: Run, name: object, line: _Line) -> str:
    if name == SELF:
        return line.policy
    if name in facts.suite.judges:
        return f"{ENDPOINT}{name}"
    if name in facts.suite.recipes:
        taught = _walk(facts, replace(run, recipe=str(name)))
        for key, spec in taught.stages.items():
            line.stages.setdefault(key, spec)
        return taught.policy
    return f"model:{run.model if name == 'base' else name}"


def _prepared(
    facts: Facts, run: Run, step: Step, prepared: tuple[str, Mapping[str, object]], inputs: Mapping[str, str]
) -> StageSpec:
    name, settings = prepared
    method = find_method(name)
    whole = method.params.model_validate(settings).model_dump(mode="json")
    own = {role: found for role, found in inputs.items() if role == "data" or role in method.needs_with(whole)}
    return _stage(facts, run, replace(step, name=f"{step.name}: {method.name}", method=name), method, whole, own)


def _stage(
    facts: Facts, run: Run, step: Step, method: type[Method[Params]], settings: dict[str, Any], inputs: dict[str, str]
) -> StageSpec:
    given = settings.get("dataset") if method.dataset_kind and "data" not in inputs else None
    fingerprint = facts.datasets[given, method.dataset_kind] if given and method.dataset_kind else None
    # Models count by what they are: under another name in another suite they give the same.
    named = (NAMED_ROLES & inputs.keys()) | ({"models"} if "merge_0" in inputs else set())
    datasets = {name: facts.datasets[name, kind] for name, kind in sorted(method.datasets(settings).items())}
    further: dict[str, object] = {}
    if read := method.reads(settings):
        further["reads"] = dict(read)
    if datasets:
        further["datasets"] = datasets
    if step.round:
        further["round"] = step.round
    key = content_key(
        "stage",
        method=step.method,
        version=method.version,
        params={k: v for k, v in settings.items() if k not in named},
        # What was prepared follows from the rest of the key, and saves time only.
        inputs={role: artifact_of(facts, reference) for role, reference in inputs.items() if role != "prepared"},
        dataset=fingerprint,
        seed=run.seed,
        precision=facts.precision,
        versions={**facts.library_versions, **versions(method.libraries)},
        **further,
    )
    return StageSpec(
        key=key,
        method=step.method,
        version=method.version,
        params=settings,
        inputs=inputs,
        dataset=given,
        dataset_fingerprint=fingerprint,
        datasets=datasets,
        data=facts.source.name,
        seed=run.seed,
        precision=facts.precision,
        round=step.round,
        endpoint=_endpoint(facts, inputs.get("judge", "")),
        limit_s=facts.suite.budget.stage_seconds,
        checkpoint_s=facts.suite.budget.checkpoint_seconds,
        memory_mb=facts.suite.budget.memory_mb,
        label=f"{run.recipe} {step.name}{_round(step)} seed {run.seed}",
    )


def _round(step: Step) -> str:
    return f" round {step.round + 1}" if step.round else ""


def _endpoint(facts: Facts, judge: str) -> dict[str, Any] | None:
    if not judge.startswith(ENDPOINT):
        return None
    name = judge.removeprefix(ENDPOINT)
    return {**facts.suite.judges[name].model_dump(mode="json"), "name": name}


def artifact_of(facts: Facts, reference: str) -> str:
    """The key of the artifact that a model reference means, or of a judge behind an endpoint."""
    if reference.startswith(ENDPOINT):
        return facts.suite.judges[reference.removeprefix(ENDPOINT)].key
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
