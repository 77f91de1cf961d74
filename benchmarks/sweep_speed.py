"""How much faster is a whole sweep than a plain script that runs the same configurations by TRL and lm-eval?

    python benchmarks/sweep_speed.py                        # 8 DPO and 8 PPO trials, the bundled model: hours
    python benchmarks/sweep_speed.py --trials 2 --plain 1 --scale 0.25     # a small version

`harness sweep` runs first: one SFT and one reward model, trials of DPO and PPO searched on them, each scored on four
benchmarks, final runs, the report. Its wall time is that of the command, from nothing to the report.

Then the plain script does what the sweep has decided to do: it too trains SFT and reward model once, then runs each
configuration in a fresh process, trained by TRL (DPO of the installed release, PPO of 1.12, the last with one) and
scored by lm-eval's `hf` model, on the documents that the sweep scored it on. Numbers of steps, batches, lengths and the
precision are the sweep's; TRL's PPO has no value head, so it trains a value model. Where `--plain` runs some
configurations of each kind only, the rest is taken to cost as much, and the line says so.

Parts that are done are kept in `--folder`, with what they cost, and not run again: a run that was interrupted goes on
with the next part, and one with a larger `--plain` adds to it.

Both get the same threads: `--workers` runs at once in the sweep, one process after another with as many threads in the
script. The ratio is given in wall time and in CPU time, which a busy machine disturbs less.

Equal scores: models that the sweep left are scored by `hf` (with `logits_cache=False`, its cache is not exact) on the
same documents, and every figure is compared. The means of both sides' trials are printed too, for the eye: they are
different trainings of the same configurations. Exit code 1 where a figure of an equal model differs by more than
`--tolerance`, or where the ratio of CPU times is below `--target`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _plain_runs import ROOT, environment, old_trl
from chaos import tiny_model

TASKS: dict[str, dict[str, int]] = {
    "mmlu_miscellaneous": {"num_fewshot": 5},
    "hellaswag": {},
    "truthfulqa_mc2": {},
    "gsm8k": {"max_gen_toks": 48},
}
FIXED: dict[str, dict[str, Any]] = {
    "sft": {"steps": 24, "batch_size": 8, "learning_rate": 2e-5},
    "reward_model": {"steps": 36, "batch_size": 8, "learning_rate": 1e-4},
    "dpo": {"steps": 16, "batch_size": 8},
    "ppo": {"iterations": 14, "rollout_batch_size": 32, "minibatch_size": 16, "max_new_tokens": 32},
}
SEARCHED = {
    "dpo": {"learning_rate": (8e-6, 2.5e-5), "beta": (0.05, 0.3)},
    "ppo": {"learning_rate": (8e-6, 2e-5), "kl_coef": (0.03, 0.1)},
}


@dataclass
class Cost:
    """Seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def times(self, factor: float) -> "Cost":
        return Cost(self.wall * factor, self.cpu * factor)


@dataclass
class Configuration:
    """What the sweep ran under one recipe with one assignment of settings and one seed."""

    recipe: str
    settings: dict[str, Any]
    seed: int
    artifact: str
    halves: set[str] = field(default_factory=set)
    scores: dict[tuple[str, str, str], tuple[float, int]] = field(default_factory=dict)
    """(half, task, metric) → mean, documents."""

    def mean(self, task: str, metric: str) -> float:
        """Over the documents of all halves that it was scored on."""
        found = [self.scores[half, task, metric] for half in self.halves]
        return sum(value * n for value, n in found) / sum(n for _, n in found)


