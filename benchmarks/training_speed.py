"""How long does a step of DPO take here, and how long by TRL's own trainer? Side by side, in turns.

    python benchmarks/training_speed.py [--precisions float32 bfloat16] [--steps 8] [--batch-size 8] [--rows long]

Both sides train the bundled 135M model on the bundled preferences: the same tokens in the same order, with the same
settings, each in a process of its own on one thread. They take steps in turns, so that whatever else the machine does
falls on both. TRL's runs at its best on a CPU: reference log-probabilities computed beforehand, no gradient
checkpointing, and the quicker of its attentions (`--attention`); its padding-free batches need FlashAttention, its
Liger kernel Triton. The first step, which allocates, is not counted. `--rows long` joins prompts and answers of three
rows.

The ratio is TRL's time over ours, the geometric mean over the steps with its 95 % t interval, in wall time and in CPU
time, which a busy machine disturbs less. Exit code 1 where the CPU ratio is below `--target`, or the losses of a step
differ by more than rounding makes them (1e-3 in float32, 3e-2 in bfloat16).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _intervals import ratio

CLOSE = {"float32": 1e-3, "bfloat16": 3e-2}


class Turns:
    """Sends the figures of each step and the time it took, and waits for its next turn."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __call__(self, _step: int, _total: int, metrics: Mapping[str, float]) -> None:
        spent = {"wall": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
        print(json.dumps({"loss": metrics["loss"], **spent}), flush=True)
        if not sys.stdin.readline():
            # The other side of the pipe has ended.
            os._exit(0)
        self._start()


def _pairs(work: Mapping[str, Any], tokenizer: Any) -> list[dict[str, list[int]]]:
    from harness.data import DataSource, load_training_set
    from methods._rows import preference_rows

    rows, _ = load_training_set("preferences", "preferences", DataSource("bundled"))
    pairs = preference_rows(rows, tokenizer, 512)
    if work["rows"] == "bundled":
        return pairs
    triples = zip(pairs[::3], pairs[1::3], pairs[2::3], strict=False)
    return [{name: [token for row in three for token in row[name]] for name in three[0]} for three in triples]


def side(work: Mapping[str, Any]) -> None:
    """Train in this process, by one of the two."""
    import datasets
    import torch
    from transformers import PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from harness.method import Context
    from harness.models import load_model, resolve_model
    from methods._rows import training_order
    from methods._shared_prompt import shared_attention
    from methods._trl import rows_wanted, train, training_arguments
    from methods.dpo import DPO, DPOParams

    torch.set_num_threads(1)
    loaded = load_model(resolve_model("smollm2-135m-instruct"))
    params = DPOParams(steps=work["steps"], batch_size=work["batch_size"], learning_rate=1e-5)
    pairs, turns = _pairs(work, loaded.tokenizer), Turns()
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(0, Path(scratch), work["precision"], turns)
        if work["side"] == "ours":
            with shared_attention(loaded.model) as shared:
                if not shared:
                    raise SystemExit("the shared prompt is not computed once")
                trainer = DPO().trainer(loaded.model, loaded.tokenizer, pairs, params, context)
                turns._start()
                train(trainer, context, {})
            return

        class Theirs(DPOTrainer):  # type: ignore[misc]  # trl is untyped
            """TRL's own, on rows that are tokens already."""

            def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
                return dataset

        class Report(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
            def on_log(
                self, _args: object, _state: object, _control: object, logs: dict[str, float], **_: object
            ) -> None:
                if "loss" in logs:
                    turns(0, 0, logs)

        loaded.model.set_attn_implementation(work["attention"])
        order = training_order(len(pairs), rows_wanted(params), 0)
        found = Theirs(
            model=loaded.model,
            args=training_arguments(
                DPOConfig,
                params,
                params.learning_rate,
                context,
                "cpu",
                beta=params.beta,
                max_length=None,
                precompute_ref_log_probs=True,
                precompute_ref_batch_size=params.batch_size,
            ),
            train_dataset=datasets.Dataset.from_list([pairs[i] for i in order]),
            processing_class=loaded.tokenizer,
            callbacks=[Report()],
        )
        found.remove_callback(PrinterCallback)
        turns._start()
        found.train()


def compare(work: Mapping[str, Any], names: tuple[str, ...] = ("ours", "theirs")) -> dict[str, list[dict[str, float]]]:
    """The figures of each step of each side, taken in turns."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    running = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--side", json.dumps({**work, "side": name})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if work["verbose"] else subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        for name in names
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for step in range(work["steps"]):
            for name, process in running.items():
                assert process.stdin is not None
                assert process.stdout is not None
                if step:
                    process.stdin.write("\n")
                    process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"{name} ended early: run again with --verbose")
                found[name].append(json.loads(line))
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    return found


def main() -> int:
    """Print a row for each precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]  # it has one
    parser.add_argument("--precisions", nargs="+", choices=list(CLOSE), default=list(CLOSE))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8, help="pairs")
    parser.add_argument("--rows", choices=["bundled", "long"], default="bundled")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa", help="TRL's")
    parser.add_argument("--target", type=float, default=1.5)
    parser.add_argument("--verbose", action="store_true", help="what the two processes say")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        side(json.loads(given.side))
        return 0
    reached = True
    for precision in given.precisions:
        names = ("steps", "batch_size", "rows", "attention", "verbose")
        work = {**{name: getattr(given, name) for name in names}, "precision": precision, "steps": given.steps + 1}
        found = compare(work)
        ours, theirs = found["ours"], found["theirs"]
        apart = max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True))
        low, high = (choose(step["loss"] for step in ours) for choose in (min, max))
        print(f"{precision}: losses between {low:.4f} and {high:.4f}, at most {apart:.1e} apart")
        for clock in ("wall", "cpu"):
            mine, other = ([step[clock] for step in steps[1:]] for steps in (ours, theirs))
            centre, low, high = ratio(other, mine)
            print(
                f"  {clock:4} {sum(mine) / len(mine):6.2f} s a step, TRL {sum(other) / len(other):6.2f} s: "
                f"{centre:.2f} times as fast [{low:.2f}, {high:.2f}]",
                flush=True,
            )
        reached = reached and centre >= given.target and apart <= CLOSE[precision]
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
