"""A run of the installed lm-eval, imported: its figures, and row for row what our own measurement has."""

import functools
import getpass
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.data import DataSource
from harness.foreign import Imported, import_lm_eval
from harness.measure._index import listing
from harness.models import load_model
from harness.store import TABLES, Store

LIMIT = 6
TASKS = ("hellaswag", "gsm8k", "mmlu_nutrition", "truthfulqa_mc2")
TOKENS = 6

# Self-consistency: every question is answered three times. And a perplexity, which no single document has.
_REPEATED = f"""
task: repeated
dataset_path: openai/gsm8k
dataset_name: main
output_type: generate_until
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
repeats: 3
generation_kwargs: {{until: ["\\n"], do_sample: true, temperature: 1.0, max_gen_toks: {TOKENS}}}
filter_list:
  - {{name: score-first, filter: [{{function: take_first}}]}}
  - {{name: maj@3, filter: [{{function: majority_vote}}, {{function: take_first}}]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
_ROLLING = """
task: rolling
dataset_path: openai/gsm8k
dataset_name: main
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
metadata: {version: 1.0}
"""


@dataclass(frozen=True)
class _Settings:
    num_fewshot: int | None = 1
    limit: int | None = LIMIT
    max_gen_toks: int | None = None


# As torch.utils.collect_env tells of a machine, which it takes seconds to find out.
_MACHINE = """PyTorch version: 2.13.0+cu130
Python version: 3.11.7 (main, May  9 2026, 07:35:25) [GCC 12.2.0] (64-bit runtime)
GPU models and configuration:
GPU 0: NVIDIA H100 80GB HBM3
GPU 1: NVIDIA H100 80GB HBM3
Model name:                              Some(R) Processor
[conda] env at /home/alice/miniconda3
"""


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A cache for the module, and the folders of tasks that lm-eval reads: all of its own would take longer than the
    rest of the tests here."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    own = tmp_path_factory.mktemp("tasks")
    (own / "repeated.yaml").write_text(_REPEATED)
    (own / "rolling.yaml").write_text(_ROLLING)
    few = [str(own), *(str(root / name) for name in ("hellaswag", "gsm8k", "mmlu", "truthfulqa"))]
    manager = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False, include_path=few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(lm_eval.tasks, "TaskManager", manager)
        patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: _MACHINE)
        listing.cache_clear()
        yield few
    # Other modules need the listing of all tasks.
    listing.cache_clear()


@pytest.fixture(scope="module")
def output(tiny_model: Path, places: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `lm_eval run --log_samples --output_path` leaves: the calls that its command line makes."""
    import lm_eval.tasks
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    folder = tmp_path_factory.mktemp("lm-eval")
    tracker = EvaluationTracker(output_path=str(folder))
    with DataSource("bundled").as_hub():
        results: dict[str, Any] = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(tiny_model), "dtype": "float32"},
            tasks=[*TASKS, "repeated", "rolling"],
            num_fewshot=1,
            limit=LIMIT,
            batch_size=4,
            device="cpu",
            gen_kwargs={"max_gen_toks": TOKENS},
            task_manager=lm_eval.tasks.TaskManager(include_path=places),
            evaluation_tracker=tracker,
            bootstrap_iters=10,
            random_seed=3,
        )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for task in results["configs"]:
        tracker.save_results_samples(task_name=task, samples=samples[task])
    return folder


@pytest.fixture(scope="module")
def imported(output: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Imported]:
    store = Store(tmp_path_factory.mktemp("results"))
    return store, import_lm_eval(output, store, "theirs")


def test_scores_are_those_of_lm_eval(imported: tuple[Store, Imported], output: Path) -> None:
    store, found = imported
    (path,) = output.glob("*/results_*.json")
    listed = json.loads(path.read_text())["results"]
    short = {"none": "", "strict-match": "_strict", "flexible-extract": "_flexible", "score-first": "_score"}
    expected = {}
    for task in (*TASKS, "repeated"):
        for key, value in listed[task].items():
            metric, comma, used = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                expected[task, metric + short.get(used, f"_{used}")] = value
    rows = store.query("SELECT * FROM scores").rows(named=True)
    assert {(r["task"], r["metric"]): r["value"] for r in rows} == pytest.approx(expected, rel=1e-9)
    assert len(expected) == 8
    assert any(0 < value < 1 for value in expected.values())
    assert {(r["n"], r["split"], r["phase"], r["sweep"], r["recipe"], r["seed"]) for r in rows} == {
        (LIMIT, "final", "final", found.sweep, "theirs", 3)
    }


