"""Does a sweep that is killed again and again end with the table of an undisturbed one? On a tiny random model.

    python benchmarks/chaos.py --kills 120

One sweep of three searched recipes (SFT, DPO, PPO on a shared SFT) runs undisturbed. The same sweep then runs in
another folder while, at random moments, the sweep itself or one of its workers gets SIGKILL; a killed sweep is started
again with the same command. Where it ends before there were enough kills, the next one begins, in a fresh folder. At
the end of each it must hold that

- `trials`, `scores` and `samples` are those of the undisturbed one, row for row, but for times;
- no stage was computed again after its artifact was complete, and no measurement after its rows were in a shard;
- every row that was visible in the store at some moment (it is looked at before each restart) is there later, once.

Counts are printed; exit code 1 where one of these does not hold.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent

SUITE = """
name: chaos
models: [{model}]
recipes:
  sft: [{{sft: {{steps: 2, batch_size: 2, learning_rate: {{min: 1e-5, max: 1e-3, log: true}}}}}}]
  start: [{{sft: {{steps: 2, batch_size: 2}}}}]
  dpo:
    - use: start
    - dpo: {{steps: 2, batch_size: 2, beta: {{min: 0.01, max: 0.5, log: true}}}}
  ppo:
    - use: start
    - reward_model: {{steps: 2, batch_size: 2, held_out_pairs: 2}}
    - ppo:
        {{iterations: 1, rollout_batch_size: 4, minibatch_size: 2, max_new_tokens: 6, kl_coef: {{min: 0.05, max: 0.2}}}}
measure:
  tasks: {{truthfulqa_mc1: {{limit: 6}}}}
  gold: {{limit: 8, max_new_tokens: 6}}
objectives: {{kl: minimize}}
precision: float32
seeds: [0, 1]
retries: 1000
budget: {{trials_per_cell: {trials}, batch: 2}}
"""

TABLES = {
    "trials": "SELECT recipe, model, trial, seed, phase, state, settings, objectives, artifact, reward_artifact "
    "FROM trials ORDER BY ALL",
    "scores": 'SELECT recipe, trial, seed, phase, split, artifact, target, task, metric, "value", n, measurement '
    "FROM scores ORDER BY ALL",
    "samples": "SELECT measurement, task, document, half, metric, score, response, expected FROM samples ORDER BY ALL",
}
ACKNOWLEDGED = {
    "stages": "SELECT stage FROM raw.stages",
    "measurements": "SELECT measurement FROM raw.measurements",
    "finished trials": "SELECT concat_ws('/', recipe, trial, seed, phase) FROM trials WHERE state = 'complete'",
}


class Sweep:
    """One results folder and the command that fills it."""

    def __init__(self, suite: Path, results: Path, seed: int) -> None:
        self.results, self.random = results, random.Random(seed)
        places = ["--results", str(results), "--reports", str(results / "reports"), "--workers", "2"]
        self.command = [sys.executable, "-m", "harness.cli", "sweep", str(suite), *places]
        self.kills: Counter[str] = Counter()
        self.starts = 0
        self.acknowledged: dict[str, set[str]] = {name: set() for name in ACKNOWLEDGED}
        self.lost: list[str] = []

    def start(self) -> "subprocess.Popen[bytes]":
        """Start it, its output into a file beside the results."""
        self.starts += 1
        self.results.mkdir(parents=True, exist_ok=True)
        with (self.results / "output.log").open("ab") as log:
            return subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log)

    def run_killed(self, kills: int, mean_s: float, share: float) -> int:
        """Run to the end with `kills` kills on the way, `share` of them of the sweep itself; returns the exit code."""
        child = self.start()
        while True:
            left = kills - self.kills.total()
            try:
                return child.wait(self.random.expovariate(1 / mean_s) if left > 0 else None)
            except subprocess.TimeoutExpired:
                pass
            if self.random.random() < share:
                child.kill()
                child.wait()
                self.kills["sweep"] += 1
                self.look()
                child = self.start()
            elif workers := _workers(child.pid):
                with_work = self.random.choice(workers)
                os.kill(with_work, signal.SIGKILL)
                self.kills["worker"] += 1

    def look(self) -> None:
        """What the store has acknowledged so far must be there for ever."""
        found = tables(self.results, ACKNOWLEDGED)
        for name, rows in found.items():
            keys = [row[0] for row in rows]
            self.lost += [f"{name}: {key} was there and is not" for key in self.acknowledged[name] - set(keys)]
            self.lost += [f"{name}: {key} is there {n} times" for key, n in Counter(keys).items() if n > 1]
            self.acknowledged[name] |= set(keys)


def _workers(pid: int) -> list[int]:
    try:
        children = psutil.Process(pid).children()
        return [p.pid for p in children if "harness.execute.worker" in p.cmdline()]
    except psutil.NoSuchProcess:
        return []


def tables(results: Path, wanted: dict[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of these queries in a results folder."""
    from harness.store import Store

    store = Store(results)
    if not store.shards.is_dir():
        return {}
    store.ingest()
    return {name: store.query(sql).rows() for name, sql in wanted.items()}


