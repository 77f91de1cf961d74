"""Specs as Ray tasks: the contract of every executor on a Ray of our own; two nodes, of which one dies."""

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.execute import Executor, Item, MeasureSpec, Result
from harness.execute._open import open_executor
from harness.execute._ray import RayExecutor
from harness.execute._there import Ground
from harness.targets import Target
from tests.execute.contract import RETRIES, Bench, ExecutorContract, alive, open_bench

pytest.importorskip("ray", reason="Ray is an extra: pip install 'posttrain-harness[ray]'")

_SMALL = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}


class TestRay(ExecutorContract):
    # Its crash that is tried again is that of `die`; a worker's start is what these tests cost.
    test_a_spec_that_succeeds_when_tried_again_is_complete = None

    def make(self, results: Path, workers: int, retries: int) -> Executor:
        return open_executor("ray", results, workers, retries)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and a second node, of one CPU each, as processes of this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=_SMALL)
    cluster.add_node(**{k: v for k, v in _SMALL.items() if k != "include_dashboard"}, resources={"second": 1})
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def joined(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    def make(results: Path, _: int, retries: int) -> Executor:
        return RayExecutor(results, None, retries, address=cluster.address, patience_s=0.5)

    with open_bench(make, tmp_path_factory.mktemp("joined")) as bench:
        yield bench


def _measure(**resources: float) -> MeasureSpec:
    target = Target(name="cpu", resources=resources)
    profile = Item(key="p", kind="profile", task="profile", settings={})
    fields: dict[str, Any] = {"key": "m", "model": "m", "artifact": "a", "base": "b", "data": "bundled"}
    return MeasureSpec(**fields, target=target.model_dump(), halves=("tune",), scorer="hf", items=(profile,))


def test_an_address_that_is_no_place_in_a_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start the sweep on a machine that belongs to the cluster"):
        open_executor("ray", tmp_path, 1, address="ray://127.0.0.1:1")
    for address in ("127.0.0.1:1", "localhost"):
        with pytest.raises(UserError, match=f"no Ray cluster could be joined at {address}"):
            open_executor("ray", tmp_path, 1, address=address)


@pytest.mark.parametrize(
    ("name", "said"), [("h300", r"no node of the cluster has CPU 1, h300 1 .* second 1"), ("GPU", "may not name GPU")]
)
def test_a_resource_that_no_node_has_fails_with_what_there_is(joined: Bench, name: str, said: str) -> None:
    result = joined.do(joined.executor.run(_measure(**{name: 1}), joined.signs.append))
    assert result.state == "failed"
    assert re.search(said, result.message)


def test_a_node_that_sees_another_folder_ends_the_sweep(joined: Bench) -> None:
    marker = next(joined.results.glob("work/*/marker"))
    token = marker.read_text()
    marker.write_text("of another folder")
    result = joined.run("finish")
    marker.write_text(token)
    assert (result.state, result.storage) == ("failed", True)
    assert "does not see the results folder" in result.message


def test_work_of_a_node_that_dies_is_done_on_another(cluster: Any, joined: Bench) -> None:
    async def killed() -> list[Result]:
        runs = [asyncio.create_task(joined.executor.run(joined.stage("linger", n), joined.signs.append)) for n in "ab"]
        while len({s.key for s in joined.signs}) < 2:
            await asyncio.sleep(0.05)
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        while len(alive(joined.pids(), 0)) > 1:
            await asyncio.sleep(0.05)
        (joined.folder / "go").touch()
        return list(await asyncio.gather(*runs))

    results = joined.do(killed())
    assert [r.state for r in results] == ["complete", "complete"], results
    assert len(joined.pids()) == 2 + RETRIES


def test_another_folder_or_other_libraries_are_told_with_the_node(tmp_path: Path) -> None:
    ground = Ground.lay(tmp_path, tmp_path / "work")
    assert ground.problem() is None
    elsewhere = ground.model_copy(update={"token": "another"})
    assert "does not see the results folder" in str(elsewhere.problem())
    older = ground.model_copy(update={"packages": {**ground.packages, "torch": "1.0", "optuna": "1.0"}})
    assert "instead of 1.0" in str(older.problem())
    assert "optuna" not in str(older.problem())


def test_executors_and_options_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected local, ray, slurm, got dask"):
        open_executor("dask", tmp_path, 1)
    with pytest.raises(UserError, match="expected --executor ray"):
        open_executor("local", tmp_path, 1, address="auto")
    with pytest.raises(UserError, match="--executor slurm"):
        open_executor("local", tmp_path, 1, options={"time": "1"})


def test_without_ray_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(UserError, match=r"pip install 'posttrain-harness\[ray\]'"):
            open_executor("ray", tmp_path, 1)
