"""What a sweep will find and what it will compute, as far as that can be known before it runs."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness._replay import Cell, Replay
from harness.data import Half
from harness.execute import StageSpec
from harness.folders import Folders
from harness.history import ended_finals
from harness.measurements import ItemKind, final_kinds, step_specs
from harness.objectives import kinds_of
from harness.proxy import proxy_of
from harness.resolve import Facts, Run, chain
from harness.store import Store
from harness.suite import Suite

__all__ = ["CellOutlook", "Outlook", "look_ahead", "orphaned"]


@dataclass
class CellOutlook:
    """Stages of one cell. What two cells share counts for the first of them, in the order in which they can run."""

    new: int = 0
    cached: int = 0
    undecided: int = 0
    """Stages without settings yet, at most: those of trials to be suggested, and of what is chosen then."""


@dataclass
class Outlook:
    """What is known of the sweep to come."""

    cells: dict[Cell, CellOutlook] = field(default_factory=dict)
    new: list[StageSpec] = field(default_factory=list)
    """Stages that will be computed."""
    cached: set[str] = field(default_factory=set)
    """Keys of the complete artifacts that the sweep goes by."""
    measurements: set[str] = field(default_factory=set)
    """Keys of the measurements that the sweep asks for, as far as they are decided."""
    repeats: set[str] = field(default_factory=set)
    """Of those, the second ones of the base models, for the noise floor."""
    measured: int = 0
    """Of all, in the store already."""

    @property
    def undecided(self) -> int:
        """Stages without settings yet, over all cells; at most."""
        return sum(cell.undecided for cell in self.cells.values())


def look_ahead(facts: Facts, results: Path) -> Outlook:
    """Replay the sweep as far as the store reaches. Ingest before."""
    return _Count(facts, Replay(facts, results)).outlook()


def orphaned(store: Store, suite: Suite, outlook: Outlook) -> list[Path]:
    """Complete artifacts of earlier sweeps of this suite's name that neither this one nor another suite goes by."""
    rows = store.query(
        "WITH links AS (SELECT DISTINCT l.stage, l.sweep, s.suite FROM raw.stage_links l JOIN suites s USING (sweep)) "
        "SELECT stage FROM links GROUP BY stage HAVING bool_and(suite = ? AND sweep <> ?) ORDER BY stage",
        [suite.name, suite.sweep_id()],
    )
    folders = Folders(store.results)
    needed = outlook.cached | {spec.key for spec in outlook.new}
    return [folders.artifacts / key for key in rows["stage"] if key not in needed and folders.has(key)]


class _Count:
    def __init__(self, facts: Facts, replay: Replay) -> None:
        self._facts, self._suite, self._replay = facts, facts.suite, replay
        self._found = Outlook()
        self._new: set[str] = set()
        self._kept = ended_finals(replay.store, replay.sweep) if replay.store.ready() else {}

    def outlook(self) -> Outlook:
        found = self._found
        with self._replay.store.reading():
            for cell in self._replay.cells:
                found.cells[cell] = self._stages(cell)
        for model in self._suite.models:
            base = Run("base", model, self._suite.seeds[0], {})
            self._ask(base, "final", final_kinds(self._suite, base.seed))
            if self._suite.measure.noise_floor:
                kinds = final_kinds(self._suite, base.seed) - {"profile", "judge_check"}
                self._ask(base, "final", kinds, repeat=1)
            found.measurements |= self._replay.pairs(model)
        found.measured = len(found.measurements & self._replay.measured)
        return found

    def _stages(self, cell: Cell) -> CellOutlook:
        """Count the stages of a cell, and put down those that no cell before it has."""
        suite, recipe, state = self._suite, cell[0], self._replay.cells[cell]
        cached, new = len(self._found.cached), len(self._found.new)
        self._found.cached |= self._finished(cell) - self._new
        for spec in self._walked(cell):
            if self._replay.has(spec.key):
                self._found.cached.add(spec.key)
            elif spec.key not in self._new:
                self._new.add(spec.key)
                self._found.new.append(spec)
        counts = CellOutlook(new=len(self._found.new) - new, cached=len(self._found.cached) - cached)
        if not state.over:
            own = [step for step in suite.steps(recipe) if step.recipe == recipe]
            fixed = next((i for i, step in enumerate(own) if step.spaces), len(own))
            searched, seeds = len(own) - fixed, len(suite.seeds)
            trials = suite.budget.trials_per_cell if searched else 0
            known = ({p.number for p in state.past} | set(state.batch)) & set(range(trials))
            # The chosen trial is one of the tuning runs: its first seed is there already.
            counts.undecided = searched * (trials - len(known) + seeds - 1)
            if self._replay.before(cell) is None:
                counts.undecided += fixed * seeds
        return counts

    def _walked(self, cell: Cell) -> Iterator[StageSpec]:
        """The stages that the sweep will go through, there or not; what it measures is put down."""
        suite, (recipe, model), state = self._suite, cell, self._replay.cells[cell]
        before = self._replay.before(cell)
        if before is None:
            return
        first = suite.seeds[0]
        tuned = kinds_of([*suite.objectives, *suite.constraints])
        trials = {p.number: p.settings for p in state.past if p.number in state.replayed} | state.batch
        for settings in trials.values():
            run = Run(recipe, model, first, {**before, recipe: settings})
            self._ask(run, "tune", tuned)
            yield from chain(self._facts, run)
        if state.chosen is not None:
            number, settings = state.chosen
            for seed in suite.seeds:
                run = Run(recipe, model, seed, {**before, recipe: settings})
                # A final run without a result is kept until it is retried.
                if (recipe, model, number, seed) not in self._kept:
                    self._ask(run, "final", final_kinds(suite, seed))
                    self._found.measurements |= {i.key for at in step_specs(self._facts, run) for i in at.spec.items}
                    yield from chain(self._facts, run)
        elif not state.over or ((proxy := proxy_of(suite)) is not None and proxy.recipe == recipe):
            # What stands before the first searched step is decided, for every seed.
            steps = suite.steps(recipe)
            fixed = next(i for i, step in enumerate(steps) if step.recipe == recipe and step.spaces)
            for seed in suite.seeds:
                yield from chain(self._facts, Run(recipe, model, seed, before), fixed)

    def _ask(self, run: Run, phase: Half, kinds: frozenset[ItemKind], *, repeat: int = 0) -> None:
        for kind in kinds:
            keys = self._replay.measurements(run, phase, frozenset({kind}), repeat=repeat) or set()
            self._found.measurements |= keys
            self._found.repeats |= keys if repeat else set()

    def _finished(self, cell: Cell) -> set[str]:
        """Artifacts of the cell's finished trials: the sweep does not go through them again, whatever is missing."""
        state = self._replay.cells[cell]
        if not any(p.state != "running" and p.number not in state.replayed for p in state.past):
            return set()
        rows = self._replay.store.query(
            "SELECT DISTINCT stage FROM raw.stage_links WHERE sweep = ? AND recipe = ? AND model = ? AND seed = ?",
            [self._replay.sweep, *cell, self._suite.seeds[0]],
        )
        return {key for key in rows["stage"] if self._replay.has(key)}
