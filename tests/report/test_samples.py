"""The data of the samples browser: exact scores, the right order, and never more than a page can hold."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.report._queries import Facts, read_facts
from harness.report._samples import sample_browser
from harness.store import Store
from tests.report.stores import derive
from tests.store.scenario import SWEEP

_SCORES = """
    SELECT DISTINCT c.recipe, s.task, s.document, s.metric, s.score
    FROM scores c JOIN samples s USING (measurement, target, task)
    WHERE c.sweep = $sweep AND c.phase = 'final' AND s.half = 'final' AND s.target = 'cpu-fp32' AND c.seed = 0
"""


@pytest.fixture(scope="module")
def facts(store: Store) -> Facts:
    return read_facts(store, SWEEP)


def _read(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="sample-data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


def _lead(html: str) -> str:
    found = re.search(r'<p class="lead">(.*?)</p>', html)
    assert found is not None
    return found[1]


def test_scores_are_those_of_the_store(store: Store, facts: Facts) -> None:
    data = _read(sample_browser(store, facts, 1_000))
    sent = {
        (data["who"][who], entry["task"], entry["id"], metric["name"]): score
        for task in data["tasks"]
        if task["name"] != "judge"
        for entry in task["documents"]
        for who, _, _, scores in entry["answers"]
        for metric, score in zip(task["metrics"], scores, strict=True)
        if score is not None
    }
    stored = {tuple(row[:4]): row[4] for row in store.query(_SCORES, {"sweep": SWEEP}).rows()}
    assert len(stored) > 900
    assert sent == stored


def test_a_task_says_what_its_metrics_are(store: Store, facts: Facts) -> None:
    data = _read(sample_browser(store, facts, 60))
    tasks = {task["name"]: task for task in data["tasks"]}
    assert list(tasks)[:2] == ["gold", "judge"]
    metrics = {name: [(m["name"], m["binary"], m["better"]) for m in t["metrics"]] for name, t in tasks.items()}
    assert metrics["gsm8k"][0] == ("exact_match_flexible", True, "higher")
    assert metrics["hellaswag"][0] == ("acc_norm", True, "higher")
    # Called acc, and yet a probability.
    assert metrics["truthfulqa_mc2"] == [("acc", False, "higher")]
    assert metrics["gold"][0] == ("gold_reward", False, "higher")
    assert ("kl", False, "lower") in metrics["gold"]
    assert ("length", False, "none") in metrics["gold"]
    assert metrics["judge"][0] == ("helpfulness", False, "higher")


def test_documents_on_which_recipes_differ_come_first(store: Store, facts: Facts) -> None:
    html = sample_browser(store, facts, 60)
    data = _read(html)
    gsm8k = next(t for t in data["tasks"] if t["name"] == "gsm8k")
    assert (len(gsm8k["documents"]), gsm8k["total"]) == (10, 40)

    def spread(entry: dict[str, Any]) -> float:
        values = [scores[0] for *_, scores in entry["answers"]]
        return float(max(values) - min(values))

    whole = next(t for t in _read(sample_browser(store, facts, 1_000))["tasks"] if t["name"] == "gsm8k")
    differing = sum(spread(entry) == 1 for entry in whole["documents"])
    assert 0 < differing < 40
    assert [spread(e) for e in gsm8k["documents"]] == sorted(map(spread, whole["documents"]), reverse=True)[:10]
    assert "60 of 212 documents" in _lead(html)


def test_answers_name_recipe_and_seed_and_texts_stand_once(store: Store, facts: Facts) -> None:
    data = _read(sample_browser(store, facts, 60))
    first = data["tasks"][0]["documents"][0]
    assert [(data["who"][who], seed) for who, seed, *_ in first["answers"]] == [("base", None), ("dpo", 0), ("ppo", 0)]
    assert len(set(data["texts"])) == len(data["texts"])
    assert data["texts"][first["prompt"]].startswith("gold document")
    assert data["texts"][first["answers"][2][2]].startswith(("The answer of ppo", "<script>"))


def test_subjects_of_a_benchmark_are_one_task(store: Store, facts: Facts, tmp_path: Path) -> None:
    def split(frame: pl.DataFrame) -> pl.DataFrame:
        subject = pl.when(pl.col("task") == "mmlu").then(pl.lit("mmlu_law")).otherwise(pl.col("task"))
        return frame.with_columns(subject.alias("task"))

    def asked(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.lit(json.dumps({"measure": {"tasks": {"mmlu": {}}}})).alias("suite_json"))

    other = derive(store, tmp_path / "results", {"measurements": split, "sweep_events": asked})
    data = _read(sample_browser(other, read_facts(other, SWEEP), 60))
    mmlu = next(t for t in data["tasks"] if t["name"] == "mmlu")
    assert {entry["task"] for entry in mmlu["documents"]} == {"mmlu_law"}
    assert all(entry["prompt"] is not None for entry in mmlu["documents"])


def test_long_texts_of_many_are_cut_and_it_is_said(store: Store, tmp_path: Path) -> None:
    # Each of a thousand answers and more is a long text of its own, of characters that take six bytes in the page.
    def long(frame: pl.DataFrame) -> pl.DataFrame:
        text = pl.col("measurement") + pl.col("document") + pl.lit("<é" * 3_000)
        return frame.with_columns(text.alias("response"))

    other = derive(store, tmp_path / "results", {"samples": long})
    html = sample_browser(other, read_facts(other, SWEEP), 1_000)
    assert len(html.encode()) < 2_600_000
    found = re.search(r"Texts are cut to ([\d,]+) characters", _lead(html))
    assert found is not None
    data = _read(html)
    answer = data["texts"][data["tasks"][0]["documents"][0]["answers"][0][2]]
    length = int(found[1].replace(",", ""))
    assert re.search(r"… \([\d,]+ more characters are in the store\)$", answer)
    assert answer.index("…") == length
    assert "Texts are cut" not in _lead(sample_browser(store, read_facts(store, SWEEP), 1_000))
