"""A sweep's specs as Ray tasks (Moritz et al. 2018, "Ray: a distributed framework for emerging AI applications").

Ray brings a task to its node and tells when a node or process has died; a seat there (`_there.py`) runs the spec as on
one machine. All nodes must see the results folder under the same path, and have the same versions of the libraries
that decide the numbers: a node that has not is told of when it first runs something, and ends the sweep.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.execute._attempts import UnderWay, attempts
from harness.execute._nodes import CPU, GPU, NowhereError, Place, Shares
from harness.execute._spec import MeasureSpec, Progress, Result, StageSpec, resources_of
from harness.execute._there import Ground, Message, serve

__all__ = ["RayExecutor"]

_OBJECT_STORE_BYTES = 100 * 2**20
"""Specs, signs of life and results are small texts; models travel through the results folder."""
_END_S = 5.0
"""What an interrupted seat gets to end its worker before its process is killed."""
_PATIENCE_S = 30.0
_ANSWERS_WITHIN_S = 10.0
_TRAVELS = ("HARNESS_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_CACHE_HOME", "PYTHONHASHSEED")
_SECRETS = ("TOKEN", "SECRET", "PASSWORD", "KEY")
_NOT_CUSTOM = frozenset({CPU, GPU, "memory", "object_store_memory"})

Spec = StageSpec | MeasureSpec
Report = Callable[[Progress], None]


class RayExecutor:
    """Runs specs on a Ray cluster, or on a Ray of its own on this machine.

    A spec takes CPUs for its threads, GPUs and the cluster's own resources from `resources_of`; one that must run
    alone takes all CPUs of an idle node. The working folder and `PYTHONPATH` are those of the sweep, on every node;
    variables that hold secrets do not travel.

    Args:
        results: the results folder, shared by all nodes.
        workers: specs at work together; None: as many as the cluster has room for. A Ray of its own has that many CPUs.
        retries: how often a spec is tried again whose worker, process or node died.
        address: `host:port` or `auto` of an existing cluster; None: a Ray of its own, which reports nowhere.
        warn: told what the user should know.
        patience_s: seconds that a spec waits for a node that has what it needs; then it fails.

    Raises:
        UserError: Ray is not installed, the cluster does not answer, or has another version of Ray or Python.
    """

    def __init__(
        self,
        results: Path,
        workers: int | None,
        retries: int = 2,
        *,
        address: str | None = None,
        warn: Callable[[str], None] = lambda _: None,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._retries, self._warn = retries, warn
        _connection.open(address, workers)
        import ray

        self._folder = results / "work" / uuid.uuid4().hex[:8]
        self._ground = Ground.lay(results, self._folder).model_dump_json()
        self._task = ray.remote(max_retries=0, runtime_env={"env_vars": _environment(os.environ)})(serve)
        self._shares = Shares(_nodes, workers, patience_s)
        self._under_way = UnderWay()
        self._closed = False

    async def run(self, spec: Spec, report: Report) -> Result:
        """Run one spec somewhere; what dies under it is tried again, then returned as `crash`.

        On a node that does not see the results folder, or has other versions of the libraries, its result says so, and
        that the sweep ends (`Result.storage`).
        """
        wanted = resources_of(spec)
        if reserved := sorted(wanted.custom.keys() & _NOT_CUSTOM):
            return _nowhere(spec, f"`resources` may not name {', '.join(reserved)}: Ray counts them by itself")
        try:
            return await attempts(spec, lambda: self._under_way.run(lambda: self._placed(spec, report)), self._retries)
        except NowhereError as error:
            return _nowhere(spec, str(error))

    async def close(self) -> None:
        """End what is at work, leave the cluster, and end a Ray of our own."""
        if self._closed:
            return
        self._closed = True
        await self._shares.close()
        await self._under_way.end()
        await asyncio.to_thread(_connection.close)
        (self._folder / "marker").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    async def _placed(self, spec: Spec, report: Report) -> Result:
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        async with self._shares.hold(resources_of(spec), spec.urgency) as place:
            stream = self._submit(spec, place)
            try:
                return await self._follow(spec.key, stream, report)
            except asyncio.CancelledError:
                await _end(stream)
                raise
            except RayError as error:
                if isinstance(error, RayTaskError) and not isinstance(error, TaskCancelledError):
                    # Raised by the seat and not by the spec: a disk that refuses, or a fault of ours.
                    raise
                self._shares.doubt(place.node)
                return _died(spec, error)

    def _submit(self, spec: Spec, place: Place) -> Any:  # noqa: ANN401  # a stream of Ray's
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        taken = dict(place.taken)
        task = self._task.options(
            name=spec.label or spec.key,
            num_cpus=taken.pop(CPU),
            num_gpus=taken.pop(GPU, 0),
            resources=taken,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=False),
        )
        return task.remote(spec.model_dump_json(), self._ground)

    async def _follow(self, key: str, stream: Any, report: Report) -> Result:  # noqa: ANN401  # a stream of Ray's
        from ray.exceptions import RayError

        result: Result | None = None
        try:
            async for reference in stream:
                message = Message.model_validate_json(await reference)
                for sign in message.signs:
                    report(sign)
                for warning in message.warnings:
                    self._warn(warning)
                if message.problem is not None:
                    return Result(key=key, state="failed", storage=True, message=message.problem)
                result = message.result or result
        except RayError:
            # A process that dies after its result has done its work.
            if result is None:
                raise
        if result is None:
            raise RuntimeError("a seat ended without a result")
        return result


async def _end(stream: Any) -> None:  # noqa: ANN401  # a stream of Ray's
    """Have a task ended: by its seat, which ends its worker; where that takes too long, by Ray."""
    import ray

    for force in (False, True):
        ray.cancel(stream, force=force)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_drain(stream), _END_S)
            return


async def _drain(stream: Any) -> None:  # noqa: ANN401  # a stream of Ray's
    from ray.exceptions import RayError

    with contextlib.suppress(RayError):
        async for reference in stream:
            await reference


class _Connection:
    """This process's connection to Ray, of which there is one: several executors may share it."""

    def __init__(self) -> None:
        self._users = 0
        self._address: str | None = None
        self._own: Path | None = None

    def open(self, address: str | None, workers: int | None) -> None:
        """Connect, unless an executor is connected already."""
        ray = _library()
        if self._users and address != self._address:
            raise UserError(f"--address: this process is connected to another Ray, at {self._address or 'its own'}")
        if not self._users:
            if ray.is_initialized():
                raise UserError("this process is connected to a Ray cluster already: leave it first (ray.shutdown)")
            if address is None:
                self._start(workers)
            else:
                _join(address)
        self._users, self._address = self._users + 1, address

    def close(self) -> None:
        """Disconnect, unless another executor is connected still."""
        self._users -= 1
        if not self._users:
            _library().shutdown()
            if self._own is not None:
                shutil.rmtree(self._own, ignore_errors=True)
                self._own = None

    def _start(self, workers: int | None) -> None:
        # The path of a socket may have 107 characters, fewer than some TMPDIR has.
        self._own = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        try:
            _library().init(
                address="local",
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(self._own),
                # Memory is watched over by the seats, which know what each spec may take.
                _system_config={"memory_monitor_refresh_ms": 0, "prestart_worker_first_driver": False},
            )
        except (OSError, RuntimeError, ValueError) as error:
            shutil.rmtree(self._own, ignore_errors=True)
            raise UserError(f"Ray could not be started here: {error}") from error


