"""The suite: one YAML file with the question, the recipes, the targets, the measures and the budget.

Strict and typed: unknown keys are refused, and everything wrong is said at once, each with file, line and column.

A recipe that uses another (`use: sft`) begins with that recipe's *result*: the used recipe is tuned in its own cell,
and its steps then run with the settings chosen there. So a cell searches its recipe's own steps only, and every cell
of a suite has the same budget.
"""

import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator

from harness._budget import Budget, EarlyStopping
from harness._measures import (
    Constraint,
    Direction,
    Endpoint,
    Gold,
    Judge,
    Measure,
    Pairwise,
    Profile,
    Quality,
    Speaker,
    Strict,
    Task,
    objective_problem,
)
from harness._overrides import apply_override
from harness._recipes import NAME_PATTERN, read_recipes
from harness._secrets import first_secret
from harness._spaces import Setting, Space, explain, quoted, suggestion
from harness._steps import Step
from harness._suite_schema import recipes_schema
from harness._teachers import dependencies
from harness.errors import UserError
from harness.keys import canonical, content_key
from harness.method import TORCH_BACKENDS, find_method
from harness.models import BUNDLED_MODELS
from harness.targets import Target
from harness.yamlmarks import Document, KeyPath, Place, Problem, problems_error, read_text, read_yaml

__all__ = [
    "Budget",
    "Constraint",
    "Direction",
    "EarlyStopping",
    "Endpoint",
    "Gold",
    "Judge",
    "Measure",
    "Pairwise",
    "Profile",
    "Quality",
    "Setting",
    "Space",
    "Speaker",
    "Step",
    "Suite",
    "Task",
    "load_suite",
    "schema_text",
    "suite_json_schema",
]

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class _ProblemsError(ValueError):
    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, p.path))}: {p.message}" for p in problems))
        self.problems = problems


