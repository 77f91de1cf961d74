"""Who beats whom: shares of documents, ties apart, with the verdicts of the comparisons; and over tasks and seeds."""

import re
from pathlib import Path

import pytest

from harness.report._compare import compare_recipes, scores_of
from harness.report._html import Html
from harness.report._queries import Facts, read_facts
from harness.report._wins import win_matrix
from harness.stats import interquartile_mean, probability_of_improvement
from harness.store import Store
from tests.report.made import made_facts
from tests.report.stores import derive, nothing
from tests.store.scenario import SWEEP


def _tables(made: Html) -> dict[str, dict[tuple[str, str], str]]:
    """Summary of a fold → (row, column) → the cell's text."""
    found = {}
    for summary, body in re.findall(r"<details[^>]*><summary>(.*?)</summary>(.*?)</details>", made, re.DOTALL):
        heads = [_text(h) for h in re.findall(r"<th [^>]*>(.*?)</th>", body)]
        cells = {}
        for row in re.findall(r"<tr><td>(.*?)</tr>", body):
            name, *rest = (_text(c) for c in re.split(r"<td[^>]*>", row))
            cells.update({(name, head): cell for head, cell in zip(heads[1:], rest, strict=True)})
        found[summary] = cells
    return found


def _text(markup: str) -> str:
    return re.sub(r"<[^>]*>", "", markup).strip()


def _score(recipe: str, task: str, seed: int, document: int) -> float:
    """Of ten documents `good` alone is right on four, `bad` alone on one; on five nobody differs."""
    place = document % 10
    return {"good": place < 7, "bad": 4 <= place < 8, "base": 4 <= place < 7}[recipe] * 1.0


def test_a_cell_is_the_share_of_documents_won_with_ties_apart() -> None:
    facts = made_facts(["good", "bad"], {"a": ["a"]}, _score, documents=100)
    cells = _tables(win_matrix(facts))["score"]
    mark = {c.verdict for c in compare_recipes(facts, "score")}
    assert mark == {"higher"}
    assert cells["good", "bad"] == "40 % ▲ =50"
    assert cells["bad", "good"] == "10 % ▼ =50"
    assert cells["good", "good"] == "–"
    assert cells["base", "bad"].startswith("0 %")


