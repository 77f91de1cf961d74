"""Computing one stage: load the inputs, run the method, save the artifact, store the training rows.

At a rung (`harness.rungs`) a hopeless trial's stage ends early. Its curve is stored all the same, as is that of a stage
that failed: later trials are held against it.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness._disk import storage_error
from harness.data import DataSource, load_training_set
from harness.errors import UserError
from harness.execute._generations import generation_rows
from harness.execute._made import made_dataset, made_rows, save_made
from harness.execute._spec import ENDPOINT, StageSpec
from harness.execute._stage_judge import StageJudge
from harness.folders import Folders
from harness.measure.judge import LocalVoter, Voter, endpoint_voter
from harness.method import Context, DatasetKind, Inputs, LoadedModel, Made, Method, Params, Role, Trained, find_method
from harness.models import load_model, save_model
from harness.provenance import environment
from harness.rungs import Point
from harness.rungs import StageJudge as RungJudge
from harness.store import Store
from harness.suite import Endpoint
from harness.targets import peak_rss_mb

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["run_stage"]


def run_stage(spec: StageSpec, results: Path, log: Callable[[int, int, Mapping[str, float]], None]) -> None:
    """Compute the stage and leave its artifact and rows; nothing is visible before all of it is.

    Raises:
        UserError: the method on disk is another version than the plan's, or the data changed since.
        HopelessError: stopped at one of the spec's rungs.
    """
    folders = Folders(results)
    method = find_method(spec.method)
    if method.version != spec.version:
        raise UserError(f"{spec.method} is version {method.version} here, the plan was made with {spec.version}")
    params = method.params.model_validate(spec.params)
    started = time.monotonic()
    curve = _Curve(spec, log)
    scratch_root = results / "scratch"
    scratch_root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{spec.key}.", dir=scratch_root))
    try:
        context = Context(
            seed=spec.seed,
            scratch=scratch,
            precision=spec.precision,
            log=curve.log,
            deadline=None if spec.limit_s is None else started + spec.limit_s,
            round=spec.round,
            checkpoints=None if spec.checkpoint_s is None else folders.checkpoints / spec.key,
            checkpoint_s=spec.checkpoint_s or 0.0,
            began=started,
        )
        inputs = _inputs(spec, folders, method)
        try:
            trained = method().run(inputs, params, context)
        except (Exception, SystemExit) as error:
            if storage_error(error, results) is None:
                # Whoever tries this stage again may have changed what it failed for.
                shutil.rmtree(folders.checkpoints / spec.key, ignore_errors=True)
            Store(results).append_many(curve.unfinished())
            raise
        env = environment()
        metrics = {**trained.metrics, **_judged(inputs)}
        row: dict[str, object] = {
            "stage": spec.key,
            "method": spec.method,
            "method_version": spec.version,
            "params": json.dumps(spec.params, sort_keys=True),
            "inputs": json.dumps(spec.inputs, sort_keys=True),
            "dataset": spec.dataset,
            "dataset_fingerprint": spec.dataset_fingerprint,
            "seed": spec.seed,
            "precision": spec.precision,
            "seconds": context.seconds(),
            "peak_rss_mb": peak_rss_mb(),
            "metrics": json.dumps(metrics, sort_keys=True),
            "environment": env.key,
            "at": env.now(),
        }
        # Rows first: an artifact whose rows were lost would never be computed again, its curves missing for ever.
        Store(results).append_many(
            {
                "stages": [row],
                **curve.finished(),
                "generations": generation_rows(spec.key, trained.records) if isinstance(trained, Made) else [],
                "environment_rows": [env.row()],
            }
        )
        folders.put(
            spec.key,
            {
                **spec.model_dump(exclude={"rungs"}),
                "seconds": row["seconds"],
                "metrics": metrics,
                "produces": method.produces,
            },
            _writer(trained, method.makes, spec.label),
        )
        shutil.rmtree(folders.checkpoints / spec.key, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Curve:
    """What a stage logs, judged at its rungs as it comes."""

    def __init__(self, spec: StageSpec, log: Callable[[int, int, Mapping[str, float]], None]) -> None:
        self._spec, self._log = spec, log
        self._rows: list[dict[str, object]] = []
        self._totals: dict[str, int] = {}
        self._judge = None if spec.rungs is None else RungJudge(spec.rungs)

    def log(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Keep one step's metrics.

        Raises:
            HopelessError: it is at a rung from which the trial does not go on.
        """
        key = self._spec.key
        self._rows += [{"stage": key, "step": step, "metric": m, "value": float(v)} for m, v in metrics.items()]
        self._totals |= dict.fromkeys(metrics, total)
        self._log(step, total, metrics)
        if self._judge is not None and (metric := self._judge.rungs.metric) in metrics:
            self._judge.see(Point(step, total, float(metrics[metric])))

    def finished(self) -> dict[str, list[dict[str, object]]]:
        """The rows of a stage that completed, by table."""
        return {"training_steps": self._rows, "training_curves": self._about(self._spec.key, finished=True)}

    def unfinished(self) -> dict[str, list[dict[str, object]]]:
        """The rows of a stage that did not, by table. How far it came is in the key: another time it may be farther."""
        curve = f"{self._spec.key}/{len(self._rows)}"
        rows = [{"curve": curve, **row} for row in self._rows]
        return {"unfinished_steps": rows, "training_curves": self._about(curve, finished=False)}

    def _about(self, curve: str, *, finished: bool) -> list[dict[str, object]]:
        known = {"curve": curve, "stage": self._spec.key, "method": self._spec.method, "finished": finished}
        values = len(self._rows)
        return [{**known, "metric": m, "total": total, "logged": values} for m, total in self._totals.items()]


