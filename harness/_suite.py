"""The suite as a typed value: its settings, and what they say of every recipe."""

import operator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from harness._budget import Budget, EarlyStopping
from harness._measures import Constraint, Direction, Endpoint, Measure, Strict
from harness._overrides import apply_override
from harness._recipes import NAME_PATTERN, read_recipes
from harness._spaces import Space, suggestion
from harness._steps import Step
from harness._suite_problems import SuiteProblemsError, cross_problems
from harness._teachers import dependencies
from harness.errors import UserError
from harness.keys import canonical, content_key
from harness.method import TORCH_BACKENDS, find_method
from harness.targets import Target
from harness.yamlmarks import read_yaml

__all__ = ["Suite"]

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


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
        problems += cross_problems(self, self._own)
        if problems:
            raise SuiteProblemsError(problems)
        return self

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
