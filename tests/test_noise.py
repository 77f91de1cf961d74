"""The noise floor: the base model measured a second time, planned, resumed, keyed, and in no score."""

import asyncio
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from harness.execute import MeasureSpec, Progress, Result, StageSpec
from harness.plan import Plan
from harness.progress import Display
from harness.report._noise import flips_of, noise, noise_table
from harness.report._queries import read_facts
from harness.show import show_plan
from harness.stats import wilson
from harness.store import Store
from harness.sweep import Outcome, run_sweep
from tests.in_process import InProcess, planned, swept
from tests.in_process import rows as _rows

SUITE = """
name: noisy
models: [{model}]
recipes:
  sft: [{{sft: {{steps: 1, batch_size: 2}}}}]
measure:
  tasks: {{truthfulqa_mc1: {{limit: 12}}, gsm8k: {{limit: 6, num_fewshot: 1, max_gen_toks: 4}}}}
  gold: {{limit: 24, max_new_tokens: 8}}
precision: float32
budget: {{trials_per_cell: 1}}
"""
ON = "measure.noise_floor=true"
# All that readers of a comparison go by.
PUBLIC = ("scores", "samples", "judgements", "profiles", "trials", "lineage")


def _table(results: Path, plan: Plan) -> object:
    facts = read_facts(Store(results), plan.sweep)
    return noise_table(facts, noise(Store(results), facts))


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "noisy.yaml"
    path.write_text(SUITE.format(model=tiny_model))
    return path