def _writer(trained: Trained | Made, kind: DatasetKind | None, label: str) -> Callable[[Path], None]:
    if isinstance(trained, Made):
        return lambda folder: save_made(trained.rows, kind, label, folder)
    return trained.write or (lambda folder: save_model(trained.model, trained.tokenizer, folder))


def _judged(inputs: Inputs) -> dict[str, float]:
    """How often the stage's judge was asked, and how often its words held no verdict."""
    judge = inputs.judged
    if not isinstance(judge, StageJudge):
        return {}
    return {"judge_asked": float(judge.asked), "judge_unparsed": float(judge.unparsed)}


def _voter(spec: StageSpec, inputs: Inputs, folders: Folders) -> Voter:
    name = str(spec.params["judge"])
    if spec.endpoint is None:
        judge = inputs.load("judge")
        judge.model.eval()
        return LocalVoter(judge, name, spec.inputs["judge"])
    return endpoint_voter(Endpoint.model_validate(spec.endpoint), folders.votes)


def _inputs(spec: StageSpec, folders: Folders, method: type[Method[Params]]) -> Inputs:
    def load(role: Role, folder: Path) -> LoadedModel:
        return load_model(folder, head="reward" if role == "reward" else "causal")

    models = {role: ref for role, ref in spec.inputs.items() if not ref.startswith(ENDPOINT)}
    named = {role: folders.model(reference) for role, reference in models.items()}
    data, prepared = named.pop("data", None), named.pop("prepared", None)
    inputs = Inputs(named, load)
    if prepared is not None:
        inputs.prepared = made_rows(prepared)
    if "judge" in spec.inputs:
        inputs.judging = lambda: StageJudge(_voter(spec, inputs, folders))
    kinds = method.datasets(spec.params)
    inputs.further = {name: _rows(name, kinds[name], spec.data, known) for name, known in spec.datasets.items()}
    kind = method.dataset_kind
    if kind is not None and data is not None:
        inputs.dataset = made_dataset(data, kind)
    elif kind is not None and spec.dataset is not None:
        inputs.dataset = _rows(spec.dataset, kind, spec.data, spec.dataset_fingerprint)
    return inputs


def _rows(name: str, kind: DatasetKind, data: str, known: str | None) -> "Dataset":
    rows, fingerprint = load_training_set(name, kind, DataSource(data))
    if known is not None and fingerprint != known:
        raise UserError(f"dataset {name!r} changed while the sweep was running; start the sweep again")
    return rows
