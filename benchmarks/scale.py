"""Does all but the computing stay quick when a sweep is large? A simulated one, through the real store and commands.

    python benchmarks/scale.py                                  # 10,000 trials, 10 million sample rows
    python benchmarks/scale.py --trials 500 --samples 500000

A results folder is filled as a sweep of 104 cells (26 recipes of real methods on 4 base models) would have left it:
the artifacts with their manifests, and through `Store.append_many` the batches that a sweep and its workers write, in
the same grain (about six a trial). Keys are the planner's own, so that every command takes the folder for what it is,
and `harness sweep` finds nothing left to compute. Nothing is trained or scored: artifacts hold a file of a few bytes,
scores are drawn at random.

Then each command runs in a process of its own; its wall time and peak resident memory are printed beside its bound.
Ingest is measured twice: of measurements of 20,000 rows each, where the rows decide (at least 500,000 a second), and of
the whole folder made anew, where the number of files does (`rebuild`). Exit code 1 where a bound is missed.
"""

import argparse
import datetime
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos import tiny_model

if TYPE_CHECKING:
    import polars as pl

    from harness.execute import StageSpec
    from harness.resolve import Facts, Run

ROOT = Path(__file__).parent.parent
MODELS, SEEDS = 4, (0, 1)
SEARCHED = {
    "sft": "[{{sft: {{steps: {steps}, batch_size: 2, learning_rate: {{min: 1e-6, max: 1e-3, log: true}}}}}}]",
    "dpo": "[{{use: start}}, {{dpo: {{steps: {steps}, batch_size: 2, beta: {{min: 0.01, max: 0.5, log: true}}, "
    "learning_rate: {{min: 1e-6, max: 1e-3, log: true}}}}}}]",
}
OF_EACH = {"sft": 10, "dpo": 15}
CELLS = sum(OF_EACH.values()) * MODELS
METRICS = {"truthfulqa_mc1": ("acc",), "hellaswag": ("acc", "acc_norm")}
METRICS_OF_A_STAGE = json.dumps({"steps": 20, "step_ms": 12.5, "train_peak_mb": 80.0})
CURVE_STEPS, CURVE_METRICS = 20, ("loss", "learning_rate", "grad_norm")

INGEST = "from harness.store import Store; from pathlib import Path; import sys; Store(Path(sys.argv[1])).ingest()"
REBUILD = INGEST.replace("ingest", "rebuild")
QUESTION = "SELECT recipe, count(*) FROM trials WHERE phase = 'tune' GROUP BY ALL ORDER BY ALL"
BEST = "SELECT recipe, task, metric, max(value) FROM scores WHERE phase = 'final' GROUP BY ALL ORDER BY ALL"


def suite_text(models: list[Path], trials: int) -> str:
    """A suite of 26 recipes of which 25 are searched, on all models."""
    lines = ["name: scale", "question: Does it stay quick?", f"models: [{', '.join(map(str, models))}]", "recipes:"]
    lines.append("  start: [{sft: {steps: 2, batch_size: 2}}]")
    for kind, count in OF_EACH.items():
        lines += [f"  {kind}_{n:02}: {SEARCHED[kind].format(steps=n + 2)}" for n in range(1, count + 1)]
    tasks = ", ".join(f"{name}: {{limit: 6}}" for name in METRICS)
    lines += [
        f"measure: {{tasks: {{{tasks}}}}}",
        "objectives: {score: maximize}",
        "precision: float32",
        f"seeds: [{', '.join(map(str, SEEDS))}]",
        f"budget: {{trials_per_cell: {trials}, batch: 4}}",
    ]
    return "\n".join(lines) + "\n"


