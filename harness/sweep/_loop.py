"""The loop: suggest, execute, measure, record. Resuming a sweep is running it again.

Everything a sweep knows is in the store and the artifacts: what is there already is used, whichever sweep made it.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness._disk import storage_error
from harness.data import Half
from harness.errors import MeasurementError, StorageError
from harness.execute import Executor, StageSpec
from harness.folders import Folders
from harness.history import history, next_batch, owners, past_trial
from harness.measurements import Answered, ItemKind, final_kinds, measure_specs, pair_specs, step_specs
from harness.objectives import kinds_of, values_of
from harness.plan import Plan
from harness.progress import Display
from harness.resolve import Models, Run, Settings, chain, chain_ends
from harness.search import Past, best_trial
from harness.spending import bound_before, bounded
from harness.store import Store
from harness.sweep._graders import Graders
from harness.sweep._records import Records, SweepState, TrialState
from harness.sweep._rungs import Rungs
from harness.sweep._work import FailedRunError, Work

__all__ = ["Outcome", "run_sweep"]


@dataclass(frozen=True)
class Outcome:
    """How a sweep ended."""

    sweep: str
    failures: list[str]
    """Runs without a result that the comparison needs, with the reason, also those of earlier times; each a line."""
    computed: int
    """Stages and measurements that were computed now, not found."""
    not_done: list[str] = field(default_factory=list)
    """Trials that a bound of the budget left out, a line for each cell."""


async def run_sweep(plan: Plan, results: Path, executor: Executor, display: Display) -> Outcome:
    """Run what is missing of a sweep, to its end.

    A failed trial is a row with its reason and does not stop the others.

    Raises:
        StorageError: the disk refuses; what was finished before is kept.
    """
    store = Store(results)
    records = Records(store, plan)
    work = Work(executor, Folders(results), display, records.measured, records.stages)
    sweep = _Sweep(plan, store, records, work, display)
    records.sweep("running")
    state: SweepState = "interrupted"
    try:
        await sweep.run()
        store.ingest()
        sweep.failures += records.failures()
        state = "failed" if sweep.failures else "complete"
    except BaseException as error:
        refused = storage_error(error, results)
        # A full disk takes no last word either: then the sweep stays `running` in the store, as after a kill.
        with contextlib.suppress(StorageError) if refused else contextlib.nullcontext():
            records.sweep(state)
            store.ingest()
        if refused:
            raise refused from error
        raise
    records.sweep(state, sweep.not_done)
    store.ingest()
    return Outcome(plan.sweep, sweep.failures, work.computed, sweep.not_done)


class _Sweep:
    def __init__(self, plan: Plan, store: Store, records: Records, work: Work, display: Display) -> None:
        self.plan, self.facts, self.suite = plan, plan.facts, plan.suite
        self.store, self.records, self.work, self.display = store, records, work, display
        self.failures: list[str] = []
        self.not_done: list[str] = []
        loop = asyncio.get_running_loop()
        self._chosen: dict[tuple[str, str], asyncio.Future[tuple[int, Settings] | None]] = {
            (cell.recipe, cell.model): loop.create_future() for cell in plan.cells
        }
        self.rungs = Rungs(plan.facts, store, plan.sweep, display.note)
        self._graders = Graders(plan.facts, self._chosen, work)
        self._answered: dict[str, list[Answered]] = {model: [] for model in self.suite.models}

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for cell in self.plan.cells:
                    group.create_task(self._cell(cell.recipe, cell.model))
                for model in self.suite.models:
                    group.create_task(self._base(Run("base", model, self.suite.seeds[0], {})))
            for model in self.suite.models:
                await self._pairs(Run("base", model, self.suite.seeds[0], {}))
        finally:
            self.work.cancel()

    async def _base(self, run: Run) -> None:
        async with asyncio.TaskGroup() as group:
            again = group.create_task(self._again(run, 0)) if self.suite.measure.noise_floor else None
            if not await self._final(run, 0) and again is not None:
                again.cancel()

    async def _again(self, run: Run, trial: int) -> None:
        """Make the final measurements of a run's quality a second time, for the noise floor."""
        label = f"{run.recipe} seed {run.seed}: measuring again"
        kinds = final_kinds(self.suite, run.seed) - {"profile", "judge_check"}
        try:
            models = await self._graded(run, "final", chain_ends(self.facts, run, chain(self.facts, run)), kinds)
            first, second = (
                measure_specs(self.facts, run.recipe, models, ("final",), kinds, label, repeat=repeat)
                for repeat in (0, 1)
            )
            for (target, again), (_, of) in zip(second, first, strict=True):
                await self.work.measure(again)
                self.records.repeat(run, trial, models.artifact, target, again, of)
        except FailedRunError as error:
            # The run keeps its figures: what is missing is how much they would differ.
            self._fail(run, trial, error)
            self.failures.append(f"{run.recipe} on {run.model}: the noise floor is not known: {error.result.message}")

    async def _pairs(self, base: Run) -> None:
        """Compare the answers of the final runs from one base model in pairs."""
        judging = self.suite.measure.judge
        if judging is None or judging.pairwise is None:
            return
        try:
            judges = await self._graders.judges(base, chain_ends(self.facts, base, []))
            # Two models are under test, and neither is the other's judge.
            others = [judge for judge in judges if not judge.own]
            specs = pair_specs(self.facts, base.model, self._answered[base.model], others)
            # The answers are read from the store.
            self.store.ingest()
            outcomes = await asyncio.gather(*(self.work.measure(spec) for spec in specs), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
        except FailedRunError as error:
            # The runs keep their figures: what is missing is how they compare in pairs.
            self._fail(base, 0, error)
            self.failures.append(f"comparisons in pairs on {base.model}: {error.result.message}")

    async def _cell(self, recipe: str, model: str) -> None:
        before: dict[str, Settings] = {}
        for owner in owners(self.suite, recipe) - {recipe}:
            used = await self._chosen[owner, model]
            if used is None:
                self._give_up(recipe, model, f"{recipe} was not run: {owner}, which it uses, has no successful trial")
                return
            before[owner] = used[1]
        trial = 0
        settings: Settings = {}
        if self.suite.search_space(recipe):
            best = await self._tune(recipe, model, before)
            if best is None:
                self._give_up(recipe, model, f"{recipe}: no trial succeeded, so it has no final figures")
                return
            trial, settings = best.number, best.settings
        self._chosen[recipe, model].set_result((trial, settings))
        async with asyncio.TaskGroup() as group:
            for seed in self.suite.seeds:
                group.create_task(self._final(Run(recipe, model, seed, {**before, recipe: settings}), trial))

    def _give_up(self, recipe: str, model: str, reason: str) -> None:
        self._fail(Run(recipe, model, self.suite.seeds[0], {}), 0, FailedRunError.because(reason))
        self.failures.append(f"{recipe} on {model}: {reason}")
        self._chosen[recipe, model].set_result(None)

    async def _tune(self, recipe: str, model: str, before: Mapping[str, Settings]) -> Past | None:
        seed = self.suite.seeds[0]
        past: list[Past] | None = None
        while True:
            if past is None:
                with self.store.fresh():
                    past = history(self.store, self.suite, self.plan.sweep, recipe, model)
            done = sum(p.state != "running" for p in past)
            self.display.cell(recipe, model, done, self.suite.budget.trials_per_cell)
            batch = next_batch(self.facts, recipe, model, past)
            if not batch or self._bound(recipe, model, min(batch)):
                return best_trial(past, list(self.suite.objectives.values()))
            async with asyncio.TaskGroup() as group:
                trials = {
                    number: group.create_task(
                        self._trial(Run(recipe, model, seed, {**before, recipe: settings}), number)
                    )
                    for number, settings in batch.items()
                }
            past = self._with(past, batch, {number: trial.result() for number, trial in trials.items()})

    def _with(
        self, past: Sequence[Past], batch: Mapping[int, Settings], reached: Mapping[int, Mapping[str, float] | None]
    ) -> list[Past] | None:
        """What `history` would say after this batch; None, for it to be asked, where a trial of it has no result.

        To open the database for that takes longer than all else that a trial costs here.
        """
        if self.suite.early_stopping is not None or bounded(self.suite.budget):
            # Rivals and costs are looked up in the database, to which the last trials come with the next ingest.
            return None
        found = {p.number: p for p in past}
        for number, values in reached.items():
            if values is None:
                return None
            # As the store gives them back: the search must not depend on whether it was resumed.
            settings = json.loads(json.dumps(batch[number], sort_keys=True))
            found[number] = past_trial(self.suite, number, "complete", settings, values)
        return [found[number] for number in sorted(found)]

    def _bound(self, recipe: str, model: str, number: int) -> bool:
        """Whether the trials before the batch of this one have reached a bound of the cell's budget."""
        reached = bound_before(self.store, self.suite, self.plan.sweep, recipe, model, number)
        if reached is None:
            return False
        budget = self.suite.budget
        missing = budget.trials_per_cell - budget.batch_start(number)
        self.not_done.append(f"{recipe} on {model}: {missing} of {budget.trials_per_cell} trials not run: {reached}")
        self.display.note(self.not_done[-1])
        return True

    async def _trial(self, run: Run, trial: int) -> dict[str, float] | None:
        """Make a tuning trial; the values of its objectives and constraints, None where it has ended without."""
        suite, started = self.suite, time.monotonic()
        self.records.trial(run, trial, "tune", "running")
        try:
            specs = chain(self.facts, run)
            models = chain_ends(self.facts, run, specs)
            await self._train(run, trial, self.rungs.of_training(run, trial, specs))
            kinds = kinds_of([*suite.objectives, *suite.constraints])
            keys, _ = await self._measure(run, trial, "tune", models, kinds)
            with self.store.newest(keys):
                values = values_of(self.store, suite, run.recipe, keys)
        except FailedRunError as error:
            self._failed_trial(run, trial, "tune", error, started)
            return None
        except MeasurementError as error:
            self._failed_trial(run, trial, "tune", FailedRunError.because(str(error)), started)
            return None
        seconds = time.monotonic() - started
        self.records.trial(run, trial, "tune", "complete", models=models, objectives=values, seconds=seconds)
        shown = ", ".join(f"{n} {v:.3f}" for n, v in values.items())
        self.display.note(f"{run.recipe} trial {trial}: {shown} with {_short(run.settings[run.recipe])}")
        return values

    async def _final(self, run: Run, trial: int) -> bool:
        """Make a final run; whether it has a result."""
        if (kept := self.records.without_result(run, trial)) is not None:
            self.display.note(f"{run.recipe} seed {run.seed}: {kept} earlier and not run again (harness retry runs it)")
            return False
        started = time.monotonic()
        specs = chain(self.facts, run)
        models = chain_ends(self.facts, run, specs)
        # What is complete keeps its row, with what it took; it is walked all the same, for what may be missing now.
        done = self.records.is_complete(run, trial, models.artifact)
        if not done:
            self.records.trial(run, trial, "final", "running")
        try:
            await self._train(run, trial, specs)
            _, judged = await self._measure(run, trial, "final", models, final_kinds(self.suite, run.seed))
        except FailedRunError as error:
            self._failed_trial(run, trial, "final", error, started)
            return False
        if self.suite.measure.judge is not None:
            self._answered[run.model].append(Answered(run.recipe, run.seed, models.artifact, judged[0]))
        if not done:
            seconds = time.monotonic() - started
            self.records.trial(run, trial, "final", "complete", models=models, seconds=seconds)
            self.display.note(f"{run.recipe} seed {run.seed}: measured")
        await self._steps(run, trial)
        return True

    async def _steps(self, run: Run, trial: int) -> None:
        """Measure a final run on the domains after each of its steps."""
        steps = step_specs(self.facts, run)
        outcomes = await asyncio.gather(*(self.work.measure(at.spec) for at in steps), return_exceptions=True)
        for at, outcome in zip(steps, outcomes, strict=True):
            if outcome is None:
                self.records.at_step(run, trial, at)
            elif isinstance(outcome, FailedRunError):
                # The run keeps its figures: what is missing is what it knew on the way.
                self._fail(run, trial, outcome)
                self.failures.append(f"{run.recipe} after {at.step}: forgetting is not known: {outcome.result.message}")
            else:
                raise outcome

    async def _train(self, run: Run, trial: int, specs: Sequence[StageSpec]) -> None:
        for position, spec in enumerate(specs):
            reused = await self.work.stage(spec)
            self.records.stage(run, trial, position, spec, reused=reused)

    async def _graded(self, run: Run, phase: Half, models: Models, kinds: frozenset[ItemKind]) -> Models:
        """The models of a run with those that grade it, made if need be."""
        reward = await self._graders.reward(run, phase) if "gold" in kinds else None
        judges = await self._graders.judges(run, models) if kinds & {"judge", "judge_check"} else ()
        profiled = "profile" in kinds and self.suite.measure.profile is not None
        shape = self.work.shape(models.policy) if profiled else None
        return replace(models, reward=reward, judges=judges, shape=shape)

    async def _measure(
        self, run: Run, trial: int, phase: Half, models: Models, kinds: frozenset[ItemKind]
    ) -> tuple[list[str], list[str]]:
        """Measure a run's models; the keys of its measurements, and of those by judges, the quality target's first."""
        label = f"{run.recipe} seed {run.seed}: measuring"
        models = await self._graded(run, phase, models, kinds)
        specs = measure_specs(self.facts, run.recipe, models, (phase,), kinds, label)
        if phase == "tune":
            specs = [(target, self.rungs.of_documents(run, trial, spec)) for target, spec in specs]
        outcomes = await asyncio.gather(*(self.work.measure(spec) for _, spec in specs), return_exceptions=True)
        # What a trial was stopped in is not its own, not even where another sweep has all of it.
        ended = [one for one, outcome in zip(specs, outcomes, strict=True) if not isinstance(outcome, BaseException)]
        self.records.measurements(run, trial, phase, models.artifact, ended)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        items = [item for _, spec in ended for item in spec.items]
        return [item.key for item in items], [item.key for item in items if item.kind == "judge"]

    def _failed_trial(self, run: Run, trial: int, phase: Half, error: FailedRunError, started: float) -> None:
        self._fail(run, trial, error)
        ended = error.result.state
        state: TrialState = ended if ended in ("infeasible", "pruned") else "failed"
        seconds = time.monotonic() - started
        self.records.trial(run, trial, phase, state, seconds=seconds, reached=error.result.reached)

    def _fail(self, run: Run, trial: int, error: FailedRunError) -> None:
        self.records.failure(run, trial, error)
        what = f"{run.recipe} trial {trial} seed {run.seed}"
        self.display.note(f"{what}: {error.result.state}: {error.result.message}")


def _short(settings: Settings) -> str:
    parts = [f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in settings.items()]
    return ", ".join(parts) or "no settings to tune"