class Suite(Strict):
    """A validated suite. `load_suite` reads one from a file."""

    name: Name = Field(description="names the sweep, its files and its report")
    question: str = Field(default="", description="what the suite is to answer, in words")
    models: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1, description="base models: a bundled name, a hub id (org/name) or a folder"
    )
    data: str = Field(
        default="bundled", min_length=1, description="bundled, hub, or a mirror folder laid out <org>/<dataset>"
    )
    recipes: dict[str, Any] = Field(description="recipe name → its steps, in order, from the base model")
    judges: dict[Name, Endpoint] = Field(
        default={},
        description="judges behind endpoints, by names that steps give as their judge; those who measure stand in "
        "measure.judge",
        exclude_if=operator.not_,
    )
    targets: list[Target] = Field(
        default=[Target(name="cpu-fp32")], min_length=1, description="hardware and runtime configurations to measure on"
    )
    measure: Measure = Field(description="what is measured of each model")
    objectives: dict[str, Direction] = Field(
        default_factory=lambda data: data["measure"].default_objectives() if "measure" in data else {},
        min_length=1,
        description="what tuning optimises, the first decides: gold_reward, rm_reward, kl, score (mean of the tasks' "
        "main metrics), <task>.<metric>, helpfulness, harmlessness, latency_ms, peak_memory_mb, weight_mb",
    )
    constraints: dict[str, Constraint] = Field(
        default={}, description="bounds a chosen trial must keep, by the names of objectives: {kl: {max: 20}}"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        default=[0], min_length=1, description="tuning uses the first; the chosen settings are run with each"
    )
    sampler: Literal["tpe", "gp", "random"] = Field(default="tpe", description="Optuna's sampler")
    budget: Budget = Field(description="what each cell may spend")
    early_stopping: EarlyStopping | None = Field(
        default=None, description="stop hopeless tuning trials early; null: none is stopped. Final runs never are"
    )
    scorer: Literal["prefix-tree", "hf"] = Field(
        default="prefix-tree",
        description="how tasks are scored: prefix-tree computes shared context once, hf is lm-eval's own",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="autocast while training; weights stay float32; auto: bfloat16 where hardware multiplies it",
    )
    workers: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="worker processes; null: as many as cores. Decides no number, so it is free to change"
    )
    retries: Annotated[int, Field(ge=0)] = Field(
        default=2, description="times a stage or measurement is run again after its worker died. Free to change, too"
    )

    _own: dict[str, tuple[Step, ...]] = PrivateAttr(default_factory=dict)
    _uses: dict[str, str | None] = PrivateAttr(default_factory=dict)
    _source: Path | None = PrivateAttr(None)
    _text: str = PrivateAttr("")
    _overrides: tuple[str, ...] = PrivateAttr(())

    @field_validator("sampler", mode="before")
    @classmethod
    def _replayable(cls, value: object) -> object:
        if value in ("nsga2", "nsgaii", "NSGAIISampler"):
            raise ValueError("nsga2 is not a pure function of the history, so a killed sweep could not resume; use tpe")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Suite":
        self._own, self._uses, problems = read_recipes(self.recipes, self.models, tuple(self.judges))
        problems += self._cross_problems()
        if problems:
            raise _ProblemsError(problems)
        return self

    def _cross_problems(self) -> Iterator[Problem]:
        for key, items in (
            ("models", self.models),
            ("seeds", self.seeds),
            ("targets", [target.name for target in self.targets]),
        ):
            for index, item in enumerate(items):
                if item in items[:index]:
                    yield Problem((key, index), f"{quoted(item)} stands here twice")
        for path, wrong in self.measure.problems():
            yield Problem(("measure", *path), wrong)
        names = [target.name for target in self.targets]
        for index, target in enumerate(names):
            if not re.fullmatch(NAME_PATTERN, target):
                wrong = f"expected a name of letters, digits, _ . -, got {quoted(target)}"
                yield Problem(("targets", index, "name"), wrong)
        yield from self._target_problems(names)
        yield from self._judge_problems()
        judge = self.measure.judge
        if self.budget.judge_cost is not None and (judge is None or not judge.priced):
            wrong = "no vote has a price; set measure.judge.cost_per_vote, or an endpoint's prices, in the same unit"
            yield Problem(("budget", "judge_cost"), wrong)
        yield from self._stopping_problems()
        # An unread recipe has no steps; what is wrong with it is said once.
        rewarded = {r: any(find_method(s.method).produces == "reward" for s in self._chain(r)) for r in self._own}
        # Those that follow from the measures are wrong only where a measure is, which is said there.
        chosen = self.objectives if "objectives" in self.model_fields_set else {}
        for key, given in (("objectives", chosen), ("constraints", self.constraints)):
            for name in given:
                if message := objective_problem(name, self.measure, rewarded):
                    yield Problem((key, name), message, on_key=True)
        for name, bound in self.constraints.items():
            if (bound.min is None) == (bound.max is None):
                yield Problem(("constraints", name), "expected one of {min: x} and {max: x}")

    def _target_problems(self, names: Sequence[str]) -> Iterator[Problem]:
        wanted = self.measure.quality_target
        if wanted is not None and wanted not in names:
            yield Problem(("measure", "quality_target"), f"no target {quoted(wanted)}{suggestion(wanted, names)}")
            return
        if not self.targets_of("base"):
            wrong = f"none runs the untouched base model; add one of backend {_listed(TORCH_BACKENDS)}"
            yield Problem(("targets",), wrong)
        elif wanted is not None and wanted not in {t.name for t in self.targets_of("base")}:
            path = ("measure", "quality_target")
            yield Problem(path, f"{wanted} does not run the untouched base model, by which everything is compared")
        used = set[str]()
        for recipe in self._own:
            used |= (backends := self.backends(recipe))
            if not self.targets_of(recipe):
                message = f"no target runs what it leaves: add one of backend {_listed(backends)}"
                yield Problem(("recipes", recipe), message, on_key=True)
        for index, target in enumerate(self.targets):
            if target.backend not in used | TORCH_BACKENDS:
                message = f"no recipe leaves a model that backend {target.backend} runs: end one with an export"
                yield Problem(("targets", index), message)

    def _stopping_problems(self) -> Iterator[Problem]:
        if self.early_stopping is None or self.early_stopping.documents is None:
            return
        of_documents = ("gold_reward", "rm_reward", "score")
        tasks = [n for n in self.objectives if "." in n and not n.startswith("domain.")]
        if len(self.objectives) > 1 or not set(self.objectives) <= {*of_documents, *tasks}:
            wanted = f"a mean over documents ({', '.join(of_documents)} or <task>.<metric>)"
            wrong = f"expected a single objective that is {wanted}, got {', '.join(self.objectives)}"
            yield Problem(("early_stopping", "documents"), wrong, on_key=True)

    def _judge_problems(self) -> Iterator[Problem]:
        for name in self.judges:
            if name in (taken := ("self", "base", *self.recipes, *self.models)):
                wrong = f"a judge needs a name of its own; {', '.join(taken)} are taken"
                yield Problem(("judges", name), wrong, on_key=True)
        judging = self.measure.judge
        if judging is None:
            return
        known = ["self", "base", *self.recipes, *self.models, *BUNDLED_MODELS]
        for index, judge in enumerate(judging.models):
            if judge is None:
                continue
            path = ("measure", "judge", "panel", index) if judging.panel else ("measure", "judge", "model")
            if judge not in known and "/" not in judge and not judge.startswith((".", "~")):
                message = f"no recipe or model {quoted(judge)}{suggestion(judge, known)}"
                yield Problem(path, f"{message}; a hub id is org/name, a folder here is ./name")
            if judge in self._own and "eager" not in self.backends(judge):
                yield Problem(path, f"{judge} is exported; a judge answers in torch: name the recipe it begins with")
            searched = set(judging.aspects()) & {*self.objectives, *self.constraints}
            if judge in self.recipes and searched:
                message = f"{min(searched)} steers the tuning, so a recipe that is itself tuned cannot judge; use base"
                yield Problem(path, message)
        pairwise = judging.pairwise
        if pairwise is not None and pairwise.against not in (against := ["base", *self._own]):
            wrong = f"no recipe {quoted(pairwise.against)}{suggestion(pairwise.against, against)}"
            yield Problem(("measure", "judge", "pairwise", "against"), wrong)

    @property
    def source(self) -> Path | None:
        """The file it was read from."""
        return self._source

    @property
    def text(self) -> str:
        """The file's text, as it was read."""
        return self._text

    @property
    def overrides(self) -> tuple[str, ...]:
        """The `key=value` of each `--set` that was applied to the text."""
        return self._overrides

    @property
    def quality_target(self) -> Target:
        """The target that tasks, gold and judge run on, for every recipe that runs there."""
        return self.quality_targets("base")[0]

    def place(self, *path: str | int) -> str:
        """`file:line:column` of the value at this path, or of what is nearest around it; without a file the name."""
        if self._source is None:
            return self.name
        document = read_yaml(self._text, str(self._source))
        for override in self._overrides:
            apply_override(document, override)
        return str(document.place(path))

    def backends(self, recipe: str) -> frozenset[str]:
        """The backends of targets that run the policy a recipe leaves."""
        last = next((s for s in reversed(self._chain(recipe)) if find_method(s.method).produces == "policy"), None)
        return TORCH_BACKENDS if last is None else last.runs_on

    def targets_of(self, recipe: str) -> list[Target]:
        """The targets that run the policy a recipe leaves, in the suite's order."""
        backends = self.backends(recipe)
        return [target for target in self.targets if target.backend in backends]

    def quality_targets(self, recipe: str) -> list[Target]:
        """The targets on which a recipe's final quality is measured: one, or one for each distinct numerics.

        The first is the one by which it is compared and tuned: the suite's quality target, or for a model exported to
        another runtime the first that runs it.
        """
        own = self.targets_of(recipe)
        first = next((t for t in own if t.name == self.measure.quality_target), own[0])
        if not self.measure.every_numerics:
            return [first]
        found: dict[str, Target] = {}
        for target in [first, *own]:
            found.setdefault(content_key("numerics", **target.numerics()), target)
        return list(found.values())

    def _chain(self, recipe: str) -> list[Step]:
        steps: list[Step] = []
        seen: set[str] = set()
        current: str | None = recipe
        while current is not None and current not in seen:
            seen.add(current)
            steps = [*self._own.get(current, ()), *steps]
            current = self._uses.get(current)
        return steps

    def _known(self, recipe: str) -> str:
        if recipe != "base" and recipe not in self._own:
            raise UserError(f"suite {self.name}: no recipe {recipe!r}{suggestion(recipe, self._own)}")
        return recipe

    def steps(self, recipe: str) -> list[Step]:
        """All steps from the base model on, those of used recipes first (`Step.recipe` owns each); `base` has none.

        Raises:
            UserError: no such recipe.
        """
        return self._chain(self._known(recipe))

    def uses(self, recipe: str) -> str | None:
        """The recipe whose result this one begins with, or None."""
        return self._uses.get(self._known(recipe))

    def needs(self, recipe: str) -> list[str]:
        """The recipes whose results this one needs, each after those it needs itself: used, teaching or judging."""
        return dependencies(self._own, self._uses, self._known(recipe))

    def recipe_order(self) -> list[str]:
        """The recipes, each after those it needs; otherwise as the suite lists them."""
        return list(dict.fromkeys(name for recipe in self._own for name in (*self.needs(recipe), recipe)))

    def search_space(self, recipe: str) -> dict[str, Space]:
        """Flat setting name (`dpo.beta`; `dpo_2.beta` for a second such step) → what its cell searches.

        Only the recipe's own steps: a used recipe comes with the settings chosen in its own cell.
        """
        own = self._own.get(self._known(recipe), ())
        return {f"{step.name}.{key}": space for step in own for key, space in step.spaces.items()}

    def identity(self) -> dict[str, object]:
        """What decides the numbers, canonical: not the name, the question, workers, retries, checkpoints, the noise
        floor, or the order of recipes.

        Settings are typed and complete, with each method's version, so that a changed default is another sweep.
        """
        without = dict.fromkeys(("name", "question", "recipes", "objectives", "workers", "retries"), True)
        plain = self.model_dump(
            mode="json", exclude={**without, "measure": {"noise_floor"}, "budget": {"checkpoint_minutes"}}
        )
        if self.judges:
            plain["judges"] = {name: judge.identity() for name, judge in self.judges.items()}
        if self.measure.judge is not None:
            plain["measure"]["judge"] = self.measure.judge.identity()
        recipes = {
            recipe: {
                "use": self._uses[recipe],
                "steps": [
                    {
                        "method": step.method,
                        "version": find_method(step.method).version,
                        "settings": dict(step.settings),
                        "spaces": {key: space.to_json() for key, space in step.spaces.items()},
                    }
                    for step in steps
                ],
            }
            for recipe, steps in self._own.items()
        }
        # A list: the first objective decides which trial is chosen.
        whole = {**plain, "recipes": recipes, "objectives": [list(pair) for pair in self.objectives.items()]}
        result = canonical(whole)
        return result if isinstance(result, dict) else {}

    def sweep_id(self) -> str:
        """`<name>-<8 hex of the identity>`: the same suite continues the same sweep."""
        return f"{self.name}-{content_key('sweep', identity=self.identity())[:8]}"


