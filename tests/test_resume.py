"""A changed suite: what is still valid is reused, and the plan says before what will be found and computed."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.history import next_batch
from harness.plan import Plan, gather_facts
from harness.search import Past
from harness.show import show_plan
from harness.suite import load_suite
from tests.in_process import planned, swept
from tests.in_process import rows as _rows

SUITE = """
name: changing
models: [{model}]
recipes:
  sft: [{{sft: {{steps: 1, batch_size: 2}}}}]
  dpo:
    - use: sft
    - dpo: {{steps: 1, batch_size: 2, learning_rate: {{min: 1e-5, max: 1e-3, log: true}}}}
measure:
  tasks: {{truthfulqa_mc1: {{limit: 4}}}}
  gold: {{limit: 6, max_new_tokens: 4}}
objectives: {{gold_reward: maximize}}
precision: float32
budget: {{trials_per_cell: 2}}
"""

MORE_TRIALS = "budget.trials_per_cell=4"
ANOTHER_RECIPE = "recipes.longer=[{use: sft}, {sft: {steps: 2, batch_size: 2, learning_rate: {min: 1e-5, max: 1e-4}}}]"


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "changing.yaml"
    path.write_text(SUITE.format(model=tiny_model))
    return path


@pytest.fixture(scope="module")
def before(suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """The results of the suite as it was, and the plan that was made of it."""
    results = tmp_path_factory.mktemp("before") / "results"
    plan = planned(suite_file, results)
    assert swept(plan, results).failures == []
    return results, plan


def _counts(results: Path) -> tuple[int, int]:
    return _rows(results, "SELECT (SELECT count(*) FROM raw.stages), (SELECT count(*) FROM raw.measurements)")[0]


def _trials(results: Path, sweep: str, numbers: int) -> list[Any]:
    return _rows(
        results,
        f"SELECT recipe, trial, settings, objectives, artifact FROM trials WHERE sweep = '{sweep}' AND phase = 'tune' "
        f"AND trial < {numbers} ORDER BY ALL",
    )


def test_a_first_plan_counts_what_is_computed(before: tuple[Path, Plan]) -> None:
    results, plan = before
    found = plan.estimate
    # SFT, what it says as DPO's reference and the first trial's DPO are known, the second's and no more: one seed.
    assert (found.new, found.cached, found.undecided) == (3, 0, 1)
    assert found.stages == _counts(results)[0] == 4
    assert (found.orphaned, found.measured) == (0, 0)


@pytest.mark.parametrize(
    ("change", "stages", "measurements", "orphaned"),
    [
        # The first two trials are found; of the two that follow, the third's settings are known.
        pytest.param(MORE_TRIALS, (1, 4, 1), None, 0, id="more-trials"),
        pytest.param(ANOTHER_RECIPE, (1, 4, 1), None, 0, id="another-recipe"),
        # Another DPO, which sees more rows: SFT is found, what it says of them and both trials are not.
        pytest.param("recipes.dpo.1.dpo.steps=2", (2, 1, 1), None, 3, id="another-setting"),
        # Tuning goes by the gold reward, so that every trial and choice is found: the three models have the new task.
        pytest.param("measure.tasks.hellaswag={limit: 4}", (0, 4, 0), 3, 0, id="another-task"),
        # SFT, its reference and the chosen DPO with the new seed, each policy with its two final measurements.
        pytest.param("seeds=[0, 1]", (3, 4, 0), 4, 0, id="another-seed"),
        # The same numerics under another name, and others that nothing is tuned on.
        pytest.param("targets=[{name: again}, {name: far, dtype: bfloat16}]", (0, 4, 0), 0, 0, id="another-target"),
    ],
)
def test_a_changed_suite_computes_what_its_plan_said(
    change: str,
    stages: tuple[int, int, int],
    measurements: int | None,
    orphaned: int,
    suite_file: Path,
    before: tuple[Path, Plan],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = tmp_path / "results"
    shutil.copytree(before[0], results)
    had = _counts(results)
    plan = planned(suite_file, results, change)
    found = plan.estimate
    assert (found.new, found.cached, found.undecided) == stages
    assert found.stages == sum(stages)
    assert found.orphaned == orphaned
    outcome = swept(plan, results)
    assert outcome.failures == []
    now = _counts(results)
    # One undecided stage is one stage: nothing is suggested twice here.
    assert now[0] - had[0] == found.new + found.undecided
    if measurements is not None:
        assert now[1] - had[1] == measurements == found.measurements - found.measured
        assert outcome.computed >= found.new
    if change != "recipes.dpo.1.dpo.steps=2":
        first = [row for row in _trials(results, plan.sweep, 2) if row[0] == "dpo"]
        assert first == _trials(before[0], before[1].sweep, 2)
    again = planned(suite_file, results, change).estimate
    assert (again.new, again.undecided, again.measurements - again.measured) == (0, 0, 0)
    assert again.cached == found.stages
    show_plan(plan)
    shown = capsys.readouterr().out
    assert ("harness gc --superseded" in shown) == bool(orphaned)


def test_a_trial_begun_keeps_the_settings_it_has(suite_file: Path) -> None:
    """Whatever would be suggested in its place today; the others of its batch are suggested beside it."""
    facts = gather_facts(load_suite(suite_file, [MORE_TRIALS, "budget.batch=2"]))
    model = facts.suite.models[0]
    fresh = next_batch(facts, "dpo", model, [])
    begun = Past(0, {"dpo.learning_rate": 3e-4}, "running")
    kept = next_batch(facts, "dpo", model, [begun])
    assert set(fresh) == set(kept) == {0, 1}
    assert kept[0] == begun.settings != fresh[0]
    # One that is to be run again keeps its settings too, and nothing beyond its batch is touched.
    done = [Past(n, {"dpo.learning_rate": 1e-4}, "complete", (0.5,)) for n in (1, 2, 3)]
    assert next_batch(facts, "dpo", model, [begun, *done]) == {0: begun.settings}
