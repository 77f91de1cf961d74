"""Checkpoints of a training run: what it takes to go on, bit for bit, after its process was killed at any moment.

One lies in the stage's folder at a time, in files that are read without running what is in them: weights as
safetensors, the rest (optimizer, random states, counters) by `torch.load(weights_only=True)`, and last the manifest,
with every file's sha256. It is written aside, synced and renamed, so that half of one is never taken for one.
"""

import json
import logging
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness._digests import digest_problem, list_files, size_problem, text_digest
from harness._disk import sync, writing
from harness.method import Context
from harness.models import sync_folder

__all__ = ["Checkpoint", "Checkpoints", "random_state", "set_random_state"]

log = logging.getLogger(__name__)

_MANIFEST, _STATE, _WEIGHTS = "checkpoint.json", "state.pt", "weights-{:04}.safetensors"
_PART_BYTES = 128 * 2**20
"""Of weights in one file at most, if there are several: safetensors copies all that it writes."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete one."""

    step: int
    """Steps that were done."""
    folder: Path

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Set these weights to what they were."""
        from safetensors.torch import load_file

        found = set()
        for file in sorted(self.folder.glob("*.safetensors")):
            for name, value in load_file(file).items():
                found.add(name)
                weights[name].detach().copy_(value)
        if found != set(weights):
            # The key of the stage names everything that decides them.
            raise RuntimeError(f"the checkpoint {self.folder} is of other weights: {sorted(found ^ set(weights))[:4]}")

    def state(self) -> dict[str, Any]:
        """The rest, on the host."""
        found: dict[str, Any] = torch.load(self.folder / _STATE, map_location="cpu", weights_only=True)
        return found


class Checkpoints:
    """The checkpoints of one run; without a folder for them (`Context.checkpoints`) there are none.

    What is logged goes by `log`: a run that goes on has the whole curve.
    """

    def __init__(self, context: Context, device: str) -> None:
        self._context, self._folder, self._device = context, context.checkpoints, device
        self._rows: list[tuple[int, int, dict[str, float]]] = []
        self._last = time.monotonic()

    def log(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Log to the context."""
        self._rows.append((step, total, dict(metrics)))
        self._context.log(step, total, metrics)

    def logged(self, metric: str) -> list[float]:
        """All values of a metric so far, also those from before a run went on."""
        return [metrics[metric] for _, _, metrics in self._rows if metric in metrics]

    def due(self) -> bool:
        """Whether it is time for one."""
        return self._folder is not None and time.monotonic() - self._last >= self._context.checkpoint_s

    def resume(self) -> Checkpoint | None:
        """The newest complete checkpoint, its curve logged and its time spent; None where the run begins at its start.

        A damaged one is set aside, with a line in the worker's log.

        Raises:
            HopelessError: the curve ends at a rung.
        """
        for folder in self._candidates():
            if (content := self._read(folder)) is None:
                continue
            self._context.resumed(content["seconds"])
            for step, total, metrics in content["rows"]:
                self.log(step, total, metrics)
            return Checkpoint(content["step"], folder)
        return None

    def save(self, step: int, weights: Mapping[str, Tensor], state: Mapping[str, object]) -> None:
        """Keep a checkpoint after `step` steps in place of the one before.

        Args:
            weights: whatever training changes, by name; no two share memory.
            state: tensors, numbers, texts, and lists, tuples and dicts of them.

        Raises:
            StorageError: the disk refuses.
        """
        if self._folder is None:
            return
        from safetensors.torch import save_file

        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
            for number, part in enumerate(_parts(weights)):
                save_file({n: w.detach().cpu().contiguous() for n, w in part.items()}, aside / _WEIGHTS.format(number))
            torch.save(dict(state), aside / _STATE)
            content = {"step": step, "rows": self._rows, "seconds": self._context.seconds(), "device": self._device}
            # As JSON gives it back.
            content = json.loads(json.dumps({**content, "files": list_files(aside)}))
            (aside / _MANIFEST).write_text(json.dumps({**content, "sha256": text_digest(content)}), encoding="utf-8")
            sync_folder(aside)
            place = self._folder / f"{step:09}"
            # What is there was found damaged, or it would have been gone on from.
            shutil.rmtree(place, ignore_errors=True)
            aside.rename(place)
            sync(self._folder)
        for other in self._folder.iterdir():
            if other != place and not other.name.startswith(".damaged-"):
                shutil.rmtree(other, ignore_errors=True)
        self._last = time.monotonic()

    def _candidates(self) -> list[Path]:
        if self._folder is None or not self._folder.is_dir():
            return []
        return sorted((p for p in self._folder.iterdir() if not p.name.startswith(".")), reverse=True)

    def _read(self, folder: Path) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            digest = content.pop("sha256", None)
            problem = None if digest == text_digest(content) else f"{_MANIFEST} is not what was written (sha256)"
            problem = problem or size_problem(folder, content["files"]) or digest_problem(folder, content["files"])
        except (OSError, ValueError, AttributeError, KeyError) as error:
            problem = f"{_MANIFEST}: {type(error).__name__}: {error}"
        if problem is None and content["device"] != self._device:
            # Sound, but no run goes on bit for bit on another kind of device.
            log.warning("the checkpoint at step %s was made on %s: not used", content["step"], content["device"])
            return None
        if problem is None:
            return content
        aside = folder.with_name(f".damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        log.warning("the checkpoint %s is damaged and was set aside: %s", folder.name, problem)
        return None


def _parts(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, weight in weights.items():
        if part and size + weight.nbytes > _PART_BYTES:
            yield part
            part, size = {}, 0
        part[name] = weight
        size += weight.nbytes
    if part:
        yield part


def random_state() -> dict[str, object]:
    """Where the process's random numbers are: Python's, NumPy's, torch's, those of every GPU in use."""
    import numpy as np

    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [str(kind), np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers of `random_state`."""
    import numpy as np

    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
