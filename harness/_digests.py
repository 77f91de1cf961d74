"""What the files of an artifact are: sizes and sha256, listed when it is written, and held against them later."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["digest_problem", "facts_of", "list_files", "sha256", "size_problem", "text_digest"]

_PART = 2**20
_SOUND: set[tuple[str, int, int, int, str]] = set()
"""Files whose content was read in this process and is right: path, inode, mtime in ns, size, sha256."""


def sha256(file: Path) -> str:
    """sha256 of a file's content, in hex."""
    with file.open("rb") as content:
        # Most files are small, and the buffer that hashlib.file_digest makes takes longer than they do.
        whole = hashlib.sha256(content.read(_PART))
        while more := content.read(_PART):
            whole.update(more)
        return whole.hexdigest()


def facts_of(file: Path) -> dict[str, Any]:
    """Size in bytes and sha256 of a file."""
    return {"size": file.stat().st_size, "sha256": sha256(file)}


def list_files(folder: Path, place: Path | None = None) -> dict[str, dict[str, Any]]:
    """Every file below a folder, by its path in it. `place` is where the folder will lie when it is done: what was just
    written need not be read again there by this process."""
    listed = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        listed[name] = facts_of(file)
        _SOUND.add(_mark((place or folder) / name, file.stat(), listed[name]["sha256"]))
    return listed


def size_problem(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first listed file that is not there or has another size, in words."""
    for name, listed in files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if size != listed["size"]:
            return f"{name} has {size} bytes, {listed['size']} were written"
    return None


def digest_problem(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The first listed file whose content is not what was written, in words. A file is read once by a process."""
    for name, listed in files.items():
        file = folder / name
        try:
            mark = _mark(file, file.stat(), listed["sha256"])
            if mark in _SOUND:
                continue
            found = facts_of(file)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if found["sha256"] != listed["sha256"]:
            return f"the content of {name} is not what was written (sha256)"
        _SOUND.add(mark)
    return None


def text_digest(content: Mapping[str, object]) -> str:
    """sha256 of JSON content, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _mark(file: Path, status: os.stat_result, digest: str) -> tuple[str, int, int, int, str]:
    return str(file.absolute()), status.st_ino, status.st_mtime_ns, status.st_size, digest