def computed_again(results: Path) -> tuple[int, list[str]]:
    """Stages computed in all (rows in the shards, doubled ones too), and what was computed although it was finished."""
    import polars as pl

    wrong: list[str] = []
    stages = [pl.read_parquet(f) for f in results.glob("shards/*/stages.parquet")]
    for row in pl.concat(stages).select("stage", "at").iter_rows(named=True):
        done = (results / "artifacts" / row["stage"] / "stage.json").stat().st_mtime
        if row["at"].timestamp() > done + 1:
            wrong.append(
                f"stage {row['stage']} was computed again {row['at'].timestamp() - done:.1f} s after it was done"
            )
    keys = pl.concat([pl.read_parquet(f).select("measurement") for f in results.glob("shards/*/measurements.parquet")])
    counts = Counter(keys["measurement"].to_list())
    wrong += [f"measurement {key} was made {n} times" for key, n in counts.items() if n > 1]
    return sum(f.height for f in stages), wrong


def look_back(killed: Sweep, theirs: dict[str, list[tuple[Any, ...]]]) -> tuple[dict[str, int], list[str]]:
    """What a sweep that was killed came to, and what is not as it must be."""
    killed.look()
    ours = tables(killed.results, TABLES)
    computed, again = computed_again(killed.results)
    differing = {name: len(set(theirs[name]) ^ set(ours[name])) for name in TABLES}
    # Rows that stand twice make no difference between sets.
    wrong = [f"{name}: {n} rows differ" for name, n in differing.items() if theirs[name] != ours[name]]
    counts = {
        "sweeps": 1,
        "starts": killed.starts,
        "stages": len(killed.acknowledged["stages"]),
        "stage_computations": computed,
        "computed_though_finished": len(again),
        "rows_that_differ": sum(differing.values()),
        "acknowledged_rows_lost_or_doubled": len(killed.lost),
    }
    return counts, [*wrong, *again, *killed.lost]


def killed_until(
    kills: int,
    suite: Path,
    folder: Path,
    theirs: dict[str, list[tuple[Any, ...]]],
    mean_s: float,
    share: float,
    seed: int,
) -> tuple[dict[str, int], list[str]]:
    """Sweeps, each in a fresh folder, until there were this many kills.

    Args:
        kills: in all.
        suite: what is run.
        folder: of their results.
        theirs: the tables of an undisturbed run.
        mean_s: seconds between kills (exponential).
        share: of the kills that hit the sweep, not a worker.
        seed: of the moments.

    Returns:
        Counts, and what is not as it must be.
    """
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    while counts["kills"] < kills and not wrong:
        killed = Sweep(suite, folder / f"killed-{counts['sweeps']}", seed + counts["sweeps"])
        if code := killed.run_killed(kills - counts["kills"], mean_s, share):
            wrong.append(f"exit code {code}: {(killed.results / 'output.log').read_text()[-2000:]}")
        found, problems = look_back(killed, theirs)
        counts.update({**found, "kills": killed.kills.total()})
        counts.update({f"kills_of_{what}": n for what, n in killed.kills.items()})
        wrong += problems
    return dict(counts), wrong


def tiny_model(folder: Path) -> Path:
    """A random Llama of two layers with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from harness.models import save_model

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {c: i for i, c in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2], pad_token=special[0]
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    save_model(LlamaForCausalLM(config), fast, folder)
    return folder


def main() -> int:
    """Run the sweeps, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--trials", type=int, default=8, help="tuning trials of each of the three cells")
    parser.add_argument("--mean", type=float, default=6.0, help="mean seconds between kills (exponential)")
    parser.add_argument("--share", type=float, default=0.5, help="share of kills that hit the sweep, not a worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep everything here (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        suite = folder / "chaos.yaml"
        suite.write_text(SUITE.format(model=tiny_model(folder / "model"), trials=options.trials))
        whole = Sweep(suite, folder / "whole", options.seed)
        began = time.monotonic()
        code = whole.start().wait()
        undisturbed = time.monotonic() - began
        if code:
            print((whole.results / "output.log").read_text()[-2000:])
            return 1
        theirs = tables(whole.results, TABLES)
        counts, wrong = killed_until(options.kills, suite, folder, theirs, options.mean, options.share, options.seed)
        seconds = time.monotonic() - began - undisturbed
        times = {"undisturbed_s": round(undisturbed, 1), "killed_s": round(seconds, 1)}
        rows = {name: len(rows) for name, rows in theirs.items()}
        print(json.dumps({**times, "rows": rows, **counts}, indent=1))
        for line in wrong[:20]:
            print(line)
        print("NOT EQUAL" if wrong else "equal to an undisturbed run")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
