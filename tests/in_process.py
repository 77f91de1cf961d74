"""Sweeps in the process of the test: the real loop, methods and measures, without the start of workers."""

import asyncio
import contextlib
import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness import running
from harness.cli import main
from harness.execute import MeasureSpec, Progress, Result, StageSpec, run_spec
from harness.outlook import look_ahead
from harness.plan import Plan, gather_facts, make_plan
from harness.progress import Display
from harness.store import Store
from harness.suite import load_suite
from harness.sweep import Outcome, run_sweep

__all__ = ["InProcess", "commanded", "planned", "rows", "swept"]


class InProcess:
    """An executor that runs one spec after another, here."""

    def __init__(self, results: Path) -> None:
        self._results, self._turn = results, asyncio.Lock()

    async def run(self, spec: StageSpec | MeasureSpec, report: Callable[[Progress], None]) -> Result:
        del report
        async with self._turn:
            return await asyncio.to_thread(run_spec, spec, self._results, lambda sign: None)

    async def close(self) -> None:
        pass


def planned(suite: Path, results: Path, *overrides: str) -> Plan:
    """As `harness plan` makes it."""
    facts = gather_facts(load_suite(suite, overrides))
    store = Store(results)
    if store.shards.is_dir():
        store.ingest()
    return make_plan(facts.suite, facts, results, look_ahead(facts, results))


def swept(plan: Plan, results: Path) -> Outcome:
    """Run the plan to its end."""
    return asyncio.run(run_sweep(plan, results, InProcess(results), Display(Console(file=io.StringIO()))))


def commanded(*arguments: str, workers: bool = False) -> "subprocess.CompletedProcess[str]":
    """A command, run here, where its imports are there already: its exit code and what it printed.

    Its sweep runs here too, unless it is to have workers of its own, which import everything again.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if not workers:
            patch.setattr(running, "open_executor", lambda _name, results, *_, **__: InProcess(results))
        code = main(arguments)
    return subprocess.CompletedProcess(["harness", *arguments], code, out.getvalue(), err.getvalue())


def rows(results: Path, sql: str) -> list[Any]:
    """What the store of a results folder answers, brought up to date."""
    store = Store(results)
    store.ingest()
    return store.query(sql).rows()
