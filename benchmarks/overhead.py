"""What a trial costs beside its method and its measures, and what a second worker gives.

    python benchmarks/overhead.py [--trials 60] [--seconds 20] [--only overhead|workers]

`overhead`: a method that sleeps for a known time and copies its input model, a task of a few documents, one worker, one
trial after another, through the sweep's own command. Of the wall time between the end of the first trials and the end
of the last, what the methods and the measures themselves report is taken off; the rest, over the trials, is the
overhead. It is printed with what it is made of, as timers around the engine's own functions see it. Must be below
200 ms, and below 1 % of a trial of `--seconds`.

`workers`: two cells whose method computes on one core for a fixed amount of work, with one worker and with two. The
ratio of the wall times between the first trial's start and the last one's end must be 1.7 or more. It needs two idle
cores.

Exit code 1 where a bound is missed.
"""

import argparse
import contextlib
import datetime
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chaos import tiny_model

ROOT = Path(__file__).parent.parent
WORKER = "worker: from spec to result"
WARM = 5
"""Trials left out at the start: workers import their libraries in the first."""

METHOD = '''
"""Methods whose own time is known."""

import shutil
import time
import zlib

from pydantic import Field

from harness.method import Method, Params, Trained


class _Params(Params):
    seconds: float = Field(default=0.0, description="wall time it takes, s")
    rounds: int = Field(default=0, description="amount of computing on one core, MiB of zlib")
    knob: float = Field(default=0.0, description="changes nothing but the key")


class Copy(Method[_Params]):
    name = "copy"
    summary = "The input model, after a known time."
    paper = "none"
    version = 1
    params = _Params
    needs = frozenset({"policy"})
    dataset_kind = None

    def run(self, inputs, params, context):
        time.sleep(params.seconds)
        block = bytes(range(256)) * 4096
        for _ in range(params.rounds):
            zlib.compress(block, 6)
        source = inputs.folders["policy"]
        context.log(1, 1, {"knob": params.knob})
        return Trained(None, None, {"steps": 1.0}, lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True))
'''

SUITE = """
name: {name}
models: [{model}]
recipes:
{recipes}
measure:
  tasks: {{truthfulqa_mc1: {{limit: 6}}}}
objectives: {{score: maximize}}
precision: float32
seeds: [0]
budget: {{trials_per_cell: {trials}, batch: {batch}}}
"""
RECIPE = "  {name}: [{{'trivial:Copy': {{seconds: {seconds}, rounds: {rounds}, knob: {{min: 0.0, max: 1.0}}}}}}]"

TRIALS = (
    "SELECT recipe, trial, min(\"at\") FILTER (state = 'running') AS began, max(\"at\") FILTER (state = 'complete') AS "
    "done FROM raw.trial_events WHERE phase = 'tune' GROUP BY ALL ORDER BY done"
)
OWN = (
    "SELECT l.trial, max(s.seconds) FROM raw.stage_links l JOIN raw.stages s USING (stage) WHERE NOT reused "
    "GROUP BY ALL",
    "SELECT l.trial, sum(m.seconds) FROM raw.measurement_links l JOIN raw.measurements m USING (measurement) "
    "WHERE phase = 'tune' GROUP BY ALL",
)


class Timers:
    """Time inside the engine's functions, of this process; what one calls of another counts for the outer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, float, float]] = []
        """Label, time of the call (s since 1970), wall seconds, and this process's seconds on a core."""
        self._inside = False

    def around(self, owner: Any, name: str, label: str) -> None:
        """Time every call of a function from now on."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return inner(*arguments, **named)
            self._inside, started = True, (time.time(), time.perf_counter(), time.process_time())
            try:
                return inner(*arguments, **named)
            finally:
                self._inside = False
                self._note(label, *started)

        setattr(owner, name, timed)

    def around_async(self, owner: Any, name: str, label: str) -> None:
        """The same of a coroutine, whose waiting counts."""
        inner: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(inner)
        async def timed(*arguments: Any, **named: Any) -> Any:
            started = time.time(), time.perf_counter(), time.process_time()
            try:
                return await inner(*arguments, **named)
            finally:
                self._note(label, *started)

        setattr(owner, name, timed)

    def around_block(self, owner: Any, name: str, label: str) -> None:
        """The same of a context manager, with what its block does."""
        inner: Callable[..., Any] = getattr(owner, name)

        @contextlib.contextmanager
        def timed(*arguments: Any, **named: Any) -> Iterator[Any]:
            self._inside, started = True, (time.time(), time.perf_counter(), time.process_time())
            try:
                with inner(*arguments, **named) as found:
                    yield found
            finally:
                self._inside = False
                self._note(label, *started)

        setattr(owner, name, timed)

    def _note(self, label: str, at: float, wall: float, core: float) -> None:
        self.calls.append((label, at, time.perf_counter() - wall, time.process_time() - core))

    def between(self, first: float, last: float) -> dict[str, tuple[int, float, float]]:
        """Label → calls, wall seconds and seconds on a core within a span of time."""
        found: dict[str, tuple[int, float, float]] = {}
        for label, at, wall, core in self.calls:
            if first <= at <= last:
                n, w, c = found.get(label, (0, 0.0, 0.0))
                found[label] = n + 1, w + wall, c + core
        return found


def suite(folder: Path, name: str, recipes: list[str], trials: int, batch: int) -> Path:
    """Write the suite, the method beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trivial.py").write_text(METHOD)
    path = folder / f"{name}.yaml"
    model = tiny_model(folder / "model")
    path.write_text(SUITE.format(name=name, model=model, recipes="\n".join(recipes), trials=trials, batch=batch))
    return path