@pytest.fixture(scope="module")
def plain(suite_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    """The sweep without a noise floor."""
    results = tmp_path_factory.mktemp("plain") / "results"
    plan = planned(suite_file, results)
    assert swept(plan, results).failures == []
    return results, plan


@pytest.fixture(scope="module")
def noisy(
    suite_file: Path, plain: tuple[Path, Plan], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Plan, Outcome]:
    """The same, gone on with once it was asked for: results, the plan before, and how it ended."""
    results = tmp_path_factory.mktemp("noisy") / "results"
    shutil.copytree(plain[0], results)
    plan = planned(suite_file, results, ON)
    return results, plan, swept(plan, results)


def test_it_is_asked_for_and_goes_on_with_the_same_sweep(
    plain: tuple[Path, Plan], noisy: tuple[Path, Plan, Outcome], suite_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, plan, outcome = noisy
    assert plan.sweep == plain[1].sweep
    # Two tasks and the gold measure.
    assert (plan.estimate.repeats, plan.estimate.measurements - plan.estimate.measured) == (3, 3)
    assert plan.estimate.new == 0
    assert outcome.failures == []
    # One process makes them together: the model is loaded once.
    assert outcome.computed == 1
    show_plan(plan)
    assert "3 of the measurements are of the base model a second time" in capsys.readouterr().out
    show_plan(plain[1])
    assert "not measured (measure.noise_floor)" in capsys.readouterr().out
    again = planned(suite_file, results, ON)
    assert again.estimate.measured == again.estimate.measurements == plan.estimate.measurements
    assert swept(again, results).computed == 0
    assert _rows(results, "SELECT count(*) FROM raw.repeat_links") == [(3,)]


def test_the_second_measurement_is_in_no_score(plain: tuple[Path, Plan], noisy: tuple[Path, Plan, Outcome]) -> None:
    for view in PUBLIC:
        assert _rows(noisy[0], f"FROM {view} ORDER BY ALL") == _rows(plain[0], f"FROM {view} ORDER BY ALL")
    sql = "SELECT count(*) FROM raw.measurements WHERE settings->>'repeat' = '1'"
    assert _rows(noisy[0], sql) == [(3,)]
    facts = [read_facts(Store(results), plan.sweep) for results, plan, *_ in (plain, noisy)]
    for frame in ("scores", "documents", "trials"):
        assert getattr(facts[0], frame).equals(getattr(facts[1], frame))


def test_measurements_have_the_keys_that_they_had(plain: tuple[Path, Plan], noisy: tuple[Path, Plan, Outcome]) -> None:
    keys = "SELECT measurement FROM raw.measurements WHERE settings->>'repeat' IS NULL ORDER BY ALL"
    assert _rows(plain[0], keys) == _rows(noisy[0], keys)


def test_a_deterministic_scorer_flips_nothing_and_a_sampled_answer_does(noisy: tuple[Path, Plan, Outcome]) -> None:
    results, plan, _ = noisy
    store = Store(results)
    facts = read_facts(store, plan.sweep)
    found = noise(store, facts)
    assert [(n.group, n.metric) for n in found][:3] == [
        ("truthfulqa_mc1", "acc"),
        ("gsm8k", "exact_match_flexible"),
        ("gsm8k", "exact_match_strict"),
    ]
    for one in found[:3]:
        assert one.flips.value == one.mean_absolute == one.largest == one.moved == 0
        assert one.flips.low == 0
        assert one.flips.high == wilson(0, one.flips.n).high > 0.2
    gold = flips_of(found, "gold", "gold_reward", model=facts.contenders[0].model)
    assert gold is not None
    assert gold.flips.value > 0
    assert gold.mean_absolute > 0
    assert gold.largest >= abs(gold.moved)
    # Worked out another way.
    first, second = (
        dict(
            _rows(
                results,
                "SELECT document, score FROM raw.samples JOIN raw.measurements m USING (measurement) "
                "JOIN (SELECT DISTINCT measurement FROM raw.measurement_links WHERE recipe = 'base' UNION ALL "
                "SELECT measurement FROM raw.repeat_links) USING (measurement) "
                f"WHERE kind = 'gold' AND metric = 'gold_reward' AND settings->>'repeat' {which}",
            )
        )
        for which in ("IS NULL", "= '1'")
    )
    assert first.keys() == second.keys()
    changes = [second[d] - first[d] for d in first]
    assert gold.flips == wilson(sum(c != 0 for c in changes), len(changes))
    assert gold.mean_absolute == pytest.approx(sum(map(abs, changes)) / len(changes))
    assert gold.moved == pytest.approx(sum(changes) / len(changes))
    # The base model's divergence from itself is 0 by definition, and no evidence.
    assert "kl" not in {n.metric for n in found}


def test_the_table_says_what_it_means(plain: tuple[Path, Plan], noisy: tuple[Path, Plan, Outcome]) -> None:
    assert _table(*plain[:2]) is None
    shown = str(_table(*noisy[:2]))
    assert "0.0% [0.0%, " in shown
    assert "No score changed. Of other documents, up to " in shown
    assert "is within what re-measuring alone does" in shown


class _Failing(InProcess):
    """Fails what is measured a second time, as a device without memory does."""

    async def run(self, spec: StageSpec | MeasureSpec, report: Callable[[Progress], None]) -> Result:
        if isinstance(spec, MeasureSpec) and spec.repeat:
            return Result(key=spec.key, state="infeasible", message="out of memory")
        return await super().run(spec, report)


def test_one_that_fails_is_told_and_made_the_next_time(
    plain: tuple[Path, Plan], suite_file: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(plain[0], results)
    plan = planned(suite_file, results, ON)
    outcome = asyncio.run(run_sweep(plan, results, _Failing(results), Display(Console(file=io.StringIO()))))
    (said,) = outcome.failures
    assert said.startswith("base on ")
    assert said.endswith("the noise floor is not known: out of memory")
    assert _rows(results, "SELECT recipe, kind, message, resolved FROM failures") == [
        ("base", "infeasible", "out of memory", False)
    ]
    # The run has its figures.
    assert _rows(results, "SELECT state FROM trials WHERE recipe = 'base'") == [("complete",)]
    shown = str(_table(results, plan))
    assert "not been measured a second time yet" in shown
    assert swept(planned(suite_file, results, ON), results).failures == []
    assert _rows(results, "SELECT count(*) > 0 FROM noise") == [(True,)]
    assert _rows(results, "SELECT resolved FROM failures") == [(True,)]


def test_every_numerics_is_measured_twice_and_profiles_are_not(suite_file: Path, tmp_path: Path) -> None:
    both = "targets=[{name: one}, {name: two, dtype: bfloat16}]"
    profile = "measure.profile={prompt_tokens: 4, new_tokens: 2, repeats: 1}"
    plan = planned(suite_file, tmp_path / "results", ON, both, profile, "measure.every_numerics=true")
    assert plan.estimate.repeats == 6
    assert planned(suite_file, tmp_path / "results", ON, both, profile).estimate.repeats == 3
