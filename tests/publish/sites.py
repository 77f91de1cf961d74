"""Small boards as far as sending them looks into one: a manifest, and the files that it lists."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from harness.publish._files import FORMAT, MANIFEST, VERSION

_GIT = shutil.which("git") or "git"
ENTRY = "entries/{:016x}.html"


def write_site(folder: Path, pages: Mapping[str, bytes], **more: object) -> Path:
    """A site of these files; `more` stands in its manifest beside them."""
    for name, content in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    files = {n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in pages.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(
        json.dumps({"format": FORMAT, "version": VERSION, "files": files, **more}), encoding="utf-8"
    )
    return folder


def contents(folder: Path, *without: str) -> dict[str, bytes]:
    """Path → bytes of every file, but for those in folders or of names that are left out."""
    paths = [p for p in folder.rglob("*") if p.is_file()]
    named = {p.relative_to(folder).as_posix(): p for p in paths}
    return {name: p.read_bytes() for name, p in named.items() if name.partition("/")[0] not in without}


def git(*arguments: str, at: Path | None = None) -> str:
    """What git says."""
    done = subprocess.run([_GIT, *arguments], check=True, capture_output=True, cwd=at)
    return done.stdout.decode(errors="surrogateescape").strip()