class Filler:
    """Writes what a sweep would have written, in its order."""

    def __init__(self, suite: Path, results: Path, documents: int) -> None:
        from harness.folders import Folders
        from harness.plan import gather_facts
        from harness.provenance import environment
        from harness.store import Store
        from harness.suite import load_suite

        self.suite = load_suite(suite)
        self.facts: Facts = gather_facts(self.suite)
        self.sweep = self.suite.sweep_id()
        self.store, self.folders, self.environment = Store(results), Folders(results), environment()
        self.random = random.Random(0)
        self.clock = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)
        self.made: set[str] = set()
        self.batches = self.samples = self.trials = 0
        self.texts = _texts(documents)

    def append(self, tables: "dict[str, list[dict[str, object]] | pl.DataFrame]") -> None:
        self.store.append_many(tables)
        self.batches += 1

    def now(self) -> datetime.datetime:
        self.clock += datetime.timedelta(seconds=1)
        return self.clock

    def fill(self) -> None:
        """Every cell's tuning and final runs, and the base models'."""
        from harness.resolve import Run

        self._event("running")
        for model in self.suite.models:
            self._run(Run("base", model, self.suite.seeds[0], {}), 0, "final")
            for recipe in self.suite.recipe_order():
                before: dict[str, Any] = {owner: {} for owner in self.suite.needs(recipe)}
                best, chosen = (-1.0, 0), {}
                space = self.suite.search_space(recipe)
                for trial in range(self.suite.budget.trials_per_cell if space else 0):
                    settings = {name: self.random.uniform(s.low, s.high) for name, s in space.items()}
                    run = Run(recipe, model, self.suite.seeds[0], {**before, recipe: settings})
                    value = self._run(run, trial, "tune")
                    if (value, -trial) > best:
                        best, chosen = (value, -trial), settings
                for seed in self.suite.seeds:
                    self._run(Run(recipe, model, seed, {**before, recipe: chosen}), -best[1], "final")
        self._event("complete")

    def _event(self, state: str) -> None:
        row = {
            "sweep": self.sweep, "suite": self.suite.name, "question": self.suite.question, "state": state,
            "yaml": self.suite.text, "suite_json": json.dumps(self.suite.model_dump(mode="json")),
            "plan_json": "{}", "data": self.facts.source.label(), "environment": self.environment.key, "at": self.now(),
        }  # fmt: skip
        self.append({"sweep_events": [row], "environment_rows": [self.environment.row()]})

    def _run(self, run: "Run", trial: int, phase: Any) -> float:
        from harness.measurements import measure_specs
        from harness.resolve import chain, chain_ends

        where = {"sweep": self.sweep, "recipe": run.recipe, "model": run.model, "trial": trial, "seed": run.seed}
        settings = json.dumps(dict(run.settings.get(run.recipe, {})), sort_keys=True)
        blank = {"objectives": None, "artifact": None, "reward_artifact": None, "seconds": None}
        event = {**where, "phase": phase, "settings": settings, **blank}
        self.append({"trial_events": [{**event, "state": "running", "at": self.now()}]})
        specs = chain(self.facts, run)
        for position, spec in enumerate(specs):
            reused = not self._stage(spec)
            link = {**where, "position": position, "step": spec.method, "stage": spec.key, "reused": reused}
            self.append({"stage_links": [link]})
        models = chain_ends(self.facts, run, specs)
        measured = measure_specs(self.facts, run.recipe, models, (phase,), frozenset({"task"}), "")
        links = [
            {**where, "phase": phase, "artifact": models.artifact, "target": target.name, "measurement": item.key}
            for target, spec in measured
            for item in spec.items
        ]
        self.append({"measurement_links": links})
        values = [
            self._measure(item, models.artifact, spec.target, phase) for _, spec in measured for item in spec.items
        ]
        value = sum(values) / len(values)
        done = {"objectives": json.dumps({"score": value}) if phase == "tune" else None, "artifact": models.artifact}
        self.append({"trial_events": [{**event, **done, "state": "complete", "seconds": 9.0, "at": self.now()}]})
        self.trials += 1
        return value

    def _stage(self, spec: "StageSpec") -> bool:
        """Whether the stage had yet to be made."""
        if spec.key in self.made:
            return False
        self.made.add(spec.key)
        row = {
            "stage": spec.key, "method": spec.method, "method_version": spec.version, "params": json.dumps(spec.params),
            "inputs": json.dumps(spec.inputs), "dataset": spec.dataset, "dataset_fingerprint": spec.dataset_fingerprint,
            "seed": spec.seed, "precision": spec.precision, "seconds": 5.0, "peak_rss_mb": 900.0,
            "metrics": METRICS_OF_A_STAGE, "environment": self.environment.key, "at": self.now(),
        }  # fmt: skip
        curve = [
            {"stage": spec.key, "step": step, "metric": metric, "value": self.random.random()}
            for step in range(1, CURVE_STEPS + 1)
            for metric in CURVE_METRICS
        ]
        about = [
            {"curve": spec.key, "stage": spec.key, "method": spec.method, "metric": metric, "total": CURVE_STEPS}
            | {"finished": True, "logged": len(curve)}
            for metric in CURVE_METRICS
        ]
        tables: dict[str, Any] = {"stages": [row], "training_steps": curve, "training_curves": about}
        self.append({**tables, "environment_rows": [self.environment.row()]})
        self.folders.put(
            spec.key,
            {**spec.model_dump(exclude={"rungs"}), "seconds": 5.0, "metrics": {}, "produces": "policy"},
            lambda folder: _write_model(folder, spec.key),
        )
        return True

    def _measure(self, item: Any, artifact: str, target: dict[str, Any], phase: str) -> float:
        if item.key in self.made:
            raise RuntimeError("two runs share a measurement")
        self.made.add(item.key)
        row = {
            "measurement": item.key, "artifact": artifact, "target": json.dumps(target), "kind": "task",
            "task": item.task, "settings": json.dumps(item.settings), "data": self.facts.source.label(), "seconds": 3.0,
            "environment": self.environment.key, "at": self.now(),
        }  # fmt: skip
        frame, value = self._samples(item.key, item.task, phase)
        self.samples += frame.height
        self.append({"measurements": [row], "samples": frame, "environment_rows": [self.environment.row()]})
        return value

    def _samples(self, key: str, task: str, phase: str) -> "tuple[pl.DataFrame, float]":
        import numpy as np
        import polars as pl

        generator = np.random.default_rng(self.random.randrange(2**32))
        texts = self.texts[task, phase]
        parts = []
        for metric in METRICS[task]:
            scores = (generator.random(texts.height) < 0.3 + 0.2 * self.random.random()).astype(np.float64)
            said = pl.Series("response", generator.integers(0, 4, texts.height)).replace_strict(
                {0: "the first choice", 1: "the second", 2: "the third one", 3: "none of them"}
            )
            columns = [
                pl.lit(key).alias("measurement"),
                pl.lit(metric).alias("metric"),
                pl.Series("score", scores),
                said,
            ]
            parts.append(texts.with_columns(columns))
        return pl.concat(parts), float(scores.mean())


