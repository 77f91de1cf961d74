"""The forest of a sweep: every difference once, with the figures of the tables; of many the foremost."""

import json
import time
from itertools import combinations
from pathlib import Path

import polars as pl
import pytest

from harness.report import _pairs
from harness.report._compare import (
    Comparison,
    against_base,
    against_origin,
    compare_recipes,
    estimate,
    measures,
    paired,
    scores_of,
)
from harness.report._families import foremost, main_figures
from harness.report._pairs import differences
from harness.report._plot import Figure, checked
from harness.report._queries import Facts, read_facts
from harness.stats import cluster_difference, cluster_interval, crossed_interval, detectable, paired_difference
from harness.store import Store
from tests.report.made import made_facts
from tests.report.stores import derive, nothing
from tests.store.scenario import SWEEP

SUBJECTS = [f"mmlu_{name}" for name in ("anatomy", "biology", "chemistry", "law", "virology")]


def _figure(facts: Facts) -> Figure:
    made = differences(facts)
    assert isinstance(made, Figure)
    return made


def _rows(facts: Facts) -> list[dict[str, object]]:
    made = _figure(facts)
    return [dict(zip(made.numbers.headers, row, strict=True)) for row in made.numbers.rows]


def _with_suite(store: Store, results: Path, **changes: object) -> Facts:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        whole = [json.dumps({**json.loads(text), **changes}) for text in frame["suite_json"]]
        return frame.with_columns(pl.Series("suite_json", whole))

    return read_facts(derive(store, results, {"sweep_events": change}), SWEEP)


