"""Targets that this machine lacks: refused with their place, or left out with --skip-unavailable, and said so."""

import json
from pathlib import Path

import pytest

from harness import _available
from harness._available import PartialSuite, missing_targets, refusals
from harness.cli import main
from harness.plan import gather_facts, make_plan
from harness.store import Store
from harness.suite import load_suite
from tests.in_process import commanded

SUITE = """name: grid
models: [{model}]
recipes: {{sft: [{{sft: {{steps: 1, batch_size: 1}}}}]}}
targets:
  - {{name: here, device: cpu}}
  - {{name: far, device: "cuda:63"}}
  - name: odd
    device: cpu
    dtype: float16
measure:
  profile: {{prompt_tokens: 4, new_tokens: 2, batch_sizes: [1], repeats: 2, warmup: 0}}
budget: {{trials_per_cell: 1}}
"""


@pytest.fixture
def suite_file(tiny_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(SUITE.format(model=tiny_model))
    return path


def test_a_missing_target_is_refused_where_it_stands(
    suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("plan", "sweep"):
        assert main([command, str(suite_file), "--results", str(tmp_path / "results")]) == 2
        said = capsys.readouterr().err
        assert f"{suite_file}:6:5: targets.1: this machine cannot run far: needs" in said
        assert f"{suite_file}:7:5: targets.2: this machine cannot run odd: float16 on a CPU" in said
        assert "--skip-unavailable" in said
    assert not (tmp_path / "results").exists()


def test_a_target_given_by_set_is_refused_at_the_option(suite_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--set", "targets=[{name: x, device: cuda:63}]"]
    assert main(["plan", str(suite_file), *given]) == 2
    assert "--set targets=[{name: x, device: cuda:63}]: targets.0: this machine cannot run x" in capsys.readouterr().err


def test_a_contradiction_is_refused_even_when_skipping(suite_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--set", "targets.2={name: t, backend: tensorrt}", "--skip-unavailable"]
    assert main(["plan", str(suite_file), *given]) == 2
    assert "runs on NVIDIA GPUs only" in capsys.readouterr().err


def test_a_plan_says_what_is_skipped(suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(suite_file), "--results", str(tmp_path / "results"), "--skip-unavailable"]) == 0
    said = capsys.readouterr().err
    assert "skipped: target far: needs" in said
    assert "skipped: target odd: float16" in said


def test_the_rest_is_done_and_the_gap_is_stored(suite_file: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    places = ["--results", str(results), "--reports", str(tmp_path / "reports")]
    done = commanded("sweep", str(suite_file), "--skip-unavailable", "--workers", "1", *places)
    assert done.returncode == 0, done.stderr
    assert "skipped: target far: " in done.stderr
    store = Store(results)
    assert store.query("SELECT DISTINCT target FROM profiles")["target"].to_list() == ["here"]
    ((sweep, state, plan),) = store.query("SELECT sweep, state, plan_json FROM suites").rows()
    assert state == "complete"
    assert set(json.loads(plan)["skipped"]) == {"far", "odd"}
    # A machine that has the targets continues this sweep.
    assert sweep == load_suite(suite_file).sweep_id()


def test_what_is_left_is_the_same_sweep_with_fewer_targets(suite_file: Path, tmp_path: Path) -> None:
    suite = load_suite(suite_file)
    partial = PartialSuite.of(suite, missing_targets(suite))
    assert [t.name for t in partial.targets] == ["here"]
    assert set(partial.skipped) == {"far", "odd"}
    assert partial.sweep_id() == suite.sweep_id()
    assert (partial.text, partial.source, partial.steps("base")) == (suite.text, suite.source, [])
    assert partial.model_dump(exclude={"targets"}) == suite.model_dump(exclude={"targets"})
    facts = gather_facts(suite, skip_unavailable=True)
    plan = make_plan(facts.suite, facts, tmp_path)
    assert plan.sweep == suite.sweep_id()
    assert plan.to_json()["skipped"] == dict(partial.skipped)


def test_a_whole_suite_skips_nothing(suite_file: Path, tmp_path: Path) -> None:
    suite = load_suite(suite_file, ["targets=[{name: here}]"])
    facts = gather_facts(suite, skip_unavailable=True)
    assert facts.suite is suite
    assert make_plan(facts.suite, facts, tmp_path).skipped == {}


def test_the_quality_target_is_never_skipped_unsaid(suite_file: Path) -> None:
    named = load_suite(suite_file, ["measure.quality_target=far"])
    (refused,) = refusals(named, missing_targets(named), skip=True)
    assert "cannot be skipped: name another with --set measure.quality_target=NAME" in refused
    # Unnamed, it is the first target: the next one is another sweep, whose scores are of other numbers.
    turned = ["targets=[{name: far, device: cuda:63}, {name: here}]"]
    suite = load_suite(suite_file, turned)
    missing = missing_targets(suite)
    assert refusals(suite, missing, skip=True) == []
    partial = PartialSuite.of(suite, missing)
    assert partial.quality_target.name == "here"
    assert partial.sweep_id() != suite.sweep_id()
    assert partial.sweep_id() == load_suite(suite_file, [*turned, "measure.quality_target=here"]).sweep_id()


def test_a_suite_without_any_target_left_is_refused(suite_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_available, "target_problem", lambda target: f"no {target.name}")
    suite = load_suite(suite_file)
    found = refusals(suite, missing_targets(suite), skip=True)
    assert [line.endswith("no other target is left for the base model") for line in found] == [True] * 3


def test_quality_on_a_backend_that_scores_nothing_is_refused(
    suite_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_available, "target_problem", lambda target: None)
    given = [
        "--set",
        "targets=[{name: o, backend: tensorrt, device: cuda}]",
        "--set",
        "measure.tasks={truthfulqa_mc1: {limit: 2}}",
    ]
    assert main(["plan", str(suite_file), *given]) == 2
    assert "quality is not measured on backend tensorrt" in capsys.readouterr().err