def load_suite(path: Path | str, overrides: Sequence[str] = ()) -> Suite:
    """Read and validate a suite.

    Args:
        path: the YAML file.
        overrides: `key=value` each, as given to `--set`: a dotted path (`budget.trials_per_cell`,
            `recipes.dpo.1.dpo.beta`, `measure.tasks.mmlu.limit`) and a YAML value. Later ones win.

    Raises:
        UserError: everything that is wrong, a line each: `file:line:column: path: message`.
    """
    path = Path(path)
    text = read_text(path)
    _refuse_secrets(text, path, overrides)
    document = read_yaml(text, str(path))
    if document.data is None and document.problems:
        raise problems_error(document, document.problems)
    if document.data is None:
        document.problems.append(Problem((), f"the file is empty; expected the keys {_required()}"))
    elif not isinstance(document.data, dict):
        document.problems.append(Problem((), f"expected a mapping with the keys {_required()}"))
    else:
        for override in overrides:
            apply_override(document, override)
        return _validated(document, path, text, tuple(overrides))
    raise problems_error(document, document.problems)


def _refuse_secrets(text: str, path: Path, overrides: Sequence[str]) -> None:
    # The suite is stored as it was read, and shown in the report.
    found = first_secret(text)
    if found is not None:
        before = text[: found[1]]
        place = Place(str(path), before.count("\n") + 1, len(before) - before.rfind("\n"))
    elif (found := next((f for o in overrides if (f := first_secret(o)) is not None), None)) is not None:
        place = Place("--set …")
    else:
        return
    raise UserError(f"{place}: {found[0]} stands here; take it out: the suite is stored and shown in the report")


