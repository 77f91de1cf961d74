"""Where documents come from: the bundled sets, the hub, or a mirror folder laid out as `<org>/<dataset>`."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.errors import UserError
from harness.method import DatasetKind
from harness.models import cache_folder

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["BUNDLED_FOLDER", "TRAINING_SETS", "DataSource", "Half", "dataset_problem", "half_of", "load_training_set"]

Half = Literal["tune", "final"]

BUNDLED_FOLDER = Path(__file__).parent / "bundled"

TRAINING_SETS: dict[str, tuple[str, str]] = {
    "instructions": ("local/constraints", "instructions"),
    "preferences": ("local/constraints", "preferences"),
    "prompts": ("local/constraints", "prompts"),
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

    def problem(self) -> str | None:
        """Why this source cannot be used, or None."""
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
        if folder is None:
            yield
            return
        with contextlib.chdir(folder), _offline(), _own_cache(folder):
            yield


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
    if source.folder is not None and not (source.folder / dataset).is_dir():
        return f"{source.folder} has no folder {dataset}; add it there, or use --data hub"
    return None


def load_training_set(name: str, kind: DatasetKind, source: DataSource, split: str = "train") -> "tuple[Dataset, str]":
    """Load a training set in TRL's conversational columns for its kind, with a fingerprint of its rows.

    Args:
        name: a bundled name (`instructions`, `preferences`, `prompts`) or `<org>/<dataset>[:config[:split]]`.
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
    except (OSError, ValueError) as error:
        raise UserError(f"dataset {name!r}: {error}") from error
    converted = _to_kind(rows, kind, name)
    digest = hashlib.sha256()
    for row in converted:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return converted, digest.hexdigest()[:32]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _split_dialogue(text: str) -> list[dict[str, str]]:
    # hh-rlhf writes a dialogue as one string: "\n\nHuman: …\n\nAssistant: …".
    turns = []
    for part in text.split("\n\nHuman: ")[1:]:
        human, *answers = part.split("\n\nAssistant: ")
        turns.append(_turn("user", human.strip()))
        turns += [_turn("assistant", a.strip()) for a in answers]
    return turns


def _row_to_kind(row: dict[str, object], kind: DatasetKind) -> dict[str, object] | None:
    match kind, row:
        case "text", {"text": str(text)}:
            return {"text": text}
        case "instructions", {"prompt": list(prompt), "completion": list(completion)}:
            return {"prompt": prompt, "completion": completion}
        case "instructions", {"messages": list(messages)} if len(messages) >= 2:
            return {"prompt": messages[:-1], "completion": messages[-1:]}
        case "instructions", {"instruction": str(instruction)}:
            context = row.get("input") or row.get("context") or ""
            answer = row.get("output") or row.get("response") or ""
            prompt = f"{instruction}\n\n{context}" if context else instruction
            return {"prompt": [_turn("user", prompt)], "completion": [_turn("assistant", str(answer))]}
        case "preferences", {"prompt": list(prompt), "chosen": list(chosen), "rejected": list(rejected)}:
            return {"prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]}
        case "preferences", {"chosen": list(chosen), "rejected": list(rejected)} if chosen and rejected:
            return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
        case "preferences", {"chosen": str(chosen), "rejected": str(rejected)} if "\n\nHuman: " in chosen:
            good, bad = _split_dialogue(chosen), _split_dialogue(rejected)
            if len(good) < 2 or len(bad) < 2:
                return None
            return {"prompt": good[:-1], "chosen": good[-1:], "rejected": bad[-1:]}
        case "prompts", {"prompt": list(prompt)}:
            return {"prompt": prompt}
        case "prompts", {"prompt": str(prompt)}:
            return {"prompt": [_turn("user", prompt)]}
        case "prompts", {"instruction": str(instruction)}:
            return {"prompt": [_turn("user", instruction)]}
    return None


def _to_kind(rows: "Dataset", kind: DatasetKind, name: str) -> "Dataset":
    import datasets

    converted = []
    for row in rows:
        new = _row_to_kind(row, kind)
        if new is not None:
            if isinstance(row.get("constraints"), str):
                new["constraints"] = row["constraints"]
            converted.append(new)
    if not converted:
        raise UserError(
            f"dataset {name!r}: its columns {rows.column_names} do not make {kind}; expected "
            "prompt+completion, messages, or instruction+output for instructions; chosen+rejected for preferences; "
            "prompt or instruction for prompts; text for text"
        )
    return datasets.Dataset.from_list(converted)
