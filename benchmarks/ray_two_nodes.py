"""Does a sweep on two Ray nodes give the tables of one on this machine, also when a node is killed in the middle?

    python benchmarks/ray_two_nodes.py

A suite of three recipes (DPO and PPO on a shared SFT, a tiny random model) runs with local workers, then on a cluster
of two nodes that are processes of this machine, one CPU each, then on such a cluster of which one node is killed once
half of the stages are there. `trials`, `scores` and `samples` must be equal, row for row, but for times, and no stage
may be computed again after its artifact was complete. Both nodes must have worked. Counts are printed; exit code 1
where one of these does not hold. It needs the extra `ray`.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from chaos import ROOT, TABLES, computed_again, tables, tiny_model

SUITE = """
name: two_nodes
models: [{model}]
recipes:
  sft: [{{sft: {{steps: 2, batch_size: 2}}}}]
  dpo:
    - use: sft
    - dpo: {{steps: 2, batch_size: 2, learning_rate: {{min: 1e-5, max: 1e-3, log: true}}}}
  ppo:
    - use: sft
    - reward_model: {{steps: 2, batch_size: 2, held_out_pairs: 2}}
    - ppo:
        {{iterations: 1, rollout_batch_size: 4, minibatch_size: 2, max_new_tokens: 6, kl_coef: {{min: 0.05, max: 0.2}}}}
measure:
  tasks: {{truthfulqa_mc1: {{limit: 6}}}}
  gold: {{limit: 8, max_new_tokens: 6}}
objectives: {{gold_reward: maximize}}
precision: float32
seeds: [0, 1]
budget: {{trials_per_cell: {trials}, batch: 2}}
"""

_NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}

Tables = dict[str, list[tuple[Any, ...]]]


@dataclass
class Two:
    """A cluster of two nodes."""

    cluster: Any
    second: Any

    def raylets(self) -> dict[str, int]:
        """The process of each node under which its workers run."""
        nodes = {"head": self.cluster.head_node, "second": self.second}
        return {name: node.all_processes["raylet"][0].process.pid for name, node in nodes.items()}

    def worked(self) -> set[str]:
        """The nodes on which a worker runs now."""
        return {name for name, pid in self.raylets().items() if _workers(pid)}

    def kill_second(self) -> None:
        """SIGKILL for the node, and with it for what runs there."""
        self.cluster.remove_node(self.second, allow_graceful=False)


@contextlib.contextmanager
def two_nodes() -> Iterator[Two]:
    """Started and stopped again."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "include_dashboard": False})
    try:
        yield Two(cluster, cluster.add_node(**_NODE))
    finally:
        cluster.shutdown()


def sweep(suite: Path, results: Path, *more: str, watch: Callable[[], None] = lambda: None) -> tuple[int, float]:
    """Run it to its end, `watch` being called all the while; its exit code and seconds."""
    places = ["--results", str(results), "--reports", str(results / "reports")]
    results.mkdir(parents=True)
    began = time.monotonic()
    with (results / "output.log").open("wb") as log:
        command = [sys.executable, "-m", "harness.cli", "sweep", str(suite), *places, *more]
        child = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        while child.poll() is None:
            watch()
            time.sleep(0.1)
    return child.returncode, time.monotonic() - began


def main() -> int:
    """Run the three sweeps, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4, help="tuning trials of each searched cell")
    parser.add_argument("--folder", type=Path, help="keep everything here (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="two-nodes-") as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        suite = folder / "two_nodes.yaml"
        suite.parent.mkdir(parents=True, exist_ok=True)
        suite.write_text(SUITE.format(model=tiny_model(folder / "model"), trials=options.trials))
        codes, seconds = {}, {}
        codes["local"], seconds["local"] = sweep(suite, folder / "local", "--workers", "2")
        if codes["local"]:
            print((folder / "local" / "output.log").read_text())
            return 1
        whole = tables(folder / "local", TABLES)
        stages = len(list((folder / "local" / "artifacts").glob("*/stage.json")))
        good = True
        found: dict[str, Any] = {"stages": stages, "rows": {name: len(rows) for name, rows in whole.items()}}
        for name in ("ray", "ray_killed"):
            with two_nodes() as nodes:
                run = _Run(nodes, folder / name, stages // 2 if name == "ray_killed" else None)
                codes[name], seconds[name] = sweep(suite, folder / name, *run.options(), watch=run.watch)
            ours = tables(folder / name, TABLES)
            computed, again = computed_again(folder / name)
            found[name] = {
                "nodes_that_worked": sorted(run.worked),
                "stages_there_when_killed": run.killed_at,
                "specs_at_work_there_when_killed": run.lost,
                "rows_that_differ": {t: len(set(whole[t]) ^ set(ours[t])) for t in TABLES},
                "stage_computations": computed,
                "computed_though_finished": len(again),
            }
            for line in again:
                print(line)
            good = good and codes[name] == 0 and whole == ours and not again and len(run.worked) == 2
            good = good and (name == "ray" or run.killed_at is not None)
        found |= {"exit_codes": codes, "seconds": {name: round(s, 1) for name, s in seconds.items()}}
        print(json.dumps(found, indent=1))
        print("equal to the sweep on this machine" if good else "NOT EQUAL")
        return 0 if good else 1


class _Run:
    """What is seen of a sweep on two nodes while it runs, and the kill."""

    def __init__(self, nodes: Two, results: Path, kill_after: int | None) -> None:
        self.nodes, self.results, self.kill_after = nodes, results, kill_after
        self.worked: set[str] = set()
        self.killed_at: int | None = None
        self.lost = 0

    def options(self) -> list[str]:
        """Of the sweep."""
        return ["--executor", "ray", "--address", self.nodes.cluster.address]

    def watch(self) -> None:
        """Note who works; kill the second node in the middle, while it does."""
        if self.killed_at is not None:
            return
        self.worked |= self.nodes.worked()
        there = len(list((self.results / "artifacts").glob("*/stage.json")))
        at_work = _workers(self.nodes.raylets()["second"])
        if self.kill_after is not None and there >= self.kill_after and any(map(_busy, at_work)):
            self.killed_at, self.lost = there, sum(map(_busy, at_work))
            self.nodes.kill_second()


def _workers(raylet: int) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(raylet).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "harness.execute.worker" in process.cmdline():
                    found.append(process)
    return found


def _busy(process: psutil.Process) -> bool:
    """Whether it computes: one that waits for its next spec sleeps."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_RUNNING)
    return False


if __name__ == "__main__":
    sys.exit(main())
