"""Where artifacts lie, and what makes one complete."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.models import resolve_model, sync_folder

__all__ = ["Folders"]

_MANIFEST = "stage.json"


class Folders:
    """The artifacts below a results folder: `artifacts/<key>/`, complete once `stage.json` is there."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.artifacts = results / "artifacts"

    def has(self, key: str) -> bool:
        """Whether the artifact is complete."""
        return (self.artifacts / key / _MANIFEST).is_file()

    def manifest(self, key: str) -> dict[str, Any]:
        """What `stage.json` says of a complete artifact."""
        found: dict[str, Any] = json.loads((self.artifacts / key / _MANIFEST).read_text(encoding="utf-8"))
        return found

    def model(self, reference: str) -> Path:
        """The folder of a model reference: an artifact's key, or the name of a base model (`model:<name>`).

        Raises:
            UserError: neither.
        """
        if reference.startswith("model:"):
            return resolve_model(reference.removeprefix("model:"))
        if not self.has(reference):
            raise UserError(f"no complete artifact {reference} in {self.artifacts}")
        return self.artifacts / reference

    def put(self, key: str, manifest: Mapping[str, object], write: Callable[[Path], None]) -> Path:
        """Write an artifact aside, sync it, write the manifest last, and rename: half an artifact is never visible."""
        self.artifacts.mkdir(parents=True, exist_ok=True)
        done = self.artifacts / key
        aside = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self.artifacts))
        try:
            write(aside)
            sync_folder(aside)
            (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            sync_folder(aside)
            if done.exists() and not self.has(key):
                shutil.rmtree(done)
            if not done.exists():
                aside.rename(done)
                _sync_directory(self.artifacts)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return done

    def keep_spec(self, key: str, spec: str) -> None:
        """Keep the JSON of a stage or measurement that failed, so that it can be run again alone."""
        folder = self.results / "failed"
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{key}.{os.getpid()}"
        aside.write_text(spec, encoding="utf-8")
        aside.rename(folder / f"{key}.json")

    def kept_spec(self, key: str) -> Path:
        """The file of `keep_spec`."""
        return self.results / "failed" / f"{key}.json"

    def sweep_out(self) -> None:
        """Remove what killed workers left half-written. Call only while no worker runs."""
        for stale in self.artifacts.glob(".*.*"):
            shutil.rmtree(stale, ignore_errors=True)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
