"""Made data in the report: every critique, revision and choice can be looked at, within a bound, and none is markup."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.method import Record
from harness.report import write_report
from harness.report._made import made_data
from harness.report._queries import read_facts
from harness.store import Store
from tests.report.generations import PRINCIPLE, made_store, revised, sampled, stage_of
from tests.report.stores import derive
from tests.report.test_page import HOSTILE
from tests.store.scenario import SCRIPT, SWEEP


@pytest.fixture(scope="module")
def made(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    said = [("dpo", "sft", seed, revised(40)) for seed in (0, 1)]
    return made_store(store, tmp_path_factory.mktemp("made") / "results", [*said, ("ppo", "ppo", 0, sampled(30, 4))])


def _html(store: Store, limit: int = 60) -> str:
    html = made_data(store, read_facts(store, SWEEP), limit)
    assert html is not None
    return html


def _read(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="made-data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


def _rows(html: str) -> list[list[str]]:
    body = re.search(r"<tbody>(.*?)</tbody>", html, re.DOTALL)
    assert body is not None
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", body[1])]


def test_a_sweep_that_made_no_data_has_no_such_part(store: Store, page: Path) -> None:
    assert made_data(store, read_facts(store, SWEEP), 60) is None
    assert 'id="made"' not in page.read_text(encoding="utf-8")
    assert 'href="#made"' not in page.read_text(encoding="utf-8")


def test_what_each_step_kept_and_how_it_scored(made: Store) -> None:
    rows = _rows(_html(made))
    own = [row[3:] for row in rows if row[:3] == ["dpo", "1. sft", "0"]]
    assert own == [
        ["answer", "40", "40", "–", "–", "–", "–"],
        ["critique", "40", "40", "–", "–", "–", "–"],
        ["revision", "40", "40", "20", "–", "–", "–"],
    ]
    # The stage is shared by both recipes, with either seed.
    assert {tuple(row[:3]) for row in rows} == {
        *((recipe, "1. sft", str(seed)) for recipe in ("dpo", "ppo") for seed in (0, 1)),
        ("ppo", "3. ppo", "0"),
    }
    (samples,) = (row[3:] for row in rows if row[1] == "3. ppo")
    assert samples == ["sample", "120", "30", "30", "1.500", "3.000", "reward"]


def test_a_prompt_has_everything_that_was_said_in_its_order(made: Store) -> None:
    data = _read(_html(made))
    shared = next(i for i, step in enumerate(data["steps"]) if step["name"] == "1. sft")
    assert data["steps"][shared] == {"recipes": ["dpo", "ppo"], "name": "1. sft", "seed": 0}
    row = next(r for r in data["rows"] if r["step"] == shared)
    texts = data["texts"]
    assert [data["kinds"][kind] for kind, *_ in row["said"]] == ["answer", "critique", "revision"]
    critique, revision = row["said"][1:]
    assert texts[critique[2]] == f"Number {row['row']} is rude."
    assert texts[critique[3]] == texts[revision[3]] == PRINCIPLE
    assert texts[revision[2]] == f"It is {2 * row['row']}. {SCRIPT}"
    assert [kept for *_, kept in row["said"]] == [None, None, row["row"] % 2 == 0]
    samples = next(r for r in data["rows"] if r["step"] != shared)
    assert [said[4:] for said in samples["said"]] == [["reward", float(i), i == 3] for i in range(4)]


def test_the_page_holds_no_more_than_asked_and_says_what_it_leaves_out(made: Store, tmp_path: Path) -> None:
    html = _html(made, 10)
    data = _read(html)
    assert [sum(r["step"] == i for r in data["rows"]) for i in range(2)] == [5, 5]
    # Of two seeds of the shared step, and one of the other, forty and thirty prompts.
    assert "10 of 110 prompts" in html
    assert "the other 100 are in the store" in html
    one = stage_of(made, "dpo", "sft", 0)
    few = derive(made, tmp_path / "results", {"generations": lambda f: f.filter(pl.col("stage") == one)})
    assert "All 40 prompts" in _html(few, 60)


def test_of_very_many_samples_those_that_were_kept_are_shown(store: Store, tmp_path: Path) -> None:
    many = made_store(store, tmp_path / "results", [("ppo", "ppo", 0, sampled(2, 300))])
    for row in _read(_html(many))["rows"]:
        assert len(row["said"]) == 24
        assert row["more"] == 276
        assert row["said"][-1][5:] == [299.0, True]


def test_long_texts_are_cut_and_the_page_stays_small(store: Store, tmp_path: Path) -> None:
    long = [Record(i, 0, "answer", f"{i}", f"{i}" + "<é" * 4_000) for i in range(500)]
    html = _html(made_store(store, tmp_path / "results", [("ppo", "ppo", 0, long)]), 500)
    assert len(html.encode()) < 1_200_000
    assert re.search(r"Texts are cut to [\d,]+ characters", html)


def test_a_recipe_without_a_final_run_shows_its_first_tuning_run(made: Store, tmp_path: Path) -> None:
    running = derive(made, tmp_path / "results", {"trial_events": lambda f: f.filter(pl.col("phase") == "tune")})
    steps = {(row[0], row[2]) for row in _rows(_html(running))}
    assert steps == {("dpo", "0"), ("ppo", "0")}


def test_hostile_words_are_text(store: Store, tmp_path: Path) -> None:
    bad = [Record(0, 0, "critique", HOSTILE, HOSTILE, principle=HOSTILE, by=HOSTILE, score=0.5, kept=True)]
    other = made_store(store, tmp_path / "results", [("dpo", "dpo", 0, bad)])
    html = _html(other)
    assert "<img" not in html
    assert html.count("<script") == 1
    assert "onerror=alert(1)" in _read(html)["texts"][0]
    text = write_report(other, SWEEP, tmp_path).read_text(encoding="utf-8")
    assert '<a href="#made">Made data</a>' in text
    assert "<img" not in text