def test_shares_are_those_of_the_stored_scores(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    who = {c.recipe: c for c in facts.contenders}
    ppo, dpo = (scores_of(facts, who[name], "gold", "gold_reward") for name in ("ppo", "dpo"))
    won = sum(sum(ppo[d]) > sum(dpo[d]) for d in dpo) / len(dpo)
    made = _tables(win_matrix(facts))
    assert made["gold_reward"]["ppo", "dpo"] == f"{100 * won:.0f} % ▲"
    assert {"mmlu acc", "helpfulness", "all benchmarks: interquartile mean"} < made.keys()


def test_less_wins_where_the_suite_minimizes() -> None:
    facts = made_facts(["good", "bad"], {"a": ["a"]}, _score, documents=100, objectives={"a.acc": "minimize"})
    cells = _tables(win_matrix(facts))["a.acc"]
    assert cells["good", "bad"] == "10 % ▼ =50"
    assert cells["bad", "good"] == "40 % ▲ =50"


def test_colour_is_never_alone_and_follows_wins_less_losses() -> None:
    facts = made_facts(["good", "bad"], {"a": ["a"]}, _score, documents=100)
    made = win_matrix(facts)
    assert '<span class="win up2">40 % ▲</span>' in made
    assert '<span class="win down2">10 % ▼</span>' in made


def test_one_table_is_open_at_a_time() -> None:
    made = win_matrix(made_facts(["good", "bad"], {"a": ["a"], "b": ["b"]}, _score, documents=10))
    assert made.count('<details open name="wins">') == 1
    assert made.count('name="wins"') == made.count("<details")


def _chances(recipe: str, task: str, seed: int, document: int) -> float:
    right = {"x": (12, 16), "y": (10, 14), "base": (9, 9)}[recipe][seed] + (3 if task == "b" else 0)
    return float(document < right)


def test_over_tasks_and_seeds() -> None:
    facts = made_facts(["x", "y"], {"a": ["a"], "b": ["b"]}, _chances)
    made = _tables(win_matrix(facts))
    x, y = ({"a": [a / 20, b / 20], "b": [(a + 3) / 20, (b + 3) / 20]} for a, b in ((12, 16), (10, 14)))
    chance, middle = probability_of_improvement(x, y), interquartile_mean(x)
    cells = made["all benchmarks: probability of improvement"]
    assert cells["x", "y"] == f"{100 * chance.value:.0f} % [{100 * chance.low:.0f}, {100 * chance.high:.0f}]"
    low, high = 1 - chance.high, 1 - chance.low
    assert cells["y", "x"] == f"{100 - 100 * chance.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
    # The base model has one seed: nothing is known of its spread.
    assert cells["x", "base"] == "100 %"
    means = made["all benchmarks: interquartile mean"]
    assert means["x", "scores"] == "4"
    assert means["x", "interquartile mean, 95 %"].startswith(f"{middle.value:.3f} [{middle.low:.3f}, ")
    assert means["base", "interquartile mean, 95 %"].endswith("[unknown]")


def test_one_score_of_each_recipe_has_nothing_over_tasks() -> None:
    made = _tables(win_matrix(made_facts(["good", "bad"], {"a": ["a"]}, _score, seeds=1)))
    assert list(made) == ["score"]


def test_recipes_that_share_part_of_the_documents_are_compared_on_it() -> None:
    facts = made_facts(["good", "bad"], {"a": ["a"]}, _score, documents=100)
    import polars as pl

    gone = (pl.col("label") == "bad") & (pl.col("document") >= "050")
    from dataclasses import replace

    cells = _tables(win_matrix(replace(facts, documents=facts.documents.filter(~gone), cache={})))["score"]
    assert cells["good", "bad"].startswith("40 %")
    none = (pl.col("label") == "bad") & (pl.col("document") < "100")
    made = _tables(win_matrix(replace(facts, documents=facts.documents.filter(~none), cache={})))
    assert set(made["score"]) == {(a, b) for a in ("base", "good") for b in ("base", "good")}


def test_a_hundred_recipes_are_twenty_and_it_is_said() -> None:
    def score(recipe: str, task: str, seed: int, document: int) -> float:
        return float(document * 7 % 20 < (0 if recipe == "base" else int(recipe[1:]) // 5))

    made = win_matrix(made_facts([f"r{n}" for n in range(100)], {"a": ["a"], "b": ["b"]}, score, documents=20))
    assert "Of 100 recipes these are the 20 with the best mean in score." in made
    assert len(_tables(made)["score"]) == 21 * 21
    assert len(made) < 250_000


@pytest.mark.parametrize("models", [("m", "n")])
def test_recipes_of_two_base_models_are_not_mixed(models: tuple[str, ...]) -> None:
    made = _tables(win_matrix(made_facts(["good", "bad"], {"a": ["a"]}, _score, models=models)))
    assert {a for a, _ in made["score · n"]} == {"base · n", "good · n", "bad · n"}


def test_names_are_text() -> None:
    def score(recipe: str, task: str, seed: int, document: int) -> float:
        return float(recipe == "base")

    made = win_matrix(made_facts(["<img src=x onerror=alert(1)>"], {"<b>": ["<b>"]}, score))
    assert "<img" not in made
    assert "<b>" not in made
    assert "&lt;img" in made


def test_nothing_to_compare_is_said(store: Store, tmp_path: Path) -> None:
    empty = dict.fromkeys(("trial_events", "measurement_links", "stage_links", "failure_events"), nothing)
    facts: Facts = read_facts(derive(store, tmp_path / "results", empty), SWEEP)
    assert "No two recipes have final scores of the same documents yet." in win_matrix(facts)
