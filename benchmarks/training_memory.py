"""What the memory options of training cost and save: the same SFT steps of the bundled model under each.

    python benchmarks/training_memory.py [--steps 6] [--only adafactor lora]

Each runs in a fresh process on one thread, in fp32. `step` is the median step after the first; `peak` the highest
resident memory over what the loaded model took before; `state` what the optimizer keeps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "accumulation": {"batch_size": 2, "gradient_accumulation": 4},
    "checkpointing": {"gradient_checkpointing": True},
    "adafactor": {"optimizer": "adafactor"},
    "adamw_8bit": {"optimizer": "adamw_8bit"},
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-2},
    "lora": {"lora_rank": 16, "learning_rate": 2e-4},
    "lora, checkpointing": {"lora_rank": 16, "learning_rate": 2e-4, "gradient_checkpointing": True},
}


def one(settings: dict[str, object]) -> dict[str, float]:
    """Train in this process and return the metrics that the stage would store."""
    import torch

    from harness.data import DataSource, load_training_set
    from harness.method import Context, Inputs, find_method
    from harness.models import load_model, resolve_model

    torch.set_num_threads(1)
    method = find_method("sft")
    rows, _ = load_training_set("instructions", "instructions", DataSource("bundled"))
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Inputs(
            {"policy": resolve_model("smollm2-135m-instruct")}, lambda role, folder: load_model(folder), rows
        )
        context = Context(0, Path(scratch), "float32", lambda step, total, metrics: None)
        return dict(method().run(inputs, method.params.model_validate(settings), context).metrics)


def main() -> int:
    """Print a row for each option."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]  # it has one
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(json.loads(given.one))))
        return 0
    print(f"{'option':22} {'step, ms':>10} {'peak, MiB':>10} {'state, MiB':>11} {'loss':>7}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in given.only:
        settings = {"steps": given.steps, "batch_size": 8, **OPTIONS[name]}
        command = [sys.executable, __file__, "--one", json.dumps(settings)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name:22} failed: {done.stderr.strip().splitlines()[-1]}")
            return 1
        found = json.loads(done.stdout.splitlines()[-1])
        figures = (found["step_ms"], found.get("train_peak_mb", float("nan")), found["optimizer_state_mb"])
        print(
            f"{name:22} {figures[0]:10.0f} {figures[1]:10.0f} {figures[2]:11.0f} {found['final_loss']:7.3f}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
