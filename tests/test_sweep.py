"""The whole loop on a tiny model: real stages, real workers, a real store; kills, resumes and failures included."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.store import Store
from harness.suite import load_suite
from tests.in_process import commanded, planned
from tests.in_process import rows as _rows
from tests.in_process import swept as in_process

ROOT = Path(__file__).parent.parent

SUITE = """
name: tiny
question: Does the loop hold?
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
targets: [{{name: cpu, device: cpu, dtype: float32}}]
measure:
  tasks: {{truthfulqa_mc1: {{limit: 6}}}}
  gold: {{limit: 8, max_new_tokens: 6}}
objectives: {{gold_reward: maximize}}
precision: float32
seeds: [0, 1]
budget: {{trials_per_cell: 2}}
"""

REFERENCE = "methods._reference_logprobs:ReferenceLogprobs"
TRIALS = "SELECT recipe, trial, seed, phase, state, settings, objectives, artifact FROM trials ORDER BY ALL"
SCORES = "SELECT recipe, trial, seed, phase, split, task, metric, value, n, measurement FROM scores ORDER BY ALL"


def _command(suite: Path, results: Path, *more: str) -> list[str]:
    places = ["--results", str(results), "--reports", str(results / "reports")]
    return [sys.executable, "-m", "harness.cli", "sweep", str(suite), *places, *more]


def _run(suite: Path, results: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    command = _command(suite, results, *more)
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=400)


@pytest.fixture(scope="module")
def suite_file(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "tiny.yaml"
    path.write_text(SUITE.format(model=tiny_model))
    return path


@pytest.fixture(scope="module")
def swept(
    suite_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    results = tmp_path_factory.mktemp("swept")
    # One worker: with two, test_kills.py compares.
    return results, _run(suite_file, results, "--workers", "1")


def test_a_sweep_answers(swept: tuple[Path, "subprocess.CompletedProcess[str]"], suite_file: Path) -> None:
    results, done = swept
    assert done.returncode == 0, done.stderr
    assert "Report: " in done.stdout
    assert (results / "reports" / "tiny.html").stat().st_size > 100_000
    states = _rows(results, "SELECT recipe, phase, state, count(*) FROM trials GROUP BY ALL ORDER BY ALL")
    assert states == [
        ("base", "final", "complete", 1),
        ("dpo", "final", "complete", 2),
        ("dpo", "tune", "complete", 2),
        ("ppo", "final", "complete", 2),
        ("ppo", "tune", "complete", 2),
        ("sft", "final", "complete", 2),
    ]
    # SFT, the reward model and what the reference says are shared between recipes and trials: 2 seeds each, and 2 + 1
    # of DPO and of PPO.
    computed = _rows(results, "SELECT method, count(*) FROM stages GROUP BY ALL ORDER BY ALL")
    assert computed == [("dpo", 3), (REFERENCE, 2), ("ppo", 3), ("reward_model", 2), ("sft", 2)]
    assert _rows(results, "SELECT count(*) FROM failures") == [(0,)]
    assert load_suite(suite_file).sweep_id() == _rows(results, "SELECT sweep FROM suites")[0][0]


def test_tuning_never_sees_final_documents(swept: tuple[Path, "subprocess.CompletedProcess[str]"]) -> None:
    results, _ = swept
    assert _rows(results, "SELECT DISTINCT phase, split FROM scores ORDER BY ALL") == [
        ("final", "final"),
        ("tune", "tune"),
    ]
    mixed = "SELECT count(*) FROM (SELECT document FROM samples GROUP BY document HAVING count(DISTINCT half) > 1)"
    assert _rows(results, mixed) == [(0,)]


def test_the_chosen_trial_is_the_best_of_the_tuning_half(
    swept: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    results, _ = swept
    for recipe in ("dpo", "ppo"):
        tuned = _rows(results, f"SELECT trial, objectives FROM trials WHERE recipe = '{recipe}' AND phase = 'tune'")
        best = max(tuned, key=lambda row: (json.loads(row[1])["gold_reward"], -row[0]))[0]
        final = _rows(results, f"SELECT DISTINCT trial FROM trials WHERE recipe = '{recipe}' AND phase = 'final'")
        assert final == [(best,)]


def test_every_model_is_scored_by_the_reward_model_and_base_has_no_kl(
    swept: tuple[Path, "subprocess.CompletedProcess[str]"],
) -> None:
    results, _ = swept
    figures = "SELECT recipe, metric, avg(value) FROM scores WHERE phase = 'final' AND task = 'gold' GROUP BY ALL"
    found = {(r, m): v for r, m, v in _rows(results, figures)}
    assert {r for r, m in found if m == "rm_reward"} == {"base", "sft", "dpo", "ppo"}
    assert found["base", "kl"] == 0.0
    assert found["sft", "kl"] != 0.0


def test_again_recomputes_nothing(swept: tuple[Path, "subprocess.CompletedProcess[str]"], suite_file: Path) -> None:
    results, _ = swept
    before = _rows(results, TRIALS), _rows(results, SCORES), _rows(results, "SELECT count(*) FROM stages")
    command = _command(suite_file, results)[3:]
    shown = commanded(*command, "--dry-run")
    assert re.search(r"^stages after sharing +12 *$", shown.stdout, re.MULTILINE)
    assert re.search(r"^cached already +12 *$", shown.stdout, re.MULTILINE)
    assert re.search(r"^measurements +(\d+) of \1 cached *$", shown.stdout, re.MULTILINE)
    done = commanded(*command)
    assert done.returncode == 0, done.stderr
    assert "Nothing was left to compute." in done.stdout
    assert (_rows(results, TRIALS), _rows(results, SCORES), _rows(results, "SELECT count(*) FROM stages")) == before


@pytest.mark.parametrize(
    ("sign", "workers"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)], ids=["terminated", "interrupted"]
)
def test_a_stopped_sweep_ends_within_seconds_and_says_how_to_go_on(
    suite_file: Path, tmp_path: Path, sign: signal.Signals, workers: int
) -> None:
    command = _command(suite_file, tmp_path, "--workers", str(workers))
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "artifacts").glob("*/stage.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    below = psutil.Process(child.pid).children(recursive=True)
    started = time.monotonic()
    child.send_signal(sign)
    _, said = child.communicate(timeout=30)
    assert time.monotonic() - started < 10
    assert child.returncode == 130, said
    assert f"the same command goes on: harness sweep {suite_file}" in said
    assert _rows(tmp_path, "SELECT state FROM suites") == [("interrupted",)]
    assert len(below) >= workers
    assert not [process for process in below if process.is_running()]


OFFICIAL = """
name: official
models: [{model}]
recipes:
  sft: [{{sft: {{steps: 1, batch_size: 2}}}}]
