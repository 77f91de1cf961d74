"""The models that grade a run's model, made when first needed: the reward model of the proxy recipe, and the judges."""

import asyncio
from collections.abc import Mapping

from harness.data import Half
from harness.execute import JudgeSpec
from harness.history import owners
from harness.proxy import given_judge, judge_of_recipe, proxy_of
from harness.resolve import Facts, Models, Run, Settings, chain
from harness.suite import Endpoint, Speaker
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
        proxy = proxy_of(self._suite)
        if proxy is None or not proxy.grades(phase):
            return None
        settings: dict[str, Settings] = {}
        for owner in proxy.owners:
            if (owner, run.model) not in self._chosen:
                # No target here runs it.
                return None
            chosen = await self._chosen[owner, run.model]
            if chosen is None:
                return None
            settings[owner] = chosen[1]
        specs = proxy.stages(self._facts, run, settings)
        for spec in specs:
            await self._work.stage(spec)
        return specs[-1].key

    async def judges(self, run: Run, models: Models) -> tuple[JudgeSpec, ...]:
        """Who rates the answers of this run's model.

        Raises:
            FailedRunError: a judge is a recipe's, and cannot be had.
        """
        judging = self._suite.measure.judge
        found = []
        for judge in judging.judges if judging else ():
            given = given_judge(self._facts, judge, models)
            if given is None and not isinstance(judge, Endpoint):
                given = await self._recipes(judge, run)
            found += [given] if given is not None else []
        return tuple(found)

    async def _recipes(self, named: str | Speaker, run: Run) -> JudgeSpec:
        name = named if isinstance(named, str) else named.local
        if (name, run.model) not in self._chosen:
            raise FailedRunError.because(f"the judge {name} is not run: no target here runs it")
        if await self._chosen[name, run.model] is None:
            raise FailedRunError.because(f"the judge {name} has no successful trial")
        settings = {o: c[1] for o in owners(self._suite, name) if (c := await self._chosen[o, run.model]) is not None}
        made, judge = judge_of_recipe(self._facts, named, run.model, settings)
        for spec in chain(self._facts, made):
            await self._work.stage(spec)
        return judge