def test_what_was_taken_is_told(imported: tuple[Store, Imported], tiny_model: Path) -> None:
    _, found = imported
    assert found.new
    assert found.sweep.startswith("import-theirs-")
    assert found.model == tiny_model.name
    assert found.tasks == dict.fromkeys((*TASKS, "repeated"), LIMIT)
    assert list(found.skipped) == ["rolling"]
    assert "word_perplexity, bits_per_byte: no score for each document" in found.skipped["rolling"]
    assert found.notes == ()


def test_rows_are_those_of_our_own_measurement(imported: tuple[Store, Imported], tiny_model: Path) -> None:
    from harness.measure.tasks import measure_tasks

    store, _ = imported
    asked = {
        **{task: _Settings() for task in ("hellaswag", "mmlu_nutrition")},
        # lm-eval fixes no shots for it.
        "truthfulqa_mc2": _Settings(num_fewshot=None),
        "gsm8k": _Settings(max_gen_toks=TOKENS),
    }
    ours = measure_tasks(load_model(tiny_model), DataSource("bundled"), asked, ["tune", "final"], "hf")
    for task, rows in ours.items():
        theirs = store.query(
            "SELECT document, prompt_hash, metric, score, response, expected, prompt FROM raw.samples "
            "JOIN raw.measurements USING (measurement) WHERE task = ?",
            [task],
        ).rows(named=True)
        mine = sorted(({k: v for k, v in r.items() if k != "half"} for r in rows), key=_place)
        assert len(mine) == len(theirs) >= LIMIT
        for row, other in zip(mine, sorted(theirs, key=_place), strict=True):
            assert other == {**row, "score": pytest.approx(row["score"], abs=1e-5)}


def _place(row: dict[str, Any]) -> tuple[str, str]:
    return row["document"], row["metric"]


def test_importing_again_adds_nothing(imported: tuple[Store, Imported], output: Path) -> None:
    store, found = imported
    batches = sorted(store.shards.iterdir())
    again = import_lm_eval(output, store, "theirs")
    assert sorted(store.shards.iterdir()) == batches
    assert again.sweep == found.sweep
    assert not again.new
    # Also where the folder of the model itself is given.
    (inner,) = (p for p in output.iterdir() if p.is_dir())
    assert not import_lm_eval(inner, store, "theirs").new


def test_another_name_shares_the_measurements(output: Path, tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = import_lm_eval(output, store, "one"), import_lm_eval(output, store)
    assert second.name == second.model
    assert first.sweep != second.sweep
    counts = "SELECT count(*) AS rows, count(DISTINCT measurement) AS keys FROM raw.measurements"
    assert store.query(counts).row(0) == (5, 5)
    shared = "SELECT sweep, sum(n) AS n FROM scores GROUP BY sweep"
    assert dict(store.query(shared).rows()) == {first.sweep: 8 * LIMIT, second.sweep: 8 * LIMIT}


def test_nothing_of_the_other_machine_is_stored(imported: tuple[Store, Imported], tiny_model: Path) -> None:
    store, _ = imported
    stored = "\n".join(
        str(store.query(f"SELECT * FROM raw.{name}").rows()) for name in TABLES if name not in ("samples",)
    )
    assert str(tiny_model.parent) not in stored
    assert "/work" not in stored
    assert str(Path.home()) not in stored
    assert f"/{getpass.getuser()}/" not in stored
    settings = json.loads(store.query("SELECT settings FROM raw.measurements WHERE task = 'gsm8k'").item())
    told = ("lm_eval_version", "num_fewshot", "limit", "chat_template", "repeats", "random_seed", "documents_by")
    assert {k: settings[k] for k in told} == {
        "lm_eval_version": "0.4.13",
        "num_fewshot": 1,
        "limit": LIMIT,
        "chat_template": False,
        "repeats": 1,
        "random_seed": 3,
        "documents_by": "ours",
    }
    assert settings["model_args"] == {"pretrained": tiny_model.name, "dtype": "float32"}
    environment = json.loads(store.query("SELECT json FROM environments").item())
    assert environment["machine"] == {"cpu": "Some(R) Processor", "gpu": "NVIDIA H100 80GB HBM3"}
    assert environment["packages"]["lm-eval"] == "0.4.13"
    assert environment["python"] == "3.11.7"
    # What looks like a path and is none stays as it is.
    assert "</s>" in settings["generation_kwargs"]["until"]
