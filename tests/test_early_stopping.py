"""Hopeless tuning trials end at rungs: in a fresh sweep, on what another has computed, and across a kill, all alike."""

import asyncio
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.execute import Item, MeasureSpec, Result, run_spec
from harness.progress import Display
from harness.rungs import HopelessError, MeasureRungs, judge_scores
from harness.store import Store
from harness.suite import Task, load_suite
from harness.sweep import run_sweep
from harness.sweep._rungs import scores_of
from harness.targets import Target
from tests.in_process import InProcess, planned, swept

ROOT = Path(__file__).parent.parent

SUITE = """
name: early
models: [./tiny]
recipes:
  sft:
    - sft:
        {steps: 8, batch_size: 1, max_length: 128, warmup_fraction: 0, learning_rate: {min: 1e-4, max: 1.0, log: true}}
measure:
  gold: {limit: 64, max_new_tokens: 8}
objectives: {gold_reward: maximize}
precision: float32
sampler: random
budget: {trials_per_cell: 6, batch: 2}
"""
BOTH = "early_stopping={training: {metric: loss, rungs: [0.25, 0.5], after: 2}, documents: {p: 0.05}}"
# Lenient: which tiny models are a little worse depends on the CPU, and some trial must be stopped on every one.
DOCUMENTS = "early_stopping={documents: {p: 0.45}}"
ELSEWHERE = "early_stopping={training: {metric: reward}}"

TRIALS = (
    "SELECT trial, seed, phase, state, settings, objectives, artifact FROM trials "
    "WHERE sweep = ? AND recipe = 'sft' ORDER BY ALL"
)
SCORES = "SELECT trial, phase, split, metric, value, n, measurement FROM scores WHERE sweep = ? ORDER BY ALL"
REASONS = "SELECT DISTINCT trial, kind, step, message FROM failures WHERE sweep = ? ORDER BY ALL"
RUNGS = "SELECT trial, rung, value FROM rungs WHERE sweep = ? ORDER BY ALL"


def _rows(results: Path, sql: str, sweep: str | None = None) -> list[Any]:
    store = Store(results)
    store.ingest()
    return store.query(sql, None if sweep is None else [sweep]).rows()


def _alike(one: Path, other: Path, sweep: str) -> None:
    for sql in (TRIALS, SCORES, REASONS, RUNGS):
        assert _rows(one, sql, sweep) == _rows(other, sql, sweep)


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("suite")
    (folder / "early.yaml").write_text(SUITE)
    (folder / "tiny").symlink_to(tiny_model)
    # The trials that are drawn go by the model's name, which must not be another one in every run of the tests.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder / "early.yaml"


