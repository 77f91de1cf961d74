"""A spec run at another place of the cluster: by a local worker of that place, which a seat there keeps warm.

What a worker does to itself or to its machine (exits, hangs, leaks, forks) is dealt with on the spot, by the same code
as on one machine. Only signs of life and the result travel back.
"""

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from harness.execute._local import LocalExecutor
from harness.execute._memory import total_mb
from harness.execute._spec import MeasureSpec, Progress, Result, StageSpec, read_spec
from harness.provenance import environment

__all__ = ["Ground", "Message", "leave_seats", "serve"]

_SIGNS_EVERY_S = 0.3
_OF_THE_COORDINATOR = frozenset({"optuna", "plotly", "duckdb", "polars"})
"""Libraries that decide nothing in a worker."""


class Ground(BaseModel):
    """What every place of a cluster must have in common with the coordinator."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    results: Path
    marker: Path
    token: str
    current: Path
    packages: dict[str, str]

    @classmethod
    def lay(cls, results: Path, folder: Path) -> Self:
        """The coordinator's ground, with a marker in `folder` by which the others know that they see the same files."""
        folder.mkdir(parents=True, exist_ok=True)
        marker, token = folder / "marker", secrets.token_hex(8)
        marker.write_text(token, encoding="utf-8")
        return cls(results=results, marker=marker, token=token, current=Path.cwd(), packages=_packages())

    def problem(self) -> str | None:
        """What this place lacks, and what to do; None where the ground is the same."""
        where = socket.gethostname()
        with contextlib.suppress(OSError):
            if self.marker.read_text(encoding="utf-8") == self.token:
                return self._other_packages(where)
        return (
            f"node {where} does not see the results folder {self.results} that the sweep writes to. Expected a folder "
            "that all nodes share, under the same path: choose one with --results"
        )

    def _other_packages(self, where: str) -> str | None:
        here = _packages()
        other = [
            f"{name} {here.get(name, 'absent')} instead of {version}"
            for name, version in self.packages.items()
            if version != "absent" and here.get(name) != version and name not in _OF_THE_COORDINATOR
        ]
        if not other:
            return None
        return (
            f"node {where} has other versions than the machine that started the sweep: {', '.join(other)}. Expected "
            "the same, since they decide the numbers: install them there"
        )


class Message(BaseModel):
    """What comes back from a place, one or several times: signs of life, warnings; once: a result or a problem."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signs: tuple[Progress, ...] = ()
    warnings: tuple[str, ...] = ()
    result: Result | None = None
    problem: str | None = None


def serve(spec: str, ground: str) -> Iterator[str]:
    """Run one spec in this place; texts of `Message`s come while it runs, the result in the last.

    A process may serve one spec after another: its worker stays warm. Interrupted, it leaves nothing at work.
    """
    common = Ground.model_validate_json(ground)
    if (problem := common.problem()) is not None:
        yield Message(problem=problem).model_dump_json()
        return
    if common.current.is_dir():
        # Relative paths of a suite, and a user's own methods, are meant from there.
        os.chdir(common.current)
    for message in _seat(common.results).run(read_spec(spec)):
        yield message.model_dump_json()


def leave_seats() -> None:
    """End the workers that this process has kept warm."""
    for seat in _seats.values():
        seat.close()


class _Seat:
    """A worker of this process, kept from one spec to the next while the process has the same GPUs."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self._loop = asyncio.new_event_loop()
        self._executor: LocalExecutor | None = None
        self._devices: str | None = None
        self._warnings: list[str] = []

    def run(self, spec: StageSpec | MeasureSpec) -> Iterator[Message]:
        signs: list[Progress] = []
        task = self._loop.create_task(self._ready().run(spec, signs.append))
        try:
            while not task.done():
                self._loop.run_until_complete(asyncio.wait({task}, timeout=_SIGNS_EVERY_S))
                if signs or self._warnings:
                    yield Message(signs=tuple(signs), warnings=tuple(self._warnings))
                    signs.clear()
                    self._warnings.clear()
            yield Message(result=task.result())
        finally:
            # Not at its end: interrupted, at whatever point; what runs is ended, and nothing of it used again.
            if not task.done() or task.cancelled() or task.exception() is not None:
                task.cancel()
                self._loop.run_until_complete(asyncio.wait({task}))
                self.close()

    def close(self) -> None:
        if self._executor is not None:
            self._loop.run_until_complete(self._executor.close())
            # Its threads would keep a process from its end.
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._loop, self._executor = asyncio.new_event_loop(), None

    def _ready(self) -> LocalExecutor:
        devices = os.environ.get("CUDA_VISIBLE_DEVICES")
        if devices != self._devices:
            self.close()
        if self._executor is None:
            # Retried by the coordinator, in whatever place is free then.
            self._executor = LocalExecutor(
                self._results,
                1,
                retries=0,
                warn=self._warnings.append,
                recycle_mb=total_mb() / 2 / (os.cpu_count() or 1),
            )
            self._devices = devices
        return self._executor


_seats: dict[Path, _Seat] = {}


def _seat(results: Path) -> _Seat:
    if results not in _seats:
        _seats[results] = _Seat(results)
    return _seats[results]


def _packages() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(environment().text)["packages"]
    return found