def suite_text(model: Path | str, options: argparse.Namespace) -> str:
    """The sweep's suite; JSON is YAML."""
    searched = {
        name: {setting: {"min": low, "max": high, "log": True} for setting, (low, high) in space.items()}
        for name, space in SEARCHED.items()
    }
    fixed = settings_of(options)
    tasks = {name: {**given, "limit": options.documents} for name, given in TASKS.items()}
    return json.dumps(
        {
            "name": "sweep_speed",
            "models": [str(model)],
            "data": "bundled",
            "recipes": {
                "sft": [{"sft": fixed["sft"]}],
                "dpo": [{"use": "sft"}, {"dpo": fixed["dpo"] | searched["dpo"]}],
                "ppo": [
                    {"use": "sft"},
                    {"reward_model": fixed["reward_model"]},
                    {"ppo": fixed["ppo"] | searched["ppo"]},
                ],
            },
            "targets": [{"name": "cpu", "device": "cpu", "dtype": options.dtype}],
            "measure": {"tasks": tasks, "noise_floor": False},
            "objectives": {"score": "maximize"},
            "precision": options.precision,
            "seeds": [0],
            "budget": {"trials_per_cell": options.trials, "batch": min(4, options.trials)},
        },
        indent=1,
    )


def settings_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The methods' fixed settings, shorter by `--scale`."""
    return {
        name: {k: max(1, round(v * options.scale)) if k in ("steps", "iterations") else v for k, v in given.items()}
        for name, given in FIXED.items()
    }


def timed(command: Sequence[str], threads: int, log: Path, libraries: Path | None = None) -> Cost:
    """Run to the end, children included.

    Raises:
        SystemExit: it failed.
    """
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("w") as out:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(threads, libraries), stdout=out, stderr=out, check=False
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … failed:\n{log.read_text()[-3000:]}")
    spent = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return Cost(time.perf_counter() - start, spent)


def what_ran(results: Path) -> list[Configuration]:
    """The configurations of a finished sweep, each once, with its scores."""
    from harness.store import Store

    store = Store(results)
    store.ingest()
    found: dict[str, Configuration] = {}
    trials = store.query("SELECT recipe, seed, settings, artifact FROM trials WHERE state = 'complete' ORDER BY ALL")
    for recipe, seed, settings, artifact in trials.rows():
        found.setdefault(artifact, Configuration(recipe, json.loads(settings), seed, artifact))
    scores = store.query('SELECT artifact, split, task, metric, "value", n FROM scores')
    for artifact, half, task, metric, value, n in scores.rows():
        if artifact in found:
            found[artifact].halves.add(half)
            found[artifact].scores[half, task, metric] = (value, n)
    return list(found.values())


def documents(options: argparse.Namespace) -> dict[str, dict[str, list[int]]]:
    """Half → task → numbers of its documents."""
    from harness.data import DataSource
    from harness.measure.tasks import load_tasks
    from harness.suite import Task

    asked = {name: Task(**given, limit=options.documents) for name, given in TASKS.items()}
    loaded = {name: leaves[0] for name, leaves in load_tasks(DataSource("bundled"), asked).items()}
    return {
        half: {name: [i for i, h in enumerate(leaf.halves) if h == half] for name, leaf in loaded.items()}
        for half in ("tune", "final")
    }


