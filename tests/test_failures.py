"""What a failed run leaves behind: its reason, its place, the command that runs it alone, an exit code; and budgets."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.spending import Spent, bound_reached
from harness.store import Store
from harness.suite import Budget, load_suite
from tests.in_process import commanded

METHOD = """
import pathlib
from methods.sft import SFT

class Fragile(SFT):
    name = "fragile"

    def run(self, inputs, params, context):
        if not pathlib.Path({switch!r}).exists():
            raise RuntimeError("the switch is off")
        return super().run(inputs, params, context)
"""
SUITE = """
name: holes
models: [{model}]
recipes:
  tuned: [{{sft: {{steps: 2, batch_size: 2, learning_rate: {{min: 1e-5, max: 1e-3, log: true}}}}}}]
  fragile: [{{"fragile:Fragile": {{steps: 1, batch_size: 2}}}}]
  diverged: [{{sft: {{steps: 3, batch_size: 2, learning_rate: 1e30}}}}]
measure:
  gold: {{limit: 6, max_new_tokens: 4}}
objectives: {{gold_reward: maximize}}
precision: float32
budget: {{trials_per_cell: 4, tokens: 1}}
"""


class _Bench:
    def __init__(self, folder: Path, model: Path) -> None:
        self.switch, self.results, self.suite = folder / "switch", folder / "results", folder / "holes.yaml"
        self.suite.write_text(SUITE.format(model=model))
        (folder / "fragile.py").write_text(METHOD.format(switch=str(self.switch)))
        self.folder = folder

    @property
    def sweep(self) -> list[str]:
        places = ["--results", str(self.results), "--reports", str(self.results / "reports"), "--workers", "1"]
        return ["sweep", str(self.suite), *places]

    def rows(self, sql: str) -> list[Any]:
        store = Store(self.results)
        store.ingest()
        return store.query(sql).rows()


@pytest.fixture(scope="module")
def bench(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[_Bench, "subprocess.CompletedProcess[str]"]]:
    found = _Bench(tmp_path_factory.mktemp("holes"), tiny_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(found.folder))
        yield found, commanded(*found.sweep)
    sys.modules.pop("fragile", None)


def test_a_failure_is_data_and_the_others_go_on(bench: tuple[_Bench, "subprocess.CompletedProcess[str]"]) -> None:
    found, done = bench
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "fragile trial 0 seed 0 (final): failed: RuntimeError: the switch is off" in done.stderr
    assert "diverged trial 0 seed 0 (final): infeasible" in done.stderr
    assert "harness retry" in done.stderr
    kinds = (
        "SELECT recipe, kind, step, peak_mb > 50, seconds > 0, traceback LIKE '%Traceback%' FROM failures ORDER BY 1"
    )
    rows = found.rows(kinds)
    assert [r[:2] for r in rows] == [("diverged", "infeasible"), ("fragile", "failed")]
    # The step is where the loss or a weight stopped being finite.
    assert rows[0][2] in (1, 2, 3)
    assert all(r[3] and r[4] and r[5] for r in rows)
    finals = found.rows("SELECT recipe FROM trials WHERE phase = 'final' AND state = 'complete' ORDER BY ALL")
    assert finals == [("base",), ("tuned",)]
    page = (found.results / "reports" / "holes.html").read_text()
    assert "the switch is off" in page
    assert "Run it again alone" in page


def test_a_bound_ends_the_tuning_cleanly_and_says_what_was_left(
    bench: tuple[_Bench, "subprocess.CompletedProcess[str]"], tiny_model: Path
) -> None:
    found, done = bench
    assert f"harness: not done: tuned on {tiny_model}: 3 of 4 trials not run: " in done.stderr
    assert "(budget.tokens)" in done.stderr
    assert found.rows("SELECT count(*) FROM trials WHERE recipe = 'tuned' AND phase = 'tune'") == [(1,)]
    assert "3 of 4 trials not run" in (found.results / "reports" / "holes.html").read_text()


def test_a_failure_stays_until_it_is_run_again_alone_or_retried(
    bench: tuple[_Bench, "subprocess.CompletedProcess[str]"],
) -> None:
    found, _ = bench
    before = found.rows("SELECT count(*) FROM failures"), found.rows("SELECT count(*) FROM raw.trial_events")
    again = commanded(*found.sweep)
    assert again.returncode == 1
    assert "Nothing was left to compute." in again.stdout
    assert "the switch is off" in again.stderr
    assert (found.rows("SELECT count(*) FROM failures"), found.rows("SELECT count(*) FROM raw.trial_events")) == before
    command = shlex.split(found.rows("SELECT command FROM failures WHERE recipe = 'fragile'")[0][0])
    assert command[:2] == ["harness", "run-stage"]
    alone = commanded(*command[1:])
    assert alone.returncode == 1
    assert "RuntimeError: the switch is off" in alone.stderr
    assert "fragile.py" in alone.stderr
    found.switch.touch()
    alone = commanded(*command[1:])
    assert alone.returncode == 0, alone.stderr
    assert "Complete in" in alone.stdout
    unknown = commanded("run-stage", "nothing", "--results", str(found.results))
    assert unknown.returncode == 2
    assert command[2] in unknown.stderr
    places = ["--results", str(found.results), "--reports", str(found.results), "--workers", "1"]
    retried = commanded("retry", str(found.suite), "--recipe", "fragile", *places)
    assert "harness: again: fragile" in retried.stderr
    assert retried.returncode == 1  # for what else has no result
    assert "fragile" not in retried.stderr.split("harness: failed", 1)[-1]
    # Its stage was there already, so only its measurement was made.
    assert found.rows("SELECT state FROM trials WHERE recipe = 'fragile'") == [("complete",)]
    assert found.rows("SELECT count(*) FROM stages WHERE method = 'fragile:Fragile'") == [(1,)]


def test_the_first_bound_that_is_reached_is_named() -> None:
    budget = Budget(trials_per_cell=8, device_hours=0.5, tokens=1000)
    assert bound_reached(budget, Spent(device_hours=0.49, tokens=999)) is None
    assert bound_reached(budget, Spent(device_hours=0.52)) == "0.52 of 0.5 device-hours spent (budget.device_hours)"
    assert "budget.tokens" in str(bound_reached(budget, Spent(tokens=1000)))
    assert bound_reached(Budget(trials_per_cell=8), Spent(1e9, 10**12, 1e9)) is None


def test_a_price_is_needed_for_a_bound_on_the_judge(tmp_path: Path) -> None:
    from harness.errors import UserError

    suite = tmp_path / "judged.yaml"
    text = (
        "name: judged\nmodels: [smollm2-135m-instruct]\nrecipes: {a: [{sft: {}}]}\n"
        "measure: {judge: {}}\nbudget: {trials_per_cell: 1, judge_cost: 2.5}\n"
    )
    suite.write_text(text)
    with pytest.raises(UserError, match=r"judged.yaml:5:.*budget.judge_cost: no vote has a price"):
        load_suite(suite)
    suite.write_text(text.replace("judge: {}", "judge: {cost_per_vote: 0.01}"))
    assert load_suite(suite).budget.judge_cost == 2.5
