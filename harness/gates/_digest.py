"""Digest: whether the measured model is the artifact that it is said to be."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import StorageError, UserError
from harness.folders import Folders
from harness.gates._evidence import BASE, Evidence, settings_of
from harness.gates._types import Flag, Said, Unchecked
from harness.keys import content_key
from harness.method import find_method
from harness.models import folder_fingerprint

__all__ = ["artifact_digest"]

_GATE = "digest"
_UNREAD = ("the files of the models were not read for this report: `harness report --check-artifacts` does",)

_CHAIN = """
    SELECT l.position, l.step, l.stage FROM lineage l
    WHERE l.sweep = $sweep AND l.recipe = $recipe AND l.model = $model AND l.trial = $trial AND l.seed = $seed
    ORDER BY l.position DESC
"""
_TRIAL = """
    SELECT artifact FROM trials WHERE sweep = $sweep AND recipe = $recipe AND model = $model AND trial = $trial
    AND seed = $seed AND phase = 'final'
"""
_STAGE = "SELECT method, params, inputs, dataset_fingerprint, seed FROM stages WHERE stage = $stage"


def artifact_digest(evidence: Evidence) -> Iterator[Said]:
    """Flag measurements of another artifact than the run's lineage ends with, and artifacts that have changed.

    What is not as it was written (a file's sha256, the manifest's own) or stands under another's key is invalid: the
    figures may be of other weights. Profiles are left out: models of one architecture share one by design.
    """
    import polars as pl

    runs = evidence.runs.filter(pl.col("kind") != "profile")
    ended: set[tuple[str, str, str]] = set()
    for key, mine in runs.group_by("recipe", "model", "trial", "seed", maintain_order=True):
        recipe, model, trial, seed = str(key[0]), str(key[1]), int(str(key[2])), int(str(key[3]))
        untrained = recipe == BASE
        run = {"sweep": evidence.sweep, "recipe": recipe, "model": model, "trial": trial, "seed": seed}
        expected, why = _expected(evidence, run)
        if why is not None:
            yield Unchecked(_GATE, recipe, model, "", why)
        for task, artifact, made_of in (
            mine.select("task", "artifact", "made_of").unique(maintain_order=True).iter_rows()
        ):
            wanted = expected or str(artifact)
            if (found := next((k for k in (made_of, artifact) if k != wanted), None)) is not None:
                message = (
                    f"Its figures are of the artifact {str(found)[:12]}, its lineage ends with {wanted[:12]}. Do not "
                    "use them; run the sweep again."
                )
                yield Flag(_GATE, "invalid", recipe, model, str(task), None if untrained else seed, message)
        for artifact in mine["artifact"].unique(maintain_order=True):
            if (recipe, model, str(artifact)) in ended:
                continue
            ended.add((recipe, model, str(artifact)))
            said = _base(evidence, model, str(artifact)) if untrained else _files(evidence, str(artifact))
            if isinstance(said, str):
                message = (
                    f"The artifact {str(artifact)[:12]} is not what was measured: {said}. Do not use its figures; "
                )
                message += "run the sweep again, which computes it anew."
                yield Flag(_GATE, "invalid", recipe, model, "", None if untrained else seed, message)
            elif said is not None:
                yield Unchecked(_GATE, recipe, model, "", said[0])


def _expected(evidence: Evidence, run: dict[str, Any]) -> tuple[str | None, str | None]:
    """The artifact that a run's own rows say it ends with, or why they do not say."""
    if run["recipe"] == BASE:
        found = evidence.store.query(_TRIAL, run)["artifact"].drop_nulls()
        return (str(found[0]), None) if len(found) else (None, "no event of the run names its artifact")
    for _, step, stage in evidence.store.query(_CHAIN, run).iter_rows():
        try:
            if find_method(step).produces == "policy":
                return str(stage), None
        except UserError as error:
            return None, f"its last step is not known here: {error}"
    return None, "its lineage is not stored"


def _files(evidence: Evidence, key: str) -> str | tuple[str] | None:
    """What is wrong with an artifact's files; a tuple with the reason where they cannot be looked at."""
    if evidence.results is None:
        return _UNREAD
    folders = Folders(evidence.results)
    if not folders.holds(key):
        return ("the artifact is no longer there (harness gc)",)
    if (problem := folders.check(key)) is not None:
        return problem
    try:
        manifest = folders.manifest(key)
    except StorageError as error:
        return str(error)
    if manifest.get("key", key) != key:
        return f"its manifest is that of {str(manifest['key'])[:12]}"
    stored = evidence.store.query(_STAGE, {"stage": key})
    return None if stored.is_empty() else _differs(manifest, stored.row(0, named=True))


def _differs(manifest: dict[str, Any], stage: dict[str, Any]) -> str | None:
    """The first setting in which an artifact's manifest and the stored stage differ, in words."""
    for name, value in stage.items():
        found = settings_of(value) if name in ("params", "inputs") else value
        if name in manifest and json.dumps(manifest[name], sort_keys=True) != json.dumps(found, sort_keys=True):
            return f"its manifest has {name} {manifest[name]!r:.60}, the store has {found!r:.60}"
    return None


def _base(evidence: Evidence, model: str, key: str) -> str | tuple[str] | None:
    """The same for a base model: only a local folder is hashed again; nothing is converted or fetched for it."""
    folder = Path(model).expanduser()
    if evidence.results is None:
        return _UNREAD
    if not folder.is_dir():
        return ("a base model that is no local folder is not hashed again",)
    found = content_key("model", files=folder_fingerprint(folder))
    return None if found == key else f"the folder {model} has changed since"
