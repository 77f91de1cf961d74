"""The models that grade a run's model, made when first needed: the reward model of the proxy recipe, and the judge."""

import asyncio
from collections.abc import Mapping

from harness.data import Half
from harness.history import owners
from harness.method import find_method
from harness.resolve import Facts, Models, Run, Settings, chain, chain_ends, proxy_recipe
from harness.suite import Step
from harness.sweep._work import FailedRunError, Work

__all__ = ["Chosen", "Graders"]

Chosen = Mapping[tuple[str, str], asyncio.Future[tuple[int, Settings] | None]]
"""(recipe, model) → the trial that its tuning chose and that trial's settings, once known; None: no trial succeeded."""


class Graders:
    """References of the graders, each with its stages done."""

    def __init__(self, facts: Facts, chosen: Chosen, work: Work) -> None:
        self._facts, self._suite, self._chosen, self._work = facts, facts.suite, chosen, work

    async def reward(self, run: Run, phase: Half) -> str | None:
        """The reward model that scores this run's model: of the proxy recipe, same base model, same seed."""
        recipe = proxy_recipe(self._suite)
        if recipe is None:
            return None
        steps = self._reward_steps(recipe)
        searched = any(step.spaces for step in steps)
        # While tuning, a reward model that is itself being searched cannot judge its own search.
        if self._suite.measure.gold is None or (searched and phase == "tune"):
            return None
        settings: dict[str, Settings] = {}
        for owner in owners(self._suite, recipe):
            if owner != recipe or searched:
                chosen = await self._chosen[owner, run.model]
                if chosen is None:
                    return None
                settings[owner] = chosen[1]
        proxy = Run(recipe, run.model, run.seed, settings)
        specs = chain(self._facts, proxy, len(steps))
        for spec in specs:
            await self._work.stage(spec)
        return specs[-1].key

    async def judge(self, run: Run, models: Models) -> str:
        """The model that rates the answers of this run's model, as the suite names it.

        Raises:
            FailedRunError: the judge is a recipe's, and cannot be had.
        """
        name = self._suite.measure.judge.model if self._suite.measure.judge else "base"
        if name == "base":
            return models.base
        if name == "self":
            return models.policy
        if (name, run.model) not in self._chosen:
            return f"model:{name}"
        chosen = await self._chosen[name, run.model]
        if chosen is None:
            raise FailedRunError.because(f"the judge {name} has no successful trial")
        settings = {o: c[1] for o in owners(self._suite, name) if (c := await self._chosen[o, run.model]) is not None}
        judge = Run(name, run.model, self._suite.seeds[0], settings)
        specs = chain(self._facts, judge)
        for spec in specs:
            await self._work.stage(spec)
        return chain_ends(self._facts, judge, specs).policy

    def _reward_steps(self, recipe: str) -> list[Step]:
        steps = self._suite.steps(recipe)
        last = max(i for i, s in enumerate(steps) if find_method(s.method).produces == "reward")
        return steps[: last + 1]
