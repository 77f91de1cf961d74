"""What a sweep writes into the store: its own events, those of its trials, what each run used, why one failed."""

import json
from collections.abc import Mapping, Sequence
from typing import Literal

from harness.data import Half
from harness.execute import MeasureSpec, StageSpec
from harness.history import ended_finals
from harness.measurements import AtStep
from harness.plan import Plan
from harness.provenance import environment
from harness.resolve import Models, Run
from harness.store import Store
from harness.sweep._work import FailedRunError
from harness.targets import Target

__all__ = ["Records", "SweepState", "TrialState"]

SweepState = Literal["running", "complete", "failed", "interrupted"]
TrialState = Literal["running", "complete", "failed", "infeasible", "pruned"]

_RUN = ("recipe", "model", "trial", "seed")


class Records:
    """The rows of one sweep. Those that are there when it begins are read once; a link stands once."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self._store, self._plan = store, plan
        store.ingest()
        run, mine = ", ".join(_RUN), f"WHERE sweep = '{plan.sweep}'"
        self.measured: frozenset[str] = frozenset(
            store.query("SELECT measurement FROM raw.measurements")["measurement"].to_list()
        )
        """Keys of all measurements in the store, whichever sweep made them."""
        self.stages: frozenset[str] = frozenset(store.query("SELECT stage FROM raw.stages")["stage"].to_list())
        """Keys of all computed stages in the store, whichever sweep made them."""
        self._complete = set(
            store.query(f"SELECT {run}, artifact FROM trials {mine} AND phase = 'final' AND state = 'complete'").rows()
        )
        self._ended = ended_finals(store, plan.sweep)
        self._told = set(store.query(f"SELECT {run}, stage, measurement, message FROM failures {mine}").rows())
        self._linked: set[tuple[object, ...]] = {
            *store.query(f"SELECT {run}, stage FROM raw.stage_links {mine}").rows(),
            *store.query(f"SELECT {run}, phase, target, measurement FROM raw.measurement_links {mine}").rows(),
            *store.query(f"SELECT {run}, target, measurement, repeats FROM raw.repeat_links {mine}").rows(),
            *store.query(f"SELECT {run}, 'step', position, measurement FROM raw.step_links {mine}").rows(),
        }

    def sweep(self, state: SweepState, not_done: Sequence[str] = ()) -> None:
        """The sweep has begun or ended; `not_done` is what a bound of the budget left out."""
        env, suite = environment(), self._plan.suite
        event = {
            "sweep": self._plan.sweep,
            "suite": suite.name,
            "question": suite.question,
            "state": state,
            "yaml": suite.text,
            "suite_json": json.dumps(suite.model_dump(mode="json")),
            "plan_json": json.dumps({**self._plan.to_json(), "not_done": list(not_done)}),
            "data": self._plan.facts.source.label(),
            "environment": env.key,
            "at": env.now(),
        }
        self._store.append_many({"sweep_events": [event], "environment_rows": [env.row()]})

    def is_complete(self, run: Run, trial: int, artifact: str) -> bool:
        """Whether the final run with this model was complete when the sweep began."""
        return (run.recipe, run.model, trial, run.seed, artifact) in self._complete

    def without_result(self, run: Run, trial: int) -> str | None:
        """The state in which the final run had ended when the sweep began, where that was not complete."""
        return self._ended.get((run.recipe, run.model, trial, run.seed))

    def failures(self) -> list[str]:
        """The runs of this sweep that leave a hole in its comparison, with the latest reason, a line each.

        A final run without a result does, and any run that failed. A tuning trial that was infeasible or pruned does
        not: its search has learned from it. Ingest before.
        """
        rows = self._store.query(
            "SELECT t.recipe, t.trial, t.seed, t.phase, t.state, arg_max(f.message, (f.batch, f.batch_row)) "
            "FROM trials t LEFT JOIN raw.failure_events f USING (sweep, recipe, model, trial, seed) "
            "WHERE t.sweep = ? AND (t.state = 'failed' OR t.phase = 'final' AND t.state IN ('infeasible', 'pruned')) "
            "GROUP BY ALL ORDER BY ALL",
            [self._plan.sweep],
        ).rows()
        return [f"{r} trial {n} seed {s} ({phase}): {state}: {why}" for r, n, s, phase, state, why in rows]

    def trial(
        self,
        run: Run,
        trial: int,
        phase: Half,
        state: TrialState,
        *,
        models: Models | None = None,
        objectives: Mapping[str, float] | None = None,
        seconds: float | None = None,
        reached: Mapping[int, float] | None = None,
    ) -> None:
        """A tuning trial or a final run has come into this state; `reached`: a pruned one's values at its rungs."""
        row = {
            **self._where(run, trial),
            "phase": phase,
            "state": state,
            "settings": json.dumps(dict(run.settings.get(run.recipe, {})), sort_keys=True),
            "objectives": json.dumps(dict(objectives)) if objectives is not None else None,
            "artifact": models.artifact if models else None,
            "reward_artifact": models.reward if models else None,
            "seconds": seconds,
            "at": environment().now(),
        }
        at = {**self._where(run, trial), "at": row["at"]}
        rungs = [{**at, "rung": rung, "value": value} for rung, value in (reached or {}).items()]
        self._store.append_many({"trial_events": [row], "trial_rungs": rungs})

    def stage(self, run: Run, trial: int, position: int, spec: StageSpec, *, reused: bool) -> None:
        """The run goes through this stage."""
        link = (run.recipe, run.model, trial, run.seed, spec.key)
        if link not in self._linked:
            self._linked.add(link)
            row = {**self._where(run, trial), "position": position, "step": spec.method}
            self._store.append("stage_links", [{**row, "stage": spec.key, "reused": reused}])

    def measurements(
        self, run: Run, trial: int, phase: Half, artifact: str, specs: Sequence[tuple[Target, MeasureSpec]]
    ) -> None:
        """The run goes by these measurements of its model, made already or not."""
        links = [
            {**self._where(run, trial), "phase": phase, "artifact": artifact, "target": target.name}
            | {"measurement": item.key}
            for target, spec in specs
            for item in spec.items
            if (run.recipe, run.model, trial, run.seed, phase, target.name, item.key) not in self._linked
        ]
        self._linked |= {(*(r[c] for c in _RUN), r["phase"], r["target"], r["measurement"]) for r in links}
        self._store.append("measurement_links", links)

    def repeat(self, run: Run, trial: int, artifact: str, target: Target, again: MeasureSpec, of: MeasureSpec) -> None:
        """The measurements of a spec have been made a second time: `again` repeats `of`, item by item."""
        links = [
            {**self._where(run, trial), "artifact": artifact, "target": target.name}
            | {"measurement": second.key, "repeats": first.key}
            for second, first in zip(again.items, of.items, strict=True)
            if (run.recipe, run.model, trial, run.seed, target.name, second.key, first.key) not in self._linked
        ]
        self._store.append("repeat_links", links)

    def at_step(self, run: Run, trial: int, at: AtStep) -> None:
        """The run has these measurements on domains at this step."""
        links = [
            {**self._where(run, trial), "position": at.position, "step": at.step, "artifact": at.artifact}
            | {"target": at.target.name, "measurement": item.key}
            for item in at.spec.items
            if (run.recipe, run.model, trial, run.seed, "step", at.position, item.key) not in self._linked
        ]
        self._store.append("step_links", links)

    def failure(self, run: Run, trial: int, error: FailedRunError) -> None:
        """The run has ended without a result."""
        result = error.result
        known = (run.recipe, run.model, trial, run.seed, error.stage, error.measurement, result.message)
        # What could not be run for the same reason the last time is one failure, however often the sweep is resumed.
        if error.stage is None and error.measurement is None and known in self._told:
            return
        row = {
            **self._where(run, trial),
            "stage": error.stage,
            "measurement": error.measurement,
            "kind": "failed" if result.state == "complete" else result.state,
            "message": result.message,
            "traceback": result.traceback,
            "peak_mb": result.peak_mb,
            "step": result.step,
            "seconds": result.seconds,
            "command": error.command,
            "at": environment().now(),
        }
        self._store.append("failure_events", [row])

    def _where(self, run: Run, trial: int) -> dict[str, object]:
        return {
            "sweep": self._plan.sweep,
            "recipe": run.recipe,
            "model": run.model,
            "trial": trial,
            "seed": run.seed,
        }
