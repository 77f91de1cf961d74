"""Removing artifacts that nothing refers to, and what dead processes have left half-written.

Rows of the store stay, so that every report can still be made; a sweep that needs a removed artifact computes it again.
"""

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness._disk import sync, writing
from harness._sizes import bytes_below
from harness.errors import StorageError
from harness.folders import Folders
from harness.store import Store

__all__ = ["Garbage", "find_garbage", "remove"]

# Everything by which a sweep refers to an artifact; a stage that failed may have been made since, by hand.
_REFERENCES = """
    SELECT sweep, stage AS artifact FROM raw.stage_links
    UNION SELECT sweep, stage FROM raw.failure_events WHERE stage IS NOT NULL
    UNION SELECT sweep, artifact FROM raw.trial_events WHERE artifact IS NOT NULL
    UNION SELECT sweep, reward_artifact FROM raw.trial_events WHERE reward_artifact IS NOT NULL
    UNION SELECT sweep, artifact FROM raw.measurement_links
"""
_SWEEPS = """
    SELECT sweep, arg_max(suite, (batch, batch_row)) AS suite, arg_max(state, (batch, batch_row)) AS state
    FROM raw.sweep_events GROUP BY sweep ORDER BY max((batch, batch_row))
"""
_UNUSED = "no run of any sweep goes by it"
_OLD_S = 14 * 86_400.0
_REMOVED, _DAMAGED = ".removed-", ".damaged-"


@dataclass(frozen=True)
class Garbage:
    """Something to remove: an artifact, or a leftover (`method` is None)."""

    path: Path
    method: str | None
    bytes: int
    age_s: float
    why: str


def find_garbage(store: Store, *, superseded: bool = False) -> list[Garbage]:
    """What may be removed from a results folder, artifacts first. Call only while no sweep runs there; ingest before.

    Args:
        store: of the folder.
        superseded: also the artifacts to which only sweeps refer that a later sweep of the same suite's name, run to
            its end, has replaced.
    """
    folders = Folders(store.results)
    references: list[tuple[str, str]] = []
    stored: dict[str, str] = {}
    replaced: dict[str, str] = {}
    if store.ready():
        references = store.query(_REFERENCES).rows()
        stored = dict(store.query("SELECT stage, inputs FROM raw.stages").rows())
        if superseded:
            replaced = _replaced(store.query(_SWEEPS).rows())
    kept = _with_inputs(folders, stored, (key for sweep, key in references if sweep not in replaced))
    whose: dict[str, set[str]] = {}
    for sweep, key in references:
        if sweep in replaced:
            for one in _with_inputs(folders, stored, [key]):
                whose.setdefault(one, set()).add(sweep)
    found = []
    for path in _entries(folders.artifacts):
        if path.name.startswith(".") or path.name in kept or _foreign(path):
            continue
        why = _UNUSED
        if path.name in whose:
            by = sorted(f"{sweep} (now {replaced[sweep]})" for sweep in whose[path.name])
            why = f"only replaced sweeps go by it: {', '.join(by)}"
        found.append(_garbage(path, str(_manifest(folders, path.name).get("method", "unknown")), why))
    return [*found, *_leftovers(store.results, folders)]


def remove(garbage: Garbage) -> None:
    """Remove it; from the first moment on, what is left of an artifact is not taken for one.

    Raises:
        StorageError: the disk refuses.
    """
    path, folder = garbage.path, garbage.path.parent
    with writing(folder):
        if not path.name.startswith("."):
            aside = folder / f"{_REMOVED}{path.name}"
            _delete(aside)
            path.rename(aside)
            # Not only in memory: after a loss of power, files could be gone and the name still there.
            sync(folder)
            path = aside
        _delete(path)


def _foreign(path: Path) -> bool:
    """Whether somebody else has put it there: it has neither a manifest nor a key for a name."""
    return not (path / "stage.json").is_file() and not re.fullmatch(r"[0-9a-f]{32}", path.name)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replaced(sweeps: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Sweep → the later one of its suite's name that ran to its end. They come in the order of their last events."""
    found: dict[str, str] = {}
    earlier: dict[str, list[str]] = {}
    for sweep, suite, state in sweeps:
        before = earlier.setdefault(suite, [])
        # One that was interrupted still finds what it needs among the artifacts of the one before.
        if state in ("complete", "failed"):
            found |= dict.fromkeys(before, sweep)
        before.append(sweep)
    return found


def _with_inputs(folders: Folders, stored: Mapping[str, str], keys: Iterable[str]) -> set[str]:
    """The artifacts, those they were made from, and so on."""
    found: set[str] = set()
    todo = list(keys)
    while todo:
        key = todo.pop()
        if key not in found:
            found.add(key)
            todo += _inputs(folders, stored, key)
    return found


def _inputs(folders: Folders, stored: Mapping[str, str], key: str) -> set[str]:
    """By the manifest and by the store: one of them may be damaged or lost."""
    named = [*json.loads(stored.get(key, "{}")).values(), *_manifest(folders, key).get("inputs", {}).values()]
    return {reference for reference in named if not reference.startswith("model:")}


def _manifest(folders: Folders, key: str) -> dict[str, Any]:
    try:
        return folders.manifest(key)
    except StorageError:
        return {}


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _garbage(path: Path, method: str | None, why: str) -> Garbage:
    return Garbage(path, method, bytes_below(path), time.time() - path.lstat().st_mtime, why)


def _leftovers(results: Path, folders: Folders) -> Iterator[Garbage]:
    for path in _entries(folders.artifacts):
        if path.name.startswith(_DAMAGED):
            yield _garbage(path, None, "damaged, set aside by a sweep")
        elif path.name.startswith(_REMOVED):
            yield _garbage(path, None, "not wholly removed the last time")
        elif path.name.startswith("."):
            yield _garbage(path, None, "half-written by a process that has ended")
    for path in _entries(folders.checkpoints):
        if folders.has(path.name):
            yield _garbage(path, None, "checkpoints of a stage that is complete")
        elif time.time() - path.lstat().st_mtime > _OLD_S:
            yield _garbage(path, None, "checkpoints of a stage that was interrupted more than two weeks ago")
    for name in ("scratch", "work"):
        for path in _entries(results / name):
            yield _garbage(path, None, "left by a process that has ended")