def _write_model(folder: Path, key: str) -> None:
    """A model's files with one number in them."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = json.dumps({"__metadata__": {"format": "pt", "stage": key}, "model.norm.weight": tensor}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))


def _texts(documents: int) -> "dict[tuple[str, str], pl.DataFrame]":
    """The documents of each task and half: what is the same in every measurement of them."""
    import polars as pl

    found = {}
    for task, half in itertools.product(METRICS, ("tune", "final")):
        names = [hashlib.sha256(f"{task}/{half}/{n}".encode()).hexdigest() for n in range(documents)]
        found[task, half] = pl.DataFrame(
            {
                "document": [n[:16] for n in names],
                "half": half,
                "prompt_hash": [n[16:32] for n in names],
                "expected": [f"choice {n[0]}" for n in names],
                "prompt": [f"Question {n[:12]}: which of these is it? " + f"{n} " * 3 for n in names],
            }
        )
    return found


@dataclass(frozen=True)
class Measured:
    """One command: wall seconds, seconds on a core, peak resident memory in MiB, exit code, the end of its output."""

    seconds: float
    cpu_s: float
    peak_mb: float
    code: int
    output: str


def measure(command: list[str], folder: Path) -> Measured:
    """Run it in a process of its own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "COLUMNS": "200"}
    log = folder / "output.log"
    with log.open("wb") as out:
        started = time.monotonic()
        child = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(encoding="utf-8", errors="replace")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, child.returncode, text[-1500:])


def commands(suite: Path, results: Path) -> Iterator[tuple[str, list[str], float]]:
    """Name, command, and the bound on its wall time in seconds (start-up of Python and torch included)."""
    harness = [sys.executable, "-m", "harness.cli"]
    here = ["--results", str(results)]
    page = ["--reports", str(results / "reports")]
    yield "plan", [*harness, "plan", str(suite), *here], 30
    yield "status", [*harness, "status", *here], 5
    yield "sql, trials", [*harness, "sql", QUESTION, *here], 5
    yield "sql, scores", [*harness, "sql", BEST, *here], 10
    yield "report", [*harness, "report", *here, *page], 60
    yield "export tensorboard, every run", [*harness, "export", "tensorboard", *here], 120
    yield "sweep, nothing left (with its report)", [*harness, "sweep", str(suite), *here, *page, "--workers", "1"], 120