class Plain:
    """The plain script: a job in a fresh process, one after the other."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.documents = documents(options)

    def job(
        self,
        method: str | None,
        start: Path,
        settings: Mapping[str, Any],
        *,
        seed: int = 0,
        reward: Path | None = None,
        save: Path | None = None,
        halves: Sequence[str] = (),
        cache: bool = True,
    ) -> tuple[Cost, dict[str, Any]]:
        """Run one; what it cost and found. Several halves are scored together."""
        from harness.keys import content_key
        from harness.method import find_method

        full = find_method(method).params.model_validate(settings).model_dump(mode="json") if method else {}
        chosen = {name: sorted(i for half in halves for i in self.documents[half][name]) for name in TASKS}
        work: dict[str, Any] = {
            "method": method,
            "start": str(start),
            "reward": str(reward),
            "settings": full,
            "seed": seed,
            "save": str(save) if save else None,
            "tasks": TASKS if halves else {},
            "documents": chosen,
            "precision": self.options.precision,
            "dtype": self.options.dtype,
            "batch": self.options.hf_batch,
            "cache": cache,
            "threads": self.options.workers,
        }
        name = f"{method or 'score'}-{content_key('job', **work)[:12]}"
        out, told, cost_file = (self.folder / f"{name}.{kind}" for kind in ("json", "work.json", "cost.json"))
        if cost_file.exists():
            return Cost(**json.loads(cost_file.read_text())), json.loads(out.read_text())
        told.write_text(json.dumps({**work, "out": str(out)}))
        script = Path(__file__).with_name("_plain_sweep.py")
        libraries = old_trl(self.options.trl) if method == "ppo" else None
        cost = timed([sys.executable, str(script), str(told)], self.options.workers, out.with_suffix(".log"), libraries)
        cost_file.write_text(json.dumps(asdict(cost)))
        return cost, json.loads(out.read_text())


def plain_sweep(plain: Plain, base: Path, ran: Sequence[Configuration], options: argparse.Namespace) -> Cost:
    """Everything the sweep did, plainly; prints a line for each part."""
    fixed, folder = settings_of(options), plain.folder
    start, reward = folder / "sft", folder / "reward"
    total = Cost()
    for name, before, into in (("sft", base, start), ("reward_model", start, reward)):
        cost, _ = plain.job(name, before, fixed[name], save=into)
        line(f"plain {name}", cost)
        total += cost
    for recipe in ("dpo", "ppo", "base", "sft"):
        those = sorted((c for c in ran if c.recipe == recipe), key=lambda c: len(c.halves))
        if not those:
            continue
        tuned = recipe in SEARCHED
        chosen = those[: options.plain] if tuned else those
        done = [
            plain.job(
                recipe if tuned else None,
                base if recipe == "base" else start,
                {**fixed[recipe], **searched_of(c)} if tuned else {},
                seed=c.seed,
                reward=reward,
                halves=sorted(c.halves),
            )
            for c in chosen
        ]
        mean = sum((cost for cost, _ in done), Cost()).times(1 / len(done))
        total += mean.times(len(those))
        train, score = (sum(f[part] for _, f in done) / len(done) for part in ("train_s", "score_s"))
        guess = "" if len(done) == len(those) else f"; {len(done)} of {len(those)} were run, the rest taken as those"
        found = [means(c, f) for c, (_, f) in zip(chosen, done, strict=True)]
        theirs, ours = (statistics.mean(side) for side in zip(*found, strict=True))
        line(
            f"plain {recipe}, {len(those)} runs",
            mean.times(len(those)),
            f"each {mean.wall:.0f}, of it loading and training {train:.0f}, scoring {score:.0f}{guess}; "
            f"mean score {theirs:.3f}, the sweep's {ours:.3f}",
        )
    return total


def searched_of(configuration: Configuration) -> dict[str, Any]:
    """What the sweep's search chose, by the names of the method's settings."""
    return {name.rpartition(".")[2]: value for name, value in configuration.settings.items()}


def means(configuration: Configuration, found: Mapping[str, Any]) -> tuple[float, float]:
    """Mean over all figures of a configuration: the script's model, the sweep's."""
    pairs = [
        (value, configuration.mean(task, metric))
        for task, figures in found["scores"].items()
        for metric, value in figures.items()
    ]
    theirs, ours = zip(*pairs, strict=True)
    return statistics.mean(theirs), statistics.mean(ours)


def check(plain: Plain, base: Path, results: Path, ran: Sequence[Configuration], options: argparse.Namespace) -> int:
    """Score models that the sweep left by `hf`; how many figures differ."""
    compared = differing = 0
    widest = 0.0
    order = sorted(ran, key=lambda c: ("dpo", "ppo", "base", "sft").index(c.recipe))
    for c in [next((x for x in order if x.recipe == r), None) for r in ("dpo", "ppo", "base")][: options.check]:
        if c is None:
            continue
        model = base if c.recipe == "base" else results / "artifacts" / c.artifact
        for half in sorted(c.halves):
            _, found = plain.job(None, model, {}, halves=[half], cache=False)
            for (where, task, metric), (value, _) in c.scores.items():
                if where != half or metric not in found["scores"].get(task, {}):
                    continue
                gap = abs(value - found["scores"][task][metric])
                compared, widest = compared + 1, max(widest, gap)
                if gap > options.tolerance:
                    differing += 1
                    print(f"  {c.recipe}, {half} half, {task} {metric}: {value} here, {value + gap} or less by hf")
    print(f"equal models: {compared} figures compared, {differing} differ, the widest gap is {widest:.2g}")
    return differing + (compared == 0)


def line(what: str, cost: Cost, more: str = "") -> None:
    """A row of the table."""
    print(f"{what:28} {cost.wall:8.0f} {cost.cpu:8.0f}  {more}", flush=True)


def main() -> int:
    """Run both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tiny", "bundled"], default="bundled")
    parser.add_argument("--trials", type=int, default=8, help="of DPO and of PPO")
    parser.add_argument("--plain", type=int, help="configurations of each that the plain script runs (default: all)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps and iterations")
    parser.add_argument("--documents", type=int, default=96, help="of each task, before they are halved")
    parser.add_argument("--workers", type=int, default=1, help="runs at once in the sweep; threads of the plain script")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16", help="of training")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of scoring")
    parser.add_argument("--hf-batch", type=int, default=8)
    parser.add_argument("--check", type=int, default=3, help="models scored by both")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="by which equal models' mean scores may differ")
    parser.add_argument("--target", type=float, default=5.0, help="ratio below which the exit code is 1")
    parser.add_argument("--trl", type=Path, help="folder with the old TRL (default: in the cache)")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep-speed-") as scratch:
        return run((options.folder or Path(scratch)).resolve(), options)