def test_every_figure_has_each_recipe_against_base_and_every_two_recipes(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    figure = _figure(facts)
    named = ["gold_reward", "mmlu acc", "hellaswag acc_norm", "truthfulqa_mc2 acc", "gsm8k exact_match_flexible"]
    assert sorted(v.label for v in figure.variants) == sorted([*named, "helpfulness", "harmlessness"])
    for variant in figure.variants:
        lines = {(row["first − second"]) for row in _rows(facts) if row["figure"] == variant.label}
        assert {"dpo − base", "ppo − base"} < lines
        assert lines - {"dpo − base", "ppo − base"} <= {"dpo − ppo", "ppo − dpo"}
        assert len(lines) == 3
        assert checked(variant)


def test_the_figures_are_those_of_the_tables(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    rows = {(row["first − second"], row["figure"]): row for row in _rows(facts)}
    shown: list[Comparison] = [
        *compare_recipes(facts, "gold_reward"),
        *against_base(facts, "gold_reward"),
        *against_base(facts),
    ]
    assert len(shown) == 1 + 2 + 12
    for c in shown:
        row = rows[f"{c.a.label} − {c.b.label}", c.what]
        assert (row["difference"], row["95 % from"], row["to"]) == (
            c.difference.value,
            c.difference.low,
            c.difference.high,
        )
        assert (row["Holm p"], row["verdict"]) == (c.adjusted_p, c.verdict)


def test_a_pair_that_the_tables_compare_is_not_corrected_in_another_family(store: Store, tmp_path: Path) -> None:
    recipes = {"dpo": [{"dpo": {}}], "ppo": [{"use": "dpo"}, {"ppo": {}}]}
    facts = _with_suite(store, tmp_path / "results", recipes=recipes)
    rows = _rows(facts)
    once = [(frozenset(str(r["first − second"]).split(" − ")), r["figure"]) for r in rows]
    assert len(once) == len(set(once))
    mine = {r["figure"]: r for r in rows if r["first − second"] == "ppo − dpo"}
    assert against_origin(facts)
    for c in against_origin(facts):
        assert mine[c.what]["Holm p"] == c.adjusted_p
        assert mine[c.what]["family"] == "figures, begins with (6)"


def test_a_benchmark_that_is_the_objective_is_tested_once(store: Store, tmp_path: Path) -> None:
    facts = _with_suite(store, tmp_path / "results", objectives={"mmlu.acc": "maximize", "helpfulness": "maximize"})
    assert ("mmlu", "acc") not in measures(facts)
    assert "mmlu acc" not in {c.what for c in against_base(facts)}
    names = [f.name for f in main_figures(facts)]
    assert names[0] == "mmlu.acc"
    assert len([n for n in names if "mmlu" in n]) == 1
    assert names.count("helpfulness") == 1
    # Gold is no objective here, but a figure one compares by.
    assert "gold_reward" in names
    assert {r["figure"] for r in _rows(facts)} == set(names)


def test_detectable_effect_and_changed_documents_stand_beside_a_difference(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    who = {c.recipe: c for c in facts.contenders}
    row = next(r for r in _rows(facts) if r["figure"] == "mmlu acc" and r["first − second"] == "ppo − base")
    first, second = (scores_of(facts, who[name], "mmlu", "acc") for name in ("ppo", "base"))
    apart = [sum(first[d]) / 2 != second[d][0] for d in second]
    assert 0 < sum(apart) < len(apart)
    assert row["changed"] == f"{100 * sum(apart) / len(apart):.0f} %"
    assert row["detectable"] == detectable(paired_difference(first, second))
    variant = next(v for v in _figure(facts).variants if v.label == "mmlu acc")
    bars = next(t for t in variant.traces if t["name"] == "too small to resolve")
    assert float(row["detectable"]) in bars["x"]  # type: ignore[operator]  # a list of floats


def test_nothing_to_compare_is_said(store: Store, tmp_path: Path) -> None:
    empty = dict.fromkeys(("trial_events", "measurement_links", "stage_links", "failure_events"), nothing)
    made = differences(read_facts(derive(store, tmp_path / "results", empty), SWEEP))
    assert not isinstance(made, Figure)
    assert "No two recipes have final scores of the same documents yet." in made


def _ability(recipe: str, task: str, seed: int, document: int) -> float:
    """The higher a recipe's number the more documents it has right; the base none."""
    number = -1 if recipe == "base" else int(recipe[1:])
    return float((document * 37 + seed * 11 + len(task)) % 100 < 2 * number + 2)


def test_of_many_recipes_the_foremost_are_compared_quickly() -> None:
    recipes = [f"r{n}" for n in range(45)]
    facts = made_facts(recipes, {"a": ["a"], "b": ["b"]}, _ability, documents=100)
    compare_recipes(facts, "score")
    started = time.process_time()
    figure = _figure(facts)
    assert time.process_time() - started < 15
    assert [c.recipe for c in foremost(facts)["m"]] == [f"r{n}" for n in range(44, 24, -1)]
    assert "Of 45 recipes these are the 20 with the best mean in score." in figure.caption
    assert "Of each figure the 40 foremost are drawn" in figure.caption
    rows = _rows(facts)
    assert len(rows) <= 400
    between = {r["first − second"] for r in rows if r["family"] == "figures, recipes (380)"}
    assert between
    assert between <= {f"r{b} − r{a}" for a, b in combinations(range(25, 45), 2)}
    # Half of what is drawn is left to differences from base.
    drawn = [r for r in rows if r["figure"] == "score"][:40]
    assert sum(str(r["first − second"]).endswith(" − base") for r in drawn) == 20
    sizes = [abs(float(r["difference"])) for r in drawn[:20]]  # type: ignore[arg-type]  # a float
    assert sizes == sorted(sizes, reverse=True)
    assert len(next(v for v in figure.variants if v.label == "score").layout["yaxis"]["tickvals"]) == 40  # type: ignore[index]  # a mapping


def test_fewer_are_foremost_where_models_and_figures_are_many() -> None:
    recipes = [f"r{n}" for n in range(30)]
    tasks = {name: [name] for name in "abcde"}
    facts = made_facts(recipes, tasks, _ability, documents=2, models=("m", "n", "o"))
    kept = foremost(facts)
    assert set(kept) == {"m", "n", "o"}
    each = len(kept["m"])
    assert {len(mine) for mine in kept.values()} == {each}
    # As many as their comparisons allow, of three models on the five figures beside the first.
    assert 3 * 5 * each * (each - 1) / 2 <= 1200 < 3 * 5 * (each + 1) * each / 2


def test_less_is_better_where_the_suite_minimizes(store: Store, tmp_path: Path) -> None:
    facts = _with_suite(store, tmp_path / "results", objectives={"kl": "minimize"})
    assert [c.recipe for c in next(iter(foremost(facts).values()))] == ["dpo", "ppo"]


def test_five_subjects_make_intervals_by_subject_and_two_do_not() -> None:
    def score(recipe: str, task: str, seed: int, document: int) -> float:
        good = {"base": 9, "r": 7 + 2 * SUBJECTS.index(task)}[recipe]
        return float((document * 7 + seed) % 20 < good)

    for subjects, of_subjects in ((SUBJECTS, True), (SUBJECTS[:2], False)):
        facts = made_facts(["r"], {"mmlu": subjects}, score)
        who = next(c for c in facts.contenders if c.recipe == "r")
        base = facts.base_of(who)
        assert base is not None
        first, second = (scores_of(facts, w, "mmlu", "acc") for w in (who, base))
        groups = {d: d.split("/")[0] for d in first}
        found, difference = estimate(facts, who, "mmlu", "acc"), paired(first, second)
        assert found is not None
        expected = cluster_interval(first, groups) if of_subjects else crossed_interval(first)
        assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)
        assert difference == (
            cluster_difference(first, second, groups) if of_subjects else paired_difference(first, second)
        )


def test_a_mean_over_benchmarks_goes_by_documents() -> None:
    facts = made_facts(["r1"], {"mmlu": SUBJECTS, "other": ["other"]}, _ability)
    (found,) = against_base(facts, "score")
    assert found.difference.n == 20 * 6
    assert found.difference.seeds == (2, 1)
    assert {c.what for c in against_base(facts)} == {"mmlu acc", "other acc"}


def test_the_table_is_capped_and_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pairs, "_ROWS", 1)
    monkeypatch.setattr(_pairs, "DRAWN", 2)
    facts = read_facts(store, SWEEP)
    made = _figure(facts)
    assert len(made.numbers.rows) == 2 * 7
    assert "The table has the foremost 14 of 21 differences." in made.caption