measure:
  tasks:
    mmlu_anatomy: {{num_fewshot: 2, limit: 4}}
    hellaswag: {{limit: 4}}
    truthfulqa_mc2: {{limit: 4}}
    gsm8k: {{num_fewshot: 1, limit: 4, max_gen_toks: 4}}
precision: float32
budget: {{trials_per_cell: 1}}
"""


def test_the_same_suite_runs_the_official_documents(tiny_model: Path, tmp_path: Path, shared_data: Path) -> None:
    suite = tmp_path / "official.yaml"
    suite.write_text(OFFICIAL.format(model=tiny_model))
    plan = planned(suite, tmp_path / "results", f"data={json.dumps(str(shared_data))}")
    assert in_process(plan, tmp_path / "results").failures == []
    rows = _rows(tmp_path / "results", "SELECT DISTINCT task, data FROM scores WHERE recipe = 'base' ORDER BY ALL")
    assert [task for task, _ in rows] == ["gsm8k", "hellaswag", "mmlu_anatomy", "truthfulqa_mc2"]
    assert {data for _, data in rows} == {"mirror data"}
    store = Store(tmp_path / "results")
    prompts = "\n".join(store.query("SELECT DISTINCT prompt FROM samples WHERE task = 'hellaswag'")["prompt"].to_list())
    import datasets

    with_official = datasets.load_dataset(str(shared_data / "Rowan" / "hellaswag"), split="validation")
    assert any(row["ctx_a"] in prompts for row in with_official.select(range(4)))


def test_the_demo_suite_is_planned_on_the_official_documents(shared_data: Path, tmp_path: Path) -> None:
    suite = str(ROOT / "suites" / "dpo_vs_ppo.yaml")
    done = commanded("plan", suite, "--data", str(shared_data), "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "mirror data" in done.stdout
    assert "unknown" in done.stdout


def test_latency_can_be_an_objective(tiny_model: Path, tmp_path: Path) -> None:
    """Its value is read while the trial still counts as running."""
    suite = tmp_path / "fast.yaml"
    suite.write_text(
        f"name: fast\nmodels: [{tiny_model}]\nprecision: float32\nbudget: {{trials_per_cell: 1}}\n"
        "recipes:\n  sft: [{sft: {steps: 1, batch_size: 2, learning_rate: search}}]\n"
        "measure: {profile: {prompt_tokens: 8, new_tokens: 2, batch_sizes: [2], repeats: 2, warmup: 0}}\n"
        "objectives: {latency_ms: minimize, weight_mb: minimize}\n"
    )
    results = tmp_path / "results"
    assert in_process(planned(suite, results), results).failures == []
    objectives = _rows(tmp_path / "results", "SELECT objectives FROM trials WHERE phase = 'tune'")[0][0]
    assert set(json.loads(objectives)) == {"latency_ms", "weight_mb"}
    assert all(value > 0 for value in json.loads(objectives).values())
    # Training changes no shape: the base model's profile is the trained one's, and both have its figures.
    profiled = _rows(
        tmp_path / "results", "SELECT count(*), count(DISTINCT measurement), count(DISTINCT artifact) FROM profiles"
    )
    (_, measurements, artifacts) = profiled[0]
    assert (measurements, artifacts) == (1, 2)
