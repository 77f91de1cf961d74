"""Scoring speed, side by side: `prefix-tree` against lm-eval's own `hf` model, on the bundled model and documents.

    make bench

The ratio of the two medians is the figure to quote; the seconds alone depend on what else the machine does.
"""

from typing import Any

import pytest

from harness.data import DataSource
from harness.measure.tasks import measure_tasks
from harness.method import LoadedModel
from harness.models import load_model, resolve_model
from harness.suite import Task

WORK = {"truthfulqa_mc2": Task(limit=8), "hellaswag": Task(limit=16), "mmlu_nutrition": Task(num_fewshot=5, limit=8)}


@pytest.fixture(scope="module")
def bundled() -> LoadedModel:
    """The bundled model in fp32, on one thread."""
    import torch

    torch.set_num_threads(1)
    return load_model(resolve_model("smollm2-135m-instruct"))


@pytest.mark.parametrize("task", sorted(WORK))
@pytest.mark.parametrize("scorer", ["hf", "prefix-tree"])
def test_scoring(benchmark: Any, bundled: LoadedModel, task: str, scorer: Any) -> None:
    """Both scorers must agree before their times mean anything; see tests/measure for that."""
    benchmark.group = task
    rows = benchmark.pedantic(
        lambda: measure_tasks(bundled, DataSource("bundled"), {task: WORK[task]}, ["tune", "final"], scorer),
        rounds=2,
        warmup_rounds=0,
    )
    assert sum(len(r) for r in rows.values()) >= 8
