"""A recipe and its steps, as a suite has them: what each step may be, needs and leaves."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from harness._spaces import Space, explain
from harness._teachers import NAMED_ROLES
from harness.errors import UserError
from harness.method import TORCH_BACKENDS, DatasetKind, Params, find_method
from harness.yamlmarks import KeyPath

__all__ = ["Recipe", "Step"]


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