def _listed(names: Iterable[str]) -> str:
    return " or ".join(sorted(names))


def _strings(found: object) -> list[str]:
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []


def _required() -> str:
    return ", ".join(name for name, field in Suite.model_fields.items() if field.is_required())


def _validated(document: Document, path: Path, text: str, overrides: tuple[str, ...]) -> Suite:
    problems = list(document.problems)
    data = document.data
    try:
        suite = Suite.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        crossed = False
        for e in error.errors(include_url=False):
            inner = e.get("ctx", {}).get("error")
            if isinstance(inner, _ProblemsError):
                problems += inner.problems
                crossed = True
            elif e["type"] != "default_factory_not_called":
                problems.append(_problem(e))
        # The recipes are read after the rest; a typo elsewhere must not hide what is wrong in them.
        if not crossed and isinstance(data, dict) and isinstance(data.get("recipes"), dict):
            problems += read_recipes(data["recipes"], _strings(data.get("models")))[2]
        # What the reader could not take was replaced, and what is wrong with that is not the user's doing.
        unread = [p.path for p in document.problems if p.path]
        told = [p for p in problems if p in document.problems or not any(p.path[: len(u)] == u for u in unread)]
        raise problems_error(document, told) from error
    if problems:
        raise problems_error(document, problems)
    suite._source, suite._text, suite._overrides = path, text, overrides
    return suite


