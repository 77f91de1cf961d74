"""Where documents come from: the bundled sets, the hub, or a mirror folder laid out as `<org>/<dataset>`."""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness._data_files import broken_file, data_reason, outside_problem
from harness._hub import bound_waiting, hub_reason, repository_problem
from harness._rows import rows_of_kind
from harness.errors import UserError
from harness.method import DatasetKind
from harness.models import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["BUNDLED_FOLDER", "TRAINING_SETS", "DataSource", "Half", "dataset_problem", "half_of", "load_training_set"]

Half = Literal["tune", "final"]

BUNDLED_FOLDER = Path(__file__).parent / "bundled"

_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")

TRAINING_SETS: dict[str, tuple[str, str]] = {
    "instructions": ("local/constraints", "instructions"),
    "preferences": ("local/constraints", "preferences"),
    "prompts": ("local/constraints", "prompts"),
    "medical": ("local/domains", "medical"),
    "legal": ("local/domains", "legal"),
    "education": ("local/domains", "education"),
}
"""Names of the bundled training sets → (dataset, config). They come from the bundle whatever `data` says."""


@dataclass(frozen=True)
class DataSource:
    """One of `bundled`, `hub` or a mirror folder."""

    name: str

    @property
    def folder(self) -> Path | None:
        """The folder that stands for the hub, None for the hub itself."""
        if self.name == "hub":
            return None
        return BUNDLED_FOLDER if self.name == "bundled" else Path(self.name).expanduser().resolve()

    def lacks(self, dataset: str) -> str | None:
        """Why this dataset cannot be read from here as `<org>/<dataset>`, or None; the hub is not asked."""
        if not _DATASET.fullmatch(dataset) or ".." in dataset:
            return "expected <org>/<dataset>: letters, digits, _ . - in both"
        if self.folder is None:
            return None
        if not (self.folder / dataset).is_dir():
            return f"{self.folder} has no folder {dataset}; add it there, or use --data hub"
        return outside_problem(self.folder / dataset)

    def unreachable(self, *datasets: str) -> str | None:
        """Why one of these cannot be had from the hub, which is asked; None for another source."""
        for dataset in dict.fromkeys(datasets) if self.folder is None else ():
            if problem := repository_problem(dataset):
                return f"{dataset} cannot be had from the hub: {problem} (HF_HUB_OFFLINE=1 uses what the cache has)"
        return None

    def why(self, error: Exception, *datasets: str) -> str:
        """What an error in reading one of these means: the file and line that is wrong, or what the hub did."""
        if self.folder is None:
            return f"cannot be had from the hub: {hub_reason(error) or data_reason(error)}"
        broken = (broken_file(self.folder / dataset) for dataset in dict.fromkeys(datasets))
        return next((problem for problem in broken if problem), None) or data_reason(error)

    def problem(self) -> str | None:
        """Why this source cannot be used, or None."""
        if self.folder is not None and self.folder.is_file():
            return f"{self.folder} is a file; expected bundled, hub, or a folder laid out as <org>/<dataset>"
        if self.folder is not None and not self.folder.is_dir():
            return f"no such folder: {self.folder}; expected bundled, hub, or a folder laid out as <org>/<dataset>"
        return None

    def label(self) -> str:
        """How reports name the source: never the official benchmark's name alone."""
        return {"bundled": "bundled sets (not the official benchmarks)", "hub": "hub"}.get(
            self.name, f"mirror {Path(self.name).name}"
        )

    @contextlib.contextmanager
    def as_hub(self) -> Iterator[None]:
        """Let `datasets` resolve hub ids in this source. Changes the current folder meanwhile: main thread only."""
        folder = self.folder
        with _quiet():
            if folder is None:
                bound_waiting()
                yield
                return
            with contextlib.chdir(folder), _offline(), _own_cache(folder):
                yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # What it logs of a file that it cannot read, it also raises; the error is told once, with the file and the line.
    logger = logging.getLogger("datasets")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    # `datasets` keys its Arrow files on a folder's README and relative name, not on the rows: an edited row, or another
    # folder with a dataset of the same name, would be answered from the cache with rows that are not there.
    import datasets

    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        facts = path.stat()
        digest.update(f"{path} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = cache_folder() / "datasets" / digest.hexdigest()[:16]
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    # Without it a dataset that the folder lacks would be asked of the network, and come from somewhere unsaid.
    import datasets
    import huggingface_hub.constants as hub

    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before


def half_of(document: str) -> Half:
    """The half a document belongs to, from a hash of its text alone: stable across runs, limits and machines."""
    return "tune" if hashlib.sha256(document.encode()).digest()[0] % 2 == 0 else "final"


def dataset_problem(name: str, source: DataSource) -> str | None:
    """Why the training set cannot be had from this source, or None (the hub is not asked)."""
    if name in TRAINING_SETS:
        return None
    dataset = name.partition(":")[0]
    if dataset.count("/") != 1:
        known = ", ".join(TRAINING_SETS)
        return f"expected one of {known}, or <org>/<dataset>[:config[:split]]"
    return source.lacks(dataset)


def load_training_set(name: str, kind: DatasetKind, source: DataSource, split: str = "train") -> "tuple[Dataset, str]":
    """Load a training set in TRL's conversational columns for its kind, with a fingerprint of its rows.

    Args:
        name: a bundled name (`TRAINING_SETS`) or `<org>/<dataset>[:config[:split]]`.
        split: the split of a bundled name; another dataset's split stands in its name (`train` by default).

    Returns:
        The dataset and the sha256 (32 hex characters) over its rows.

    Raises:
        UserError: it is not there, or its columns do not make this kind.
    """
    import datasets

    if problem := dataset_problem(name, source):
        raise UserError(f"dataset {name!r}: {problem}")
    if name in TRAINING_SETS:
        path, config = TRAINING_SETS[name]
        source = DataSource("bundled")
    else:
        path, _, rest = name.partition(":")
        config, _, own_split = rest.partition(":")
        split = own_split or "train"
    datasets.disable_progress_bars()
    try:
        with source.as_hub():
            rows = datasets.load_dataset(path, config or None, split=split)
        converted = rows_of_kind(rows, kind, name)
    except UserError:
        raise
    except Exception as error:
        # The readers of a dozen formats raise whatever they raise, all for what lies in the files.
        raise UserError(f"dataset {name!r}: {source.why(error, path)}") from error
    digest = hashlib.sha256()
    for row in converted:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return converted, digest.hexdigest()[:32]