_connection = _Connection()


def _library() -> Any:  # noqa: ANN401  # a module
    # Before Ray is imported, which reads it: nothing reports home.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise UserError("--executor ray needs Ray: pip install 'posttrain-harness[ray]'") from None
    # What it says of itself at the start is nothing that the user has to act upon.
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


def _join(address: str) -> None:
    if "://" in address:
        raise UserError(
            f"--address: expected host:port, or auto on a node of the cluster, got {address}: start the sweep on a "
            "machine that belongs to the cluster"
        )
    try:
        if address != "auto":
            # Ray itself would try for minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), _ANSWERS_WITHIN_S).close()
        _library().init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"no Ray cluster could be joined at {address}: {error}. Expected host:port of its head (ray start --head "
            "prints it), the same Ray and Python there, and this machine a node of it"
        ) from error


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """What the seats must share with the sweep, that a user's own methods and cached models are found."""
    travels = {
        name: value
        for name, value in given.items()
        if name.startswith(_TRAVELS) and not any(word in name for word in _SECRETS)
    }
    paths = [str(Path.cwd()), *filter(None, given.get("PYTHONPATH", "").split(os.pathsep))]
    return {**travels, "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in paths)}


def _nodes() -> dict[str, dict[str, float]]:
    return {node["NodeID"]: node["Resources"] for node in _library().nodes() if node["Alive"]}


def _nowhere(spec: Spec, why: str) -> Result:
    return Result(key=spec.key, state="failed", message=f"UserError: {why}")


def _died(spec: Spec, error: Exception) -> Result:
    from ray.exceptions import OutOfMemoryError

    state = "infeasible" if isinstance(error, OutOfMemoryError) else "crash"
    first = (str(error).strip().splitlines() or [""])[0]
    return Result.model_validate(
        {"key": spec.key, "state": state, "message": f"{type(error).__name__}: {first}", "traceback": str(error)}
    )
