"""Where a number came from: machine, library versions and git revision. Provenance, never part of a key."""

import datetime
import functools
import importlib.metadata
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from harness.keys import content_key
from harness.models import remote_code_allowed
from harness.targets import machine

__all__ = ["DECIDING", "Environment", "environment", "versions"]

DECIDING = ("torch", "transformers", "trl", "peft", "lm-eval", "tokenizers")
"""The libraries that decide the numbers: their versions are part of a stage's key."""

_RECORDED = (
    *DECIDING,
    *("datasets", "accelerate", "optuna", "duckdb", "polars", "plotly", "numpy", "posttrain-harness"),
    *("torchao", "llmcompressor", "compressed-tensors", "gguf", "onnx", "onnxscript"),
    *("onnxruntime", "openvino", "llama-cpp-python", "torch-tensorrt"),
)


@dataclass(frozen=True)
class Environment:
    """One environment: its key and the JSON text that is stored once."""

    key: str
    text: str

    def row(self) -> dict[str, object]:
        """The row of table `environment_rows`."""
        return {"environment": self.key, "json": self.text}

    @staticmethod
    def now() -> datetime.datetime:
        """The present instant, UTC."""
        return datetime.datetime.now(datetime.UTC)


def versions(names: tuple[str, ...] = DECIDING) -> dict[str, str]:
    """Package → installed version; `absent` where it is not installed."""
    return {name: _version(name) for name in names}


@functools.cache
def _version(name: str) -> str:
    # Once a process: every stage of a plan asks.
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent.parent
    try:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def environment() -> Environment:
    """The environment of this process. Imports no torch."""
    status = _git("status", "--porcelain")
    facts = {
        "machine": machine(),
        "python": platform.python_version(),
        "packages": versions(_RECORDED),
        "remote code allowed": remote_code_allowed(),
        "git": {"revision": _git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)},
    }
    return Environment(key=content_key("environment", **facts), text=json.dumps(facts, sort_keys=True))