def main() -> int:
    """Fill the folder, run the commands, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000, help=f"tuning trials in all, over {CELLS} searched cells")
    parser.add_argument("--samples", type=int, default=10_000_000, help="sample rows in all, about")
    parser.add_argument("--folder", type=Path, help="keep the results here, and use them again if they are there")
    parser.add_argument("--only", nargs="+", help="only these commands (ingest, rebuild, plan, status, …)")
    parser.add_argument("--memory", type=float, default=4000, help="bound on the peak memory of each command, MiB")
    parser.add_argument("--fill", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        filled = fill(options.folder, options.trials, options.samples)
        (options.folder / "filled.json").write_text(json.dumps(filled))
        return 0
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        results, suite, facts = folder / "results", folder / "scale.yaml", folder / "filled.json"
        if not facts.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            # In a process of its own: what a child takes at its start counts as its peak.
            amounts = ["--trials", str(options.trials), "--samples", str(options.samples)]
            subprocess.run([sys.executable, __file__, "--fill", *amounts, "--folder", str(folder)], check=True)
        filled = json.loads(facts.read_text())
        print(json.dumps(filled, indent=1), flush=True)
        return report(folder, suite, results, filled, options)


def fill(folder: Path, trials: int, samples: int) -> dict[str, Any]:
    """Make the models, the suite and the results folder; returns what there is of each."""
    suite, results = folder / "scale.yaml", folder / "results"
    first = tiny_model(folder / "models" / "0")
    models = [first, *(Path(shutil.copytree(first, folder / "models" / str(n))) for n in range(1, MODELS))]
    for number, model in enumerate(models):
        # Another content, so another fingerprint: the models are four and not one.
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "name_of_the_copy": number}))
    each = max(1, trials // CELLS)
    suite.write_text(suite_text(models, each))
    runs = CELLS * each + (CELLS + MODELS) * len(SEEDS) + MODELS
    documents = max(2, samples // runs // sum(map(len, METRICS.values())))
    # Thrown away after the measurement: to wait for the disk at each of some 60,000 batches would take an hour.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # as said
    started = time.monotonic()
    filler = Filler(suite, results, documents)
    filler.fill()
    size = sum(f.stat().st_size for f in (results / "shards").rglob("*.parquet"))
    return {
        "cells": CELLS + MODELS, "runs": filler.trials, "sample_rows": filler.samples, "batches": filler.batches,
        "artifacts": sum(1 for _ in (results / "artifacts").iterdir()), "shards_mb": round(size / 2**20),
        "filled_in_s": round(time.monotonic() - started),
    }  # fmt: skip


def bulk(results: Path, samples: int) -> int:
    """A results folder with large measurements only; returns its rows."""
    import numpy as np
    import polars as pl

    from harness.store import Store

    store, size = Store(results), 20_000
    if store.shards.exists():
        return sum(1 for _ in store.shards.glob("*/samples.parquet")) * size
    texts = pl.concat(_texts(size // 2)["hellaswag", half] for half in ("tune", "final"))
    generator = np.random.default_rng(0)
    for number in range(max(1, samples // size)):
        scores = pl.Series("score", generator.integers(0, 2, size).astype(np.float64))
        said = scores.replace_strict({0.0: "the first choice", 1.0: "the second"}).alias("response")
        key = [pl.lit(f"{number:032x}").alias("measurement"), pl.lit("acc").alias("metric")]
        store.append("samples", texts.with_columns(*key, scores, said))
    return max(1, samples // size) * size


def report(folder: Path, suite: Path, results: Path, filled: dict[str, Any], options: argparse.Namespace) -> int:
    """Run the commands, print a line for each; 1 where a bound is missed."""
    bad = 0
    print(f"{'what':38} {'seconds':>8} {'bound':>6} {'CPU s':>7} {'peak MiB':>9}", flush=True)

    def line(name: str, found: Measured, bound: float, more: str = "") -> None:
        nonlocal bad
        failed = found.code != 0 or found.seconds > bound or found.peak_mb > options.memory
        bad += failed
        figures = f"{found.seconds:8.1f} {bound:6.0f} {found.cpu_s:7.1f} {found.peak_mb:9.0f}"
        print(f"{name:38} {figures} {more}{'  MISSED' if failed else ''}")
        if found.code:
            print(found.output)
        sys.stdout.flush()

    rows = bulk(folder / "bulk", options.samples) if not options.only or "ingest" in options.only else 0
    if rows:
        for old in (folder / "bulk").glob("harness.duckdb*"):
            old.unlink()
        found = measure([sys.executable, "-c", INGEST, str(folder / "bulk")], folder)
        line("ingest, 20,000 rows a batch", found, rows / 500_000 + 1, f"{rows / found.seconds:,.0f} rows/s")
    if not options.only or "rebuild" in options.only or not (results / "harness.duckdb").exists():
        found = measure([sys.executable, "-c", REBUILD, str(results)], folder)
        each = 1e6 * found.seconds / filled["batches"]
        line("rebuild of the whole folder", found, filled["batches"] / 1000 + 2, f"{each:.0f} µs a batch")
    for name, command, bound in commands(suite, results):
        if options.only and not any(name.startswith(o) for o in options.only):
            continue
        found = measure(command, folder)
        line(name, found, bound)
        if name.startswith("sweep") and "Nothing was left to compute" not in found.output:
            print("it computed something, or did not end:", found.output, sep="\n")
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