@pytest.fixture(scope="module")
def whole(suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every trial to its end, and then the same suite with rungs, for which all is there already."""
    results = tmp_path_factory.mktemp("whole")
    swept(planned(suite_file, results), results)
    swept(planned(suite_file, results, BOTH), results)
    return results


@pytest.fixture(scope="module")
def killed(suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite with rungs, its coordinator killed when the first trial has been stopped, then run again."""
    results = tmp_path_factory.mktemp("killed")
    places = ["--results", str(results), "--reports", str(results / "reports"), "--workers", "1", "--set", BOTH]
    command = [sys.executable, "-m", "harness.cli", "sweep", str(suite_file), *places]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(results.glob("failed/*.json")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert _rows(results, "SELECT count(*) FROM trials WHERE phase = 'final' AND recipe = 'sft'") == [(0,)]
    swept(planned(suite_file, results, BOTH), results)
    return results


def _rates(results: Path, state: str, sweep: str) -> list[tuple[int, float]]:
    """(trial, learning rate) of the tuning trials in this state."""
    return _rows(
        results,
        "SELECT trial, CAST(settings->>'$.\"sft.learning_rate\"' AS DOUBLE) FROM trials WHERE phase = 'tune' "
        f"AND state = '{state}' AND sweep = ?",
        sweep,
    )


def test_bad_learning_rates_are_stopped_and_the_chosen_trial_is_run_to_its_end(suite_file: Path, killed: Path) -> None:
    sweep = load_suite(suite_file, [BOTH]).sweep_id()
    states = _rows(killed, "SELECT phase, state, count(*) FROM trials WHERE recipe = 'sft' GROUP BY ALL ORDER BY ALL")
    assert ("final", "complete", 1) in states
    stopped = dict(_rates(killed, "pruned", sweep))
    assert len(stopped) >= 2
    rates = [rate for _, rate in _rates(killed, "complete", sweep)]
    assert max(rates) < max(stopped.values())
    steps = dict(_rows(killed, "SELECT trial, max(step) FROM training GROUP BY trial"))
    assert all(steps[trial] in (2, 4) for trial in stopped)
    assert all(steps[trial] == 8 for trial, _ in _rates(killed, "complete", sweep))
    # A stage that was stopped left no artifact, and no row among those that were computed.
    made = _rows(killed, "SELECT stage FROM raw.stages")
    assert len(made) == 6 - len(stopped) == len(list((killed / "artifacts").glob("*/stage.json")))
    reached = _rows(killed, RUNGS, sweep)
    assert {trial for trial, _, _ in reached} == set(stopped)
    assert all(max(r for t, r, _ in reached if t == trial) == {2: 1, 4: 2}[steps[trial]] for trial in stopped)
    for trial, kind, step, message in _rows(killed, REASONS, sweep):
        assert (kind, step) == ("pruned", steps[trial])
        assert f"step {step} of 8: loss " in message


def test_a_killed_sweep_and_one_that_found_all_computed_stop_the_same_trials(
    suite_file: Path, whole: Path, killed: Path
) -> None:
    _alike(whole, killed, load_suite(suite_file, [BOTH]).sweep_id())
    # Without rungs, every trial has its whole curve and its score.
    plain = load_suite(suite_file).sweep_id()
    assert {row[3] for row in _rows(whole, TRIALS, plain)} == {"complete"}
    assert _rows(whole, "SELECT count(*) FROM raw.training_steps WHERE metric = 'loss'") == [(6 * 8,)]
    assert _rows(whole, "SELECT count(*) FROM raw.unfinished_steps") == [(0,)]


def test_survivors_have_the_scores_they_have_without_rungs(suite_file: Path, whole: Path, killed: Path) -> None:
    plain, early = (load_suite(suite_file, more).sweep_id() for more in ([], [BOTH]))
    scores = "SELECT trial, metric, value FROM scores WHERE sweep = ? AND phase = 'tune' ORDER BY ALL"
    without = {(t, m): v for t, m, v in _rows(whole, scores, plain)}
    found = {(t, m): v for t, m, v in _rows(killed, scores, early)}
    assert found
    assert found.items() < without.items()


def test_running_it_again_changes_nothing(suite_file: Path, killed: Path) -> None:
    sweep = load_suite(suite_file, [BOTH]).sweep_id()
    before = [_rows(killed, sql, sweep) for sql in (TRIALS, SCORES, REASONS, RUNGS)]
    assert swept(planned(suite_file, killed, BOTH), killed).computed == 0
    assert [_rows(killed, sql, sweep) for sql in (TRIALS, SCORES, REASONS, RUNGS)] == before


def test_worse_on_documents_is_stopped_measured_or_not(suite_file: Path, whole: Path, tmp_path: Path) -> None:
    sweep = load_suite(suite_file, [DOCUMENTS]).sweep_id()
    outcome = swept(planned(suite_file, whole, DOCUMENTS), whole)
    assert outcome.computed == 0
    # The same models in another place, where nothing is measured yet.
    shutil.copytree(whole / "artifacts", tmp_path / "artifacts")
    for batch in whole.glob("shards/*"):
        if (batch / "stages.parquet").exists():
            shutil.copytree(batch, tmp_path / "shards" / batch.name)
    swept(planned(suite_file, tmp_path, DOCUMENTS), tmp_path)
    _alike(whole, tmp_path, sweep)
    reasons = _rows(tmp_path, REASONS, sweep)
    assert reasons
    assert all("of the documents: " in message and "where trial " in message for _, _, _, message in reasons)
    # Nothing is stored of a measurement that was stopped: half of one would pass for the whole.
    counts = "SELECT DISTINCT count(*) FROM samples WHERE half = 'tune' AND metric = 'gold_reward' GROUP BY measurement"
    assert len(_rows(tmp_path, counts)) == 1
    stopped = {trial for trial, *_ in reasons}
    measured = "SELECT DISTINCT trial FROM scores WHERE phase = 'tune' AND sweep = ?"
    assert stopped.isdisjoint(t for (t,) in _rows(tmp_path, measured, sweep))
    assert _rows(tmp_path, "SELECT DISTINCT phase, split FROM scores ORDER BY ALL") == [
        ("final", "final"),
        ("tune", "tune"),
    ]
    # Final figures are of all their documents, whatever the suite says.
    final = "SELECT n FROM scores WHERE phase = 'final' AND metric = 'gold_reward' AND recipe = 'sft' AND sweep = ?"
    assert _rows(tmp_path, final, sweep) == _rows(whole, final, load_suite(suite_file).sweep_id())


def test_a_metric_that_is_not_logged_is_said(suite_file: Path, whole: Path) -> None:
    said = io.StringIO()
    plan = planned(suite_file, whole, ELSEWHERE)
    asyncio.run(run_sweep(plan, whole, InProcess(whole), Display(Console(file=said, width=300))))
    assert said.getvalue().count("no trial is stopped while sft trains, which does not log reward") == 1
    assert "it logs grad_norm, learning_rate, loss" in said.getvalue()


def test_tasks_are_stopped_by_their_documents_and_survivors_have_their_scores(tiny_model: Path, tmp_path: Path) -> None:
    asked = Task(limit=24)
    items = [
        Item(key=f"k{n}", kind="task", task=leaf, settings={"of": leaf, **asked.model_dump()})
        for n, leaf in enumerate(("truthfulqa_mc1", "hellaswag"))
    ]
    spec = MeasureSpec(
        key="k",
        model=f"model:{tiny_model}",
        artifact="a",
        target=Target(name="cpu").model_dump(),
        data="bundled",
        halves=("tune",),
        scorer="prefix-tree",
        items=tuple(items),
        base=f"model:{tiny_model}",
    )
    counted = {i.key: "acc" for i in items}
    shown = (
        "SELECT task, document, metric, score, response, prompt FROM raw.samples JOIN raw.measurements "
        "USING (measurement) ORDER BY ALL"
    )

    def run(name: str, rungs: MeasureRungs | None, kept: Sequence[Item] = items) -> tuple[Result, list[Any]]:
        given = spec.model_copy(update={"rungs": rungs, "items": tuple(kept)})
        result = run_spec(given, tmp_path / name, lambda sign: None)
        store = Store(tmp_path / name)
        store.ingest()
        return result, store.query(shown).rows()

    whole, rows = run("whole", None)
    assert whole.state == "complete", whole.traceback
    own = scores_of(Store(tmp_path / "whole"), counted)
    assert min(len(scores) for scores in own.values()) >= 5

    def against(score: float) -> MeasureRungs:
        rival = {key: dict.fromkeys(scores, score) for key, scores in own.items()}
        fields = {"at": (0.5, 0.9), "direction": "maximize", "p": 0.2, "against": 0}
        return MeasureRungs.model_validate({**fields, "metrics": counted, "tasks": counted, "rival": rival})

    survived, found = run("survived", against(0.0))
    assert survived.state == "complete", survived.traceback
    assert found == rows
    hopeless, none = run("hopeless", against(1.0))
    assert (hopeless.state, none) == ("pruned", [])
    assert list(hopeless.reached) == [1]
    with pytest.raises(HopelessError) as caught:
        judge_scores(against(1.0), own)
    assert hopeless.message == f"HopelessError: {caught.value}"
    # One of the two was measured before: its stored scores count with those that are made now.
    partly = against(1.0).model_copy(update={"known": {"k0": own["k0"]}})
    assert run("partly", partly, items[1:])[0].message == hopeless.message
