"""Runs of `_plain_online.py` from outside: the models and the old TRL they need, and pipes to their figures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _plain_online import OLD_TRL
from chaos import tiny_model

from harness.models import cache_folder, resolve_model

__all__ = ["ROOT", "bundled_prompts", "environment", "old_trl", "prepare", "running", "train_stage"]

ROOT = Path(__file__).parent.parent

STEPS = {
    # A random model must first learn to write, and the reward model to tell answers apart, for there to be a curve.
    "tiny": ({"steps": 150, "learning_rate": 5e-3}, {"steps": 100, "learning_rate": 2e-3}),
    "bundled": (None, {"steps": 16, "learning_rate": 1e-4}),
}


def old_trl(folder: Path | None) -> Path:
    """The folder of TRL's last release with PPO; installed there, alone, where it is not yet.

    Raises:
        SystemExit: it cannot be installed.
    """
    folder = folder or cache_folder() / "benchmarks" / f"trl-{OLD_TRL}"
    if not (folder / "trl").is_dir():
        print(f"installing trl {OLD_TRL}, without its dependencies, for this benchmark alone", file=sys.stderr)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        done = subprocess.run([*command, f"trl=={OLD_TRL}"], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"trl {OLD_TRL} could not be installed:\n{done.stderr}")
    return folder


def bundled_prompts() -> list[dict[str, Any]]:
    """The bundled training prompts, as chats."""
    from harness.data import DataSource, load_training_set

    rows, _ = load_training_set("prompts", "prompts", DataSource("bundled"))
    return [{"prompt": row["prompt"]} for row in rows]


def train_stage(name: str, policy: Path, settings: Mapping[str, object], folder: Path) -> Path:
    """Train by one of our methods on the bundled set of its kind, in fp32, and save."""
    from harness.data import DataSource, load_training_set
    from harness.method import Context, Inputs, Trained, find_method
    from harness.models import load_model, save_model

    method = find_method(name)
    kind = method.dataset_kind
    if kind is None:
        raise SystemExit(f"{name} trains on no dataset")
    rows, _ = load_training_set(kind, kind, DataSource("bundled"))
    inputs = Inputs({"policy": policy}, lambda _role, found: load_model(found), rows)
    context = Context(0, folder / "scratch", "float32", lambda _step, _total, _figures: None)
    made = method().run(inputs, method.params.model_validate(settings), context)
    if not isinstance(made, Trained):
        raise SystemExit(f"{name} leaves no model")
    save_model(made.model, made.tokenizer, folder)
    return folder


def prepare(model: str, folder: Path) -> dict[str, str]:
    """The policy (also the reference) and a reward model trained from it, as folders by role.

    Args:
        model: `tiny`, a random one that is first taught to write; or `bundled`, the 135M instruct model.
        folder: where they are written; those that are there are used again.
    """
    import torch

    torch.set_num_threads(1)
    taught, rewarded = STEPS[model]
    policy, reward = folder / "policy", folder / "reward"
    if model == "bundled":
        policy = resolve_model("smollm2-135m-instruct")
    elif not policy.exists():
        train_stage("sft", tiny_model(folder / "random"), taught or {}, policy)
    if not reward.exists():
        train_stage("reward_model", policy, rewarded, reward)
    return {"policy": str(policy), "reference": str(policy), "reward": str(reward)}


def environment(threads: int, libraries: Path | None = None) -> dict[str, str]:
    """Of a child: no network, no telemetry, this many threads, and a folder of libraries before the installed ones."""
    paths = [*([str(libraries)] if libraries else []), str(ROOT)]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }


class Run:
    """A run in a process of its own, as an iterator over its iterations' figures; a paced one takes one at a time."""

    def __init__(self, work: Mapping[str, object], folder: Path, libraries: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        (folder / "work.json").write_text(json.dumps(work))
        command = [sys.executable, str(Path(__file__).with_name("_plain_online.py")), str(folder / "work.json")]
        with self._log.open("w") as log:
            self._child = subprocess.Popen(
                command,
                env=environment(int(str(work["threads"])), libraries),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._paced, self._asked = bool(work["paced"]), False

    def __iter__(self) -> Iterator[dict[str, float]]:
        return self

    def __next__(self) -> dict[str, float]:
        """The next iteration's figures.

        Raises:
            SystemExit: the run failed.
        """
        if self._child.stdin is None or self._child.stdout is None:
            raise RuntimeError("the run has no pipes")
        if self._paced and self._asked:
            self._child.stdin.write("\n")
            self._child.stdin.flush()
        self._asked = True
        for line in self._child.stdout:
            # Trainers print, too.
            if line.startswith('{"'):
                found: dict[str, float] = json.loads(line)
                return found
        if self._child.wait():
            raise SystemExit(f"a run failed:\n{self._log.read_text()[-3000:]}")
        raise StopIteration

    def close(self) -> None:
        """End it, also in the middle."""
        self._child.kill()
        self._child.wait()


@contextmanager
def running(work: Mapping[str, object], folder: Path, libraries: Path | None = None) -> Iterator[Run]:
    """A run that ends with the block."""
    run = Run(work, folder, libraries)
    try:
        yield run
    finally:
        run.close()
