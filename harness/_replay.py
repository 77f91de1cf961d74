"""A sweep replayed without running anything: its trials and choices, as far as the store holds their measurements.

A suggested trial whose measurements are all in the store, whichever sweep made them, has the values that it will have,
so the next suggestion is known too, and so on until the first trial that something must be computed for. Settings, keys
and values are those of the sweep itself, by the same code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness._shapes import folder_shape
from harness.data import Half
from harness.errors import MeasurementError
from harness.execute import JudgeSpec
from harness.folders import Folders
from harness.history import history, next_batch, owners, past_trial
from harness.measurements import Answered, ItemKind, measure_specs, pair_specs
from harness.models import resolve_model
from harness.objectives import kinds_of, values_of
from harness.proxy import Proxy, given_judge, judge_of_recipe, proxy_of
from harness.resolve import Facts, Models, Run, Settings, chain, chain_ends
from harness.search import Past, best_trial
from harness.spending import bound_before
from harness.store import Store
from harness.suite import Endpoint, Speaker

__all__ = ["Cell", "CellState", "Replay"]

_FARTHEST = 200
"""Trials of which the replay looks for what they will find: each costs about 20 ms, and a plan is to be quick."""

Cell = tuple[str, str]
"""Recipe, base model."""


@dataclass
class CellState:
    """How far the replay of a cell has come."""

    past: list[Past] = field(default_factory=list)
    batch: dict[int, Settings] = field(default_factory=dict)
    """Trials that are suggested, but not known to be in the store."""
    begun: bool = False
    over: bool = False
    """Its tuning is decided to its end; `chosen` is None where no trial succeeded."""
    chosen: tuple[int, Settings] | None = None
    replayed: set[int] = field(default_factory=set)
    """Trials that this sweep has no result of, and will find in the store."""


class Replay:
    """One sweep, replayed when this is made. Ingest before."""

    def __init__(self, facts: Facts, results: Path) -> None:
        self._facts, self._suite = facts, facts.suite
        self.store, self._folders = Store(results), Folders(results)
        self.sweep = facts.suite.sweep_id()
        self._left = _FARTHEST
        self.cells: dict[Cell, CellState] = {
            (recipe, model): CellState()
            for model in self._suite.models
            for recipe in self._suite.recipe_order()
            if self._suite.targets_of(recipe)
        }
        self.measured: set[str] = set()
        if self.store.ready():
            self.measured = set(self.store.query("SELECT measurement FROM raw.measurements")["measurement"])
        artifacts = self._folders.artifacts
        self._there = {p.name for p in artifacts.iterdir()} if artifacts.is_dir() else set()
        self._complete: dict[str, bool] = {}

        # A cell's measurements may wait for another cell that stands later in the suite: the reward model's.
        with self.store.reading():
            while any(self._advance(cell) for cell in self.cells):
                pass

    def before(self, cell: Cell) -> dict[str, Settings] | None:
        """The settings of the recipes that a cell needs; None where they are not known, or will never be."""
        settings: dict[str, Settings] = {}
        for owner in owners(self._suite, cell[0]) - {cell[0]}:
            chosen = self.cells[owner, cell[1]].chosen
            if chosen is None:
                return None
            settings[owner] = chosen[1]
        return settings

    def _advance(self, cell: Cell) -> bool:
        """Replay what can be replayed of a cell now; whether anything has come of it."""
        state = self.cells[cell]
        if state.over:
            return False
        before = self.before(cell)
        if before is None:
            needs = (self.cells[owner, cell[1]] for owner in owners(self._suite, cell[0]) - {cell[0]})
            # Nothing will come of a cell that needs one in which no trial has succeeded.
            state.over = any(need.over and need.chosen is None for need in needs)
            return state.over
        if not self._suite.search_space(cell[0]):
            state.over, state.chosen = True, (0, {})
            return True
        first, state.begun = not state.begun, True
        if first:
            state.past = history(self.store, self._suite, self.sweep, *cell)
        came = len(state.replayed)
        state.batch = self._tune(cell, state, before)
        if not state.batch:
            best = best_trial(state.past, list(self._suite.objectives.values()))
            state.over, state.chosen = True, None if best is None else (best.number, best.settings)
        return first or state.over or len(state.replayed) > came

    def _tune(self, cell: Cell, state: CellState, before: Mapping[str, Settings]) -> dict[int, Settings]:
        """Replay trials until one is not in the store; what is left of its batch, empty when the budget is spent."""
        while batch := next_batch(self._facts, *cell, state.past):
            # As the sweep decides it; of what is only replayed it has no cost yet.
            if not state.replayed and bound_before(self.store, self._suite, self.sweep, *cell, min(batch)):
                return {}
            done = {n: past for n, s in batch.items() if (past := self._find(cell, n, s, before)) is not None}
            state.replayed |= set(done)
            state.past = sorted(
                [*(p for p in state.past if p.number not in done), *done.values()], key=lambda past: past.number
            )
            if len(done) < len(batch):
                return {number: settings for number, settings in batch.items() if number not in done}
        return {}

    def _find(self, cell: Cell, number: int, settings: Settings, before: Mapping[str, Settings]) -> Past | None:
        """The trial as the sweep will find it, if all its measurements are in the store."""
        suite = self._suite
        # A trial that another sweep ran to its end may be hopeless beside the rivals it has in this one.
        if not self.measured or suite.early_stopping is not None or not self._left:
            return None
        run = Run(cell[0], cell[1], suite.seeds[0], {**before, cell[0]: settings})
        keys = self.measurements(run, "tune", kinds_of([*suite.objectives, *suite.constraints]))
        if not keys or not keys <= self.measured:
            return None
        self._left -= 1
        try:
            values = values_of(self.store, suite, cell[0], keys)
        except MeasurementError:
            return None
        return past_trial(suite, number, "complete", settings, values)

    def measurements(self, run: Run, phase: Half, kinds: frozenset[ItemKind], *, repeat: int = 0) -> set[str] | None:
        """Keys of the measurements of a run's model, or of a repeat; None where they hang on what is not known yet."""
        suite = self._suite
        models = chain_ends(self._facts, run, chain(self._facts, run))
        reward = shape = None
        judges: tuple[JudgeSpec, ...] = ()
        if "gold" in kinds and (proxy := proxy_of(suite)) is not None:
            known, reward = self._reward(proxy, run, phase)
            if not known:
                return None
        if kinds & {"judge", "judge_check"}:
            found = self._judges(run, models)
            if found is None:
                return None
            judges = found
        if "profile" in kinds and suite.measure.profile is not None:
            shape = self._shape(models.policy)
            if shape is None:
                return None
        specs = measure_specs(
            self._facts,
            run.recipe,
            replace(models, reward=reward, judges=judges, shape=shape),
            (phase,),
            kinds,
            run.recipe,
            repeat=repeat,
        )
        return {item.key for _, spec in specs for item in spec.items}

    def _reward(self, proxy: Proxy, run: Run, phase: Half) -> tuple[bool, str | None]:
        """Whether it is known which reward model grades a run, and that model's key."""
        if not proxy.grades(phase):
            return True, None
        settings: dict[str, Settings] = {}
        for owner in proxy.owners:
            cell = self.cells.get((owner, run.model))
            if cell is not None and not cell.over:
                return False, None
            if cell is None or cell.chosen is None:
                return True, None
            settings[owner] = cell.chosen[1]
        return True, proxy.stages(self._facts, run, settings)[-1].key

    def pairs(self, model: str) -> set[str]:
        """Keys of the comparisons in pairs from one base model; none while it is not known which runs they are of."""
        suite, sides = self._suite, []
        base = Run("base", model, suite.seeds[0], {})
        runs = [base]
        for (recipe, of), state in self.cells.items():
            before = self.before((recipe, of))
            if of != model or (state.over and state.chosen is None):
                continue
            if state.chosen is None or before is None:
                return set()
            runs += [Run(recipe, model, seed, {**before, recipe: state.chosen[1]}) for seed in suite.seeds]
        for run in runs:
            keys = self.measurements(run, "final", frozenset({"judge"}))
            if not keys:
                return set()
            artifact = chain_ends(self._facts, run, chain(self._facts, run)).artifact
            sides += [Answered(run.recipe, run.seed, artifact, key) for key in keys]
        judges = self._judges(base, chain_ends(self._facts, base, []))
        specs = pair_specs(self._facts, model, sides, [j for j in judges or () if not j.own])
        return {item.key for spec in specs for item in spec.items}

    def _judges(self, run: Run, models: Models) -> tuple[JudgeSpec, ...] | None:
        """Who judges a run's model; None where that is not known yet."""
        judging = self._suite.measure.judge
        found = []
        for name in judging.judges if judging else ():
            judge = given_judge(self._facts, name, models)
            if judge is None and not isinstance(name, Endpoint):
                judge = self._of_recipe(name, run)
            if judge is None:
                return None
            found.append(judge)
        return tuple(found)

    def _of_recipe(self, named: str | Speaker, run: Run) -> JudgeSpec | None:
        name = named if isinstance(named, str) else named.local
        settings: dict[str, Settings] = {}
        for owner in owners(self._suite, name):
            cell = self.cells.get((owner, run.model))
            if cell is None or cell.chosen is None:
                return None
            settings[owner] = cell.chosen[1]
        return judge_of_recipe(self._facts, named, run.model, settings)[1]

    def _shape(self, reference: str) -> str | None:
        if reference.startswith("model:"):
            return folder_shape(resolve_model(reference.removeprefix("model:")))
        # Not through Folders.model, which reads every byte of it.
        return folder_shape(self._folders.artifacts / reference) if self.has(reference) else None

    def has(self, key: str) -> bool:
        """Whether the artifact is complete."""
        if key not in self._complete:
            self._complete[key] = key in self._there and self._folders.has(key)
        return self._complete[key]