def overhead(folder: Path, trials: int, seconds: float) -> bool:
    """One worker, one trial at a time, in this process so that its functions can be timed."""
    import harness.sweep._loop as loop
    from harness.cli import main as harness
    from harness.execute import LocalExecutor
    from harness.store import Store

    path = suite(folder, "overhead", [RECIPE.format(name="copy", seconds=0.2, rounds=0)], trials, 1)
    os.chdir(folder)
    timers = Timers()
    timers.around_async(LocalExecutor, "run", WORKER)
    timers.around(Store, "append_many", "rows of the sweep")
    timers.around_block(Store, "newest", "objective, from the newest rows")
    timers.around_block(Store, "fresh", "ingest, with history or objective")
    timers.around(loop, "next_batch", "suggest")
    timers.around(loop, "chain", "stage keys")
    timers.around(loop, "measure_specs", "measurement keys")
    places = ["--results", str(folder / "results"), "--reports", str(folder / "reports")]
    began = time.monotonic()
    if harness(["sweep", str(path), *places, "--workers", "1"]) != 0:
        print("the sweep failed")
        return False
    whole = time.monotonic() - began
    store = Store(folder / "results")
    rows = store.query(TRIALS).rows()
    own: dict[int, float] = defaultdict(float)
    for query in OWN:
        for trial, took in store.query(query).rows():
            own[trial] += took
    steady = rows[WARM:]
    wall = (steady[-1][3] - rows[WARM - 1][3]).total_seconds()
    mine = sum(own[trial] for _, trial, _, _ in steady)
    each = (wall - mine) / len(steady)
    spans = [(b[3] - a[3]).total_seconds() - own[b[1]] for a, b in zip(rows[WARM - 1 :], steady, strict=False)]
    print(f"{'whole command, s':40} {whole:8.1f}   ({trials} trials, final run and report included)")
    print(f"{'first trial, with start-up, s':40} {(rows[0][3] - rows[0][2]).total_seconds():8.2f}")
    print(f"{'a trial in the steady state, ms':40} {1000 * wall / len(steady):8.0f}   ({len(steady)} trials)")
    print(f"{'of that method and measures, ms':40} {1000 * mine / len(steady):8.0f}")
    print(f"{'overhead of a trial, ms':40} {1000 * each:8.0f}   (median {1000 * statistics.median(spans):.0f})")
    print(f"{f'share of a trial of {seconds:.0f} s':40} {each / seconds:8.2%}")
    print("made of, ms a trial: wall, and on a core of the sweep's own process; calls")
    span = (moment.replace(tzinfo=datetime.UTC).timestamp() for moment in (rows[WARM - 1][3], steady[-1][3]))
    found = timers.between(*span)
    n, waited, _ = found.pop(WORKER)
    found[WORKER] = n, waited - mine, 0.0
    for label, (calls, took, core) in sorted(found.items(), key=lambda kv: -kv[1][1]):
        print(
            f"  {label:38} {1000 * took / len(steady):8.1f} {1000 * core / len(steady):7.1f} {calls / len(steady):5.1f}"
        )
    return each < 0.2 and each < 0.01 * seconds


def workers(folder: Path, trials: int, rounds: int) -> bool:
    """Two cells of a fixed amount of computing, with one and with two workers."""
    from harness.store import Store

    recipes = [RECIPE.format(name=name, seconds=0.0, rounds=rounds) for name in ("one", "two")]
    took = {}
    for count in (1, 2):
        place = folder / f"{count}"
        path = suite(place, "workers", recipes, trials, 1)
        command = [sys.executable, "-m", "harness.cli", "sweep", str(path), "--workers", str(count)]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            print(done.stderr[-1500:])
            return False
        store = Store(place / "results")
        rows = store.query(TRIALS).rows()
        # The first trial of each cell pays for a worker's imports.
        started = max(row[3] for row in rows if row[1] == 0)
        steady = [row for row in rows if row[1] > 0]
        took[count] = (max(row[3] for row in steady) - started).total_seconds() / len(steady)
        own = store.query("SELECT median(seconds), count(*) FROM raw.stages").rows()[0]
        name = f"{count} worker(s): a trial every, ms"
        print(f"{name:40} {1000 * took[count]:8.0f}   (method {1000 * own[0]:.0f} ms)")
    ratio = took[1] / took[2]
    print(f"{'two workers against one':40} {ratio:8.2f}   (load of the last minute {os.getloadavg()[0]:.1f})")
    return ratio >= 1.7


def main() -> int:
    """Run what is asked for; 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="trials of the overhead's one cell")
    parser.add_argument("--seconds", type=float, default=20.0, help="trial against which the share is computed")
    parser.add_argument("--rounds", type=int, default=900, help="work of a trial for the workers, MiB of zlib")
    parser.add_argument("--only", choices=["overhead", "workers"])
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    good = True
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        if options.only != "overhead":
            good &= workers(Path(scratch) / "workers", 8, options.rounds)
        if options.only != "workers":
            good &= overhead(Path(scratch) / "overhead", options.trials, options.seconds)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
