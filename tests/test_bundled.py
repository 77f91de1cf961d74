"""The bundled sets: official columns, at least 100 documents each, and answers that hold."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from harness.bundled.constraint_topics import HELD_OUT, TOPICS
from harness.data import BUNDLED_FOLDER, DataSource, load_training_set
from harness.gold import gold_reward, parse_constraints

MMLU = ["astronomy", "high_school_biology", "high_school_geography", "miscellaneous", "nutrition"]


def _rows(path: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (BUNDLED_FOLDER / path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("dataset", "config", "split", "at_least"),
    [
        ("Rowan/hellaswag", None, "validation", 100),
        ("Rowan/hellaswag", None, "train", 5),
        ("openai/gsm8k", "main", "test", 100),
        ("openai/gsm8k", "main", "train", 5),
        ("truthfulqa/truthful_qa", "multiple_choice", "validation", 100),
        ("truthfulqa/truthful_qa", "generation", "validation", 100),
        *(("cais/mmlu", subject, "test", 20) for subject in MMLU),
        *(("cais/mmlu", subject, "dev", 5) for subject in MMLU),
    ],
)
def test_columns_are_the_official_ones(
    dataset: str, config: str | None, split: str, at_least: int, shared_data: Path
) -> None:
    import datasets

    with DataSource("bundled").as_hub():
        ours = datasets.load_dataset(dataset, config, split=split)
    with DataSource(str(shared_data)).as_hub():
        official = datasets.load_dataset(dataset, config, split=split)
    assert ours.features == official.features
    assert len(ours) >= at_least


def test_every_benchmark_has_a_hundred_documents() -> None:
    assert len(_rows("Rowan/hellaswag/data/validation.jsonl")) >= 100
    assert len(_rows("openai/gsm8k/main/test.jsonl")) >= 100
    assert sum(len(_load_mmlu(s)) for s in MMLU) >= 100


def _load_mmlu(subject: str) -> list[dict[str, object]]:
    import datasets

    with DataSource("bundled").as_hub():
        return list(datasets.load_dataset("cais/mmlu", subject, split="test"))


def test_mmlu_answers_are_spread_over_the_letters() -> None:
    rows = [row for subject in MMLU for row in _load_mmlu(subject)]
    counts = Counter(row["answer"] for row in rows)
    assert set(counts) == {0, 1, 2, 3}
    assert max(counts.values()) <= 1.3 * min(counts.values())
    assert all(len(set(map(str, row["choices"]))) == 4 for row in rows)  # type: ignore[call-overload]


def test_hellaswag_rows_are_sound() -> None:
    rows = _rows("Rowan/hellaswag/data/validation.jsonl")
    assert all(len(set(row["endings"])) == 4 for row in rows)  # type: ignore[call-overload]
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == {"0", "1", "2", "3"}


def test_gsm8k_is_exactly_what_its_script_makes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness.bundled.make_gsm8k", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_constraint_task_keeps_training_and_held_out_questions_apart() -> None:
    assert not {q for q, _ in TOPICS} & {q for q, _ in HELD_OUT}
    train, _ = load_training_set("prompts", "prompts", DataSource("bundled"))
    held_out, _ = load_training_set("prompts", "prompts", DataSource("bundled"), split="test")
    questions = {q for q, _ in HELD_OUT}
    assert all(not any(row["prompt"][-1]["content"].startswith(q) for q in questions) for row in train)
    assert all(any(row["prompt"][-1]["content"].startswith(q) for q in questions) for row in held_out)
    assert len(train) >= 300
    assert len(held_out) >= 100


def test_preferences_follow_the_gold_reward_but_for_the_stated_noise() -> None:
    rows = _rows("local/constraints/preferences-train.jsonl")
    assert len(rows) >= 300
    wrong = 0
    for row in rows:
        constraints = parse_constraints(str(row["constraints"]))
        chosen, rejected = (gold_reward(row[k][0]["content"], constraints) for k in ("chosen", "rejected"))  # type: ignore[index]
        assert (chosen, rejected) == (row["gold_chosen"], row["gold_rejected"])
        wrong += chosen < rejected
    assert 0.05 <= wrong / len(rows) <= 0.15


def test_demonstrations_are_better_than_chance_and_not_perfect() -> None:
    rows = _rows("local/constraints/instructions-train.jsonl")
    scores = [
        gold_reward(row["completion"][0]["content"], parse_constraints(str(row["constraints"])))  # type: ignore[index]
        for row in rows
    ]
    assert 0.6 <= sum(scores) / len(scores) <= 0.9