def _problem(error: Mapping[str, Any]) -> Problem:
    loc: KeyPath = tuple(error["loc"])
    if loc and loc[-1] == "[key]":
        if error["type"] == "string_pattern_mismatch":
            return Problem(loc[:-1], "expected a name of letters, digits, _ . -", on_key=True)
        return Problem(loc[:-1], explain(error), on_key=True)
    if error["type"] == "extra_forbidden":
        return Problem(loc, f"unknown key{suggestion(loc[-1], _keys_at(Suite, loc[:-1]))}", on_key=True)
    if error["type"] == "missing":
        return Problem(loc[:-1], f"the key {loc[-1]} is required", on_key=True)
    if error["type"] == "string_pattern_mismatch" and loc[-1:] == ("name",):
        return Problem(loc, f"expected a name of letters, digits, _ . -, got {quoted(error['input'])}")
    return Problem(loc, explain(error))


def _keys_at(annotation: object, loc: KeyPath) -> list[str]:
    """The keys that the model at this location of the suite has."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _keys_at(get_args(annotation)[0], loc)
    if origin is Union or (origin is not None and type(None) in get_args(annotation)):
        return [key for a in get_args(annotation) for key in _keys_at(a, loc)]
    if origin in (list, dict) and loc:
        return _keys_at(get_args(annotation)[-1], loc[1:])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        if not loc:
            return list(fields)
        return _keys_at(fields[str(loc[0])].annotation, loc[1:]) if loc[0] in fields else []
    return []


def suite_json_schema(methods: Sequence[str] | None = None) -> dict[str, object]:
    """The JSON Schema of a suite, with which editors complete and check its YAML.

    Args:
        methods: whose settings it describes; None: all that are found.
    """
    schema = Suite.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A suite of the post-training harness"
    recipes, definitions = recipes_schema(methods)
    schema["$defs"] = {**schema.get("$defs", {}), **definitions}
    schema["properties"]["recipes"] = {
        **recipes,
        "description": schema["properties"]["recipes"]["description"],
        "title": "Recipes",
    }
    return schema


def schema_text(methods: Sequence[str] | None = None) -> str:
    """The JSON Schema as the text of a file: what `harness/suite.schema.json` holds for the methods shipped."""
    return json.dumps(suite_json_schema(methods), indent=2, ensure_ascii=False) + "\n"