def run(folder: Path, options: argparse.Namespace) -> int:
    """Both, in this folder."""
    from harness.models import resolve_model

    folder.mkdir(parents=True, exist_ok=True)
    base = tiny_model(folder / "tiny") if options.model == "tiny" else resolve_model("smollm2-135m-instruct")
    old_trl(options.trl)
    suite, results = folder / "sweep_speed.yaml", folder / "results"
    done = folder / "sweep.cost.json"
    if results.exists() and not done.exists():
        raise SystemExit(
            f"{results} is there already: what it holds would cost the sweep nothing; name another --folder"
        )
    text = suite_text(base if options.model == "tiny" else "smollm2-135m-instruct", options)
    if done.exists() and suite.read_text() != text:
        raise SystemExit(f"{folder} holds a sweep with other options; give the same ones, or name another --folder")
    suite.write_text(text)
    print(f"{'what':28} {'wall, s':>8} {'CPU, s':>8}")
    if not done.exists():
        places = ["--results", str(results), "--reports", str(folder / "reports"), "--workers", str(options.workers)]
        command = [sys.executable, "-m", "harness.cli", "sweep", str(suite), *places]
        done.write_text(json.dumps(asdict(timed(command, 1, folder / "sweep.log"))))
    ours = Cost(**json.loads(done.read_text()))
    line("harness sweep", ours)
    ran = what_ran(results)
    plain = Plain(folder, options)
    options.plain = options.plain or len(ran)
    theirs = plain_sweep(plain, base, ran, options)
    line("plain script", theirs)
    ratio = Cost(theirs.wall / ours.wall, theirs.cpu / ours.cpu)
    print(f"ratio: {ratio.wall:.1f}x wall, {ratio.cpu:.1f}x CPU")
    differing = check(plain, base, results, ran, options)
    return 1 if differing or ratio.cpu < options.target else 0


if __name__ == "__main__":
    sys.exit(main())
