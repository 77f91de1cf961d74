"""Computing one stage: load the inputs, run the method, save the artifact, store the training rows."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.data import DataSource, load_training_set
from harness.errors import UserError
from harness.execute._spec import StageSpec
from harness.folders import Folders
from harness.method import Context, Inputs, LoadedModel, Role, find_method
from harness.models import load_model, save_model
from harness.provenance import environment
from harness.store import Store
from harness.targets import peak_rss_mb

__all__ = ["run_stage"]


def run_stage(spec: StageSpec, results: Path, log: Callable[[int, int, Mapping[str, float]], None]) -> None:
    """Compute the stage and leave its artifact and rows; nothing is visible before all of it is.

    Raises:
        UserError: the method on disk is another version than the plan's, or the data changed since.
    """
    folders = Folders(results)
    method = find_method(spec.method)
    if method.version != spec.version:
        raise UserError(f"{spec.method} is version {method.version} here, the plan was made with {spec.version}")
    params = method.params.model_validate(spec.params)
    started = time.monotonic()
    training: list[dict[str, object]] = []

    def logged(step: int, total: int, metrics: Mapping[str, float]) -> None:
        training.extend({"stage": spec.key, "step": step, "metric": m, "value": float(v)} for m, v in metrics.items())
        log(step, total, metrics)

    scratch_root = results / "scratch"
    scratch_root.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{spec.key}.", dir=scratch_root))
    try:
        context = Context(
            seed=spec.seed,
            scratch=scratch,
            precision=spec.precision,
            log=logged,
            deadline=None if spec.limit_s is None else started + spec.limit_s,
        )
        trained = method().run(_inputs(spec, folders, method.dataset_kind), params, context)
        env = environment()
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
            "seconds": time.monotonic() - started,
            "peak_rss_mb": peak_rss_mb(),
            "metrics": json.dumps(dict(trained.metrics), sort_keys=True),
            "environment": env.key,
            "at": env.now(),
        }
        # Rows first: an artifact whose rows were lost would never be computed again, its curves missing for ever.
        Store(results).append_many({"stages": [row], "training_steps": training, "environment_rows": [env.row()]})
        folders.put(
            spec.key,
            {
                **spec.model_dump(),
                "seconds": row["seconds"],
                "metrics": dict(trained.metrics),
                "produces": method.produces,
            },
            trained.write or (lambda folder: save_model(trained.model, trained.tokenizer, folder)),
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _inputs(spec: StageSpec, folders: Folders, kind: str | None) -> Inputs:
    def load(role: Role, folder: Path) -> LoadedModel:
        return load_model(folder, head="reward" if role == "reward" else "causal")

    roles: dict[Role, Path] = {role: folders.model(ref) for role, ref in spec.inputs.items()}  # type: ignore[misc]  # the plan writes roles only
    if spec.dataset is None or kind is None:
        return Inputs(roles, load)
    rows, fingerprint = load_training_set(spec.dataset, kind, DataSource(spec.data))  # type: ignore[arg-type]  # a method's declared kind
    if spec.dataset_fingerprint is not None and fingerprint != spec.dataset_fingerprint:
        raise UserError(f"dataset {spec.dataset!r} changed while the sweep was running; start the sweep again")
    return Inputs(roles, load, rows)
