"""The loop: suggest, execute, measure, record. Resuming a sweep is running it again.

Everything a sweep knows is in the store and the artifacts: what is there already is used, whichever sweep made it.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data import Half
from harness.errors import MeasurementError
from harness.execute import Executor, MeasureSpec, Progress, Result, StageSpec
from harness.folders import Folders
from harness.history import history, next_batch, owners
from harness.method import find_method
from harness.objectives import kinds_of, objective_values
from harness.plan import Plan
from harness.progress import Display
from harness.provenance import environment
from harness.resolve import ItemKind, Models, Run, Settings, chain, chain_ends, measure_specs, proxy_recipe
from harness.search import Past, best_trial
from harness.store import Store

__all__ = ["Outcome", "run_sweep"]

_LINK = ("recipe", "model", "trial", "seed")
_ALL_KINDS: frozenset[ItemKind] = frozenset({"task", "gold", "judge", "profile"})


class _FailedRunError(Exception):
    """A stage or measurement that this run needs has failed."""

    def __init__(self, result: Result, *, stage: str | None = None, measurement: str | None = None) -> None:
        super().__init__(result.message)
        self.result, self.stage, self.measurement = result, stage, measurement


@dataclass
class Outcome:
    """How a sweep ended."""

    sweep: str
    failures: list[str] = field(default_factory=list)
    computed: int = 0
    """Stages and measurements that were computed now, not found."""


async def run_sweep(plan: Plan, results: Path, executor: Executor, display: Display) -> Outcome:
    """Run what is missing of a sweep, to its end.

    A failed trial is a row with its reason and does not stop the others.
    """
    sweep = _Sweep(plan, results, executor, display)
    sweep.event("running")
    state = "interrupted"
    try:
        await sweep.run()
        state = "failed" if sweep.outcome.failures else "complete"
    finally:
        sweep.event(state)
        sweep.store.ingest()
    return sweep.outcome


class _Sweep:
    def __init__(self, plan: Plan, results: Path, executor: Executor, display: Display) -> None:
        self.plan, self.facts, self.suite = plan, plan.facts, plan.suite
        self.results, self.executor, self.display = results, executor, display
        self.store, self.folders = Store(results), Folders(results)
        self.outcome = Outcome(plan.sweep)
        self._stages: dict[str, asyncio.Task[bool]] = {}
        self._measures: dict[str, asyncio.Task[None]] = {}
        loop = asyncio.get_running_loop()
        cells = [(c.recipe, c.model) for c in plan.cells]
        self._chosen: dict[tuple[str, str], asyncio.Future[tuple[int, Settings] | None]] = {
            cell: loop.create_future() for cell in cells
        }
        self.store.ingest()
        self._measured = set(self.store.query("SELECT measurement FROM raw.measurements")["measurement"].to_list())
        mine = f"WHERE sweep = '{plan.sweep}'"
        link = ", ".join(_LINK)
        self._done = set(
            self.store.query(
                f"SELECT {link}, artifact FROM trials {mine} AND phase = 'final' AND state = 'complete'"
            ).rows()
        )
        self._linked: set[tuple[object, ...]] = {
            *self.store.query(f"SELECT {link}, stage FROM raw.stage_links {mine}").rows(),
            *self.store.query(f"SELECT {link}, phase, target, measurement FROM raw.measurement_links {mine}").rows(),
        }

    def event(self, state: str) -> None:
        env = environment()
        suite = self.suite
        self.store.append_many(
            {
                "sweep_events": [
                    {
                        "sweep": self.plan.sweep,
                        "suite": suite.name,
                        "question": suite.question,
                        "state": state,
                        "yaml": suite.text,
                        "suite_json": json.dumps(suite.model_dump(mode="json")),
                        "plan_json": json.dumps(self.plan.to_json()),
                        "data": self.facts.source.label(),
                        "environment": env.key,
                        "at": env.now(),
                    }
                ],
                "environment_rows": [env.row()],
            }
        )

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for cell in self.plan.cells:
                    group.create_task(self._cell(cell.recipe, cell.model))
                for model in self.suite.models:
                    group.create_task(self._base(model))
        finally:
            # Shared work is shielded from the run that happened to start it; nothing shields it from the sweep's end.
            for task in [*self._stages.values(), *self._measures.values()]:
                task.cancel()

    async def _base(self, model: str) -> None:
        await self._final("base", model, 0, {}, self.suite.seeds[0])

    async def _cell(self, recipe: str, model: str) -> None:
        future = self._chosen[recipe, model]
        before: dict[str, Settings] = {}
        for owner in owners(self.suite, recipe) - {recipe}:
            used = await self._chosen[owner, model]
            if used is None:
                message = f"{recipe} was not run: {owner}, which it uses, has no successful trial"
                self._fail(recipe, model, 0, self.suite.seeds[0], Result(key="", state="failed", message=message))
                future.set_result(None)
                return
            before[owner] = used[1]
        if not self.suite.search_space(recipe):
            future.set_result((0, {}))
        else:
            best = await self._tune(recipe, model, before)
            if best is None:
                message = f"{recipe}: no trial succeeded, so it has no final figures"
                self._fail(recipe, model, 0, self.suite.seeds[0], Result(key="", state="failed", message=message))
                future.set_result(None)
                return
            future.set_result((best.number, best.settings))
        trial, settings = future.result() or (0, {})
        runs = {**before, recipe: settings}
        async with asyncio.TaskGroup() as group:
            for seed in self.suite.seeds:
                group.create_task(self._final(recipe, model, trial, runs, seed))

    async def _tune(self, recipe: str, model: str, before: Mapping[str, Settings]) -> Past | None:
        while True:
            past = history(self.store, self.suite, self.plan.sweep, recipe, model)
            self.display.cell(recipe, model, len(past), self.suite.budget.trials_per_cell)
            batch = next_batch(self.facts, self.plan.sweep, recipe, model, past)
            if not batch:
                return best_trial(past, list(self.suite.objectives.values()))
            async with asyncio.TaskGroup() as group:
                for number, settings in batch.items():
                    group.create_task(self._trial(recipe, model, number, {**before, recipe: settings}))

    async def _trial(self, recipe: str, model: str, trial: int, settings: Mapping[str, Settings]) -> None:
        suite, seed, started = self.suite, self.suite.seeds[0], time.monotonic()
        run = Run(recipe, model, seed, settings)
        own = dict(settings[recipe])
        self._trial_event(run, trial, "tune", "running", own)
        try:
            models = await self._train(run, trial)
            kinds = kinds_of([*suite.objectives, *suite.constraints])
            await self._measure(run, trial, "tune", models, ("tune",), kinds)
            self.store.ingest()
            values = objective_values(self.store, suite, self.plan.sweep, recipe, model, trial, seed)
        except _FailedRunError as error:
            self._failed_trial(run, trial, "tune", own, error, started)
        except MeasurementError as error:
            wrapped = _FailedRunError(Result(key="", state="failed", message=str(error)))
            self._failed_trial(run, trial, "tune", own, wrapped, started)
        else:
            seconds = time.monotonic() - started
            self._trial_event(run, trial, "tune", "complete", own, models=models, objectives=values, seconds=seconds)
            shown = ", ".join(f"{n} {v:.3f}" for n, v in values.items())
            self.display.note(f"{recipe} trial {trial}: {shown} with {_short(own)}")
        self.store.ingest()

    async def _final(self, recipe: str, model: str, trial: int, settings: Mapping[str, Settings], seed: int) -> None:
        run, started = Run(recipe, model, seed, settings), time.monotonic()
        own = dict(settings.get(recipe, {}))
        # What is complete keeps its row, with what it took; it is walked all the same, for what may be missing now.
        done = (recipe, model, trial, seed, chain_ends(self.facts, run, chain(self.facts, run)).artifact) in self._done
        if not done:
            self._trial_event(run, trial, "final", "running", own)
        try:
            models = await self._train(run, trial)
            # Latency and memory are the architecture's, which a seed does not change: one seed is profiled.
            kinds = _ALL_KINDS if seed == self.suite.seeds[0] else _ALL_KINDS - {"profile"}
            await self._measure(run, trial, "final", models, ("final",), kinds)
        except _FailedRunError as error:
            self._failed_trial(run, trial, "final", own, error, started)
        else:
            if not done:
                seconds = time.monotonic() - started
                self._trial_event(run, trial, "final", "complete", own, models=models, seconds=seconds)
                self.display.note(f"{recipe} seed {seed}: measured")
        self.store.ingest()

    def _failed_trial(
        self, run: Run, trial: int, phase: str, own: Settings, error: _FailedRunError, started: float
    ) -> None:
        self._fail(
            run.recipe, run.model, trial, run.seed, error.result, stage=error.stage, measurement=error.measurement
        )
        state = "infeasible" if error.result.state == "infeasible" else "failed"
        self._trial_event(run, trial, phase, state, own, seconds=time.monotonic() - started)

    async def _train(self, run: Run, trial: int) -> Models:
        specs = chain(self.facts, run)
        for position, spec in enumerate(specs):
            reused = await self._stage(spec, run, trial)
            link = (run.recipe, run.model, trial, run.seed, spec.key)
            if link not in self._linked:
                self._linked.add(link)
                row = {**_where(self.plan.sweep, run, trial), "position": position, "step": spec.method}
                self.store.append("stage_links", [{**row, "stage": spec.key, "reused": reused}])
        return chain_ends(self.facts, run, specs)

    async def _stage(self, spec: StageSpec, run: Run, trial: int) -> bool:
        """Whether the stage was there already. Runs sharing a stage wait for the same task."""
        first = spec.key not in self._stages
        if first:
            self._stages[spec.key] = asyncio.create_task(self._compute(spec, run, trial))
        return await asyncio.shield(self._stages[spec.key]) or not first

    async def _compute(self, spec: StageSpec, run: Run, trial: int) -> bool:
        if self.folders.has(spec.key):
            return True
        result = await self._execute(spec)
        if result.state != "complete":
            raise _FailedRunError(result, stage=spec.key)
        return False

    async def _execute(self, spec: StageSpec | MeasureSpec) -> Result:
        self.outcome.computed += 1
        self.display.waiting(spec.key, spec.label)
        result = await self.executor.run(spec, self._progress)
        self.display.finished(spec.key, result.state)
        return result

    def _progress(self, sign: Progress) -> None:
        self.display.progress(sign)

    async def _proxy(self, run: Run) -> str | None:
        """The reward model that scores this run's model: of the proxy recipe, same base model, same seed."""
        recipe = proxy_recipe(self.suite)
        if recipe is None or self.suite.measure.gold is None:
            return None
        settings: dict[str, Settings] = {}
        searched = {s.recipe for s in self._reward_steps(recipe) if s.spaces}
        for owner in owners(self.suite, recipe):
            if owner != recipe or searched:
                chosen = await self._chosen[owner, run.model]
                if chosen is None:
                    return None
                settings[owner] = chosen[1]
        proxy = Run(recipe, run.model, run.seed, settings)
        steps = self._reward_steps(recipe)
        specs = chain(self.facts, proxy, len(steps))
        for spec in specs:
            await self._stage(spec, proxy, 0)
        return specs[-1].key

    def _reward_steps(self, recipe: str) -> list[Any]:
        steps = self.suite.steps(recipe)
        last = max(i for i, s in enumerate(steps) if find_method(s.method).produces == "reward")
        return steps[: last + 1]

    async def _measure(
        self, run: Run, trial: int, phase: str, models: Models, halves: tuple[Half, ...], kinds: frozenset[ItemKind]
    ) -> None:
        reward = None
        if "gold" in kinds:
            # While tuning, a reward model that is itself being searched cannot judge its own search.
            searched = any(s.spaces for s in self._reward_steps(r)) if (r := proxy_recipe(self.suite)) else False
            reward = None if searched and phase == "tune" else await self._proxy(run)
        judge = await self._judge(run, models) if "judge" in kinds and self.suite.measure.judge is not None else None
        models = Models(models.policy, models.artifact, reward, models.base, judge)
        label = f"{run.recipe} seed {run.seed}: measuring"
        specs = measure_specs(self.facts, models, halves, kinds, label)
        links = [
            {**_where(self.plan.sweep, run, trial), "phase": phase, "artifact": models.artifact, "target": target.name}
            | {"measurement": item.key}
            for target, spec in specs
            for item in spec.items
            if (run.recipe, run.model, trial, run.seed, phase, target.name, item.key) not in self._linked
        ]
        self._linked |= {(*(r[c] for c in _LINK), r["phase"], r["target"], r["measurement"]) for r in links}
        self.store.append("measurement_links", links)
        outcomes = await asyncio.gather(
            *(self._measurement(spec, run, trial) for _, spec in specs), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _judge(self, run: Run, models: Models) -> str:
        name = self.suite.measure.judge.model if self.suite.measure.judge else "base"
        if name == "base":
            return models.base
        if name == "self":
            return models.policy
        if (name, run.model) not in self._chosen:
            return f"model:{name}"
        chosen = await self._chosen[name, run.model]
        if chosen is None:
            raise _FailedRunError(Result(key="", state="failed", message=f"the judge {name} has no successful trial"))
        settings = {o: c[1] for o in owners(self.suite, name) if (c := await self._chosen[o, run.model]) is not None}
        judge = Run(name, run.model, self.suite.seeds[0], settings)
        specs = chain(self.facts, judge)
        for spec in specs:
            await self._stage(spec, judge, chosen[0])
        return chain_ends(self.facts, judge, specs).policy

    async def _measurement(self, spec: MeasureSpec, run: Run, trial: int) -> None:
        missing = tuple(i for i in spec.items if i.key not in self._measured and i.key not in self._measures)
        shared = [self._measures[i.key] for i in spec.items if i.key in self._measures]
        if missing:
            spec = spec.model_copy(update={"items": missing})
            task = asyncio.create_task(self._make(spec, run, trial))
            self._measures |= {i.key: task for i in missing}
            shared.append(task)
        for task in dict.fromkeys(shared):
            await asyncio.shield(task)

    async def _make(self, spec: MeasureSpec, run: Run, trial: int) -> None:
        result = await self._execute(spec)
        if result.state != "complete":
            raise _FailedRunError(result, measurement=spec.items[0].key)
        self._measured |= {i.key for i in spec.items}

    def _trial_event(
        self,
        run: Run,
        trial: int,
        phase: str,
        state: str,
        settings: Settings,
        *,
        models: Models | None = None,
        objectives: Mapping[str, float] | None = None,
        seconds: float | None = None,
    ) -> None:
        row = {
            **_where(self.plan.sweep, run, trial),
            "phase": phase,
            "state": state,
            "settings": json.dumps(dict(settings), sort_keys=True),
            "objectives": json.dumps(dict(objectives)) if objectives is not None else None,
            "artifact": models.artifact if models else None,
            "reward_artifact": models.reward if models else None,
            "seconds": seconds,
            "at": environment().now(),
        }
        self.store.append("trial_events", [row])

    def _fail(
        self,
        recipe: str,
        model: str,
        trial: int,
        seed: int,
        result: Result,
        *,
        stage: str | None = None,
        measurement: str | None = None,
    ) -> None:
        row = {
            **_where(self.plan.sweep, Run(recipe, model, seed, {}), trial),
            "stage": stage,
            "measurement": measurement,
            "kind": result.state if result.state in ("infeasible", "crash") else "failed",
            "message": result.message,
            "traceback": result.traceback,
            "at": environment().now(),
        }
        self.store.append("failure_events", [row])
        if result.state != "infeasible":
            self.outcome.failures.append(f"{recipe} trial {trial} seed {seed}: {result.message}")
        self.display.note(f"{recipe} trial {trial} seed {seed}: {result.state}: {result.message}")


def _where(sweep: str, run: Run, trial: int) -> dict[str, object]:
    return {"sweep": sweep, "recipe": run.recipe, "model": run.model, "trial": trial, "seed": run.seed}


def _short(settings: Settings) -> str:
    parts = [f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items()]
    return ", ".join(parts) or "no settings to tune"
