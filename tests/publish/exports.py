"""Exports with something changed, as their own manifest would or would not have it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl


def copied(export: Path, to: Path) -> Path:
    """A copy that may be changed."""
    shutil.copytree(export, to)
    return to


def change_table(export: Path, name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Write a Parquet file again, changed."""
    path = export / name
    change(pl.read_parquet(path)).write_parquet(path)


def change_json(export: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Write a JSON file again, changed."""
    path = export / name
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def signed(export: Path) -> Path:
    """The manifest made to fit what lies there, as who changes files on purpose would."""

    def fit(manifest: Any) -> Any:
        for name in manifest["files"]:
            raw = (export / name).read_bytes()
            manifest["files"][name] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        return manifest

    change_json(export, "manifest.json", fit)
    return export
