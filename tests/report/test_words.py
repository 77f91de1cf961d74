"""The answer says what the data resolve, what they do not, and what they rest on."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from harness.errors import UserError
from harness.report import _words, answer
from harness.report._compare import against_base, compare_recipes, estimate, main_metrics, over_optimisation
from harness.report._queries import read_facts
from harness.report._words import cost_of
from harness.stats import paired_difference
from harness.store import Store
from tests.report.stores import derive, keep, nothing
from tests.store.scenario import SWEEP


def _gold(store: Store, recipe: str) -> dict[str, list[float]]:
    """Straight from the views: document → final gold reward over seeds, on the first target."""
    rows = store.query(
        "SELECT s.document, l.seed, s.score FROM (SELECT DISTINCT seed, measurement, target FROM scores "
        "WHERE recipe = ? AND phase = 'final' AND target = 'cpu-fp32' AND task = 'gold') l "
        "JOIN samples s USING (measurement, target) "
        "WHERE s.metric = 'gold_reward' AND s.half = 'final' ORDER BY s.document, l.seed",
        [recipe],
    )
    found: dict[str, list[float]] = {}
    for document, _, score in rows.iter_rows():
        found.setdefault(document, []).append(score)
    return found


def _suite(text: str, **changes: object) -> str:
    return json.dumps(json.loads(text) | changes)


def _with_suite(store: Store, results: Path, **changes: object) -> Store:
    return derive(
        store,
        results,
        {
            "sweep_events": lambda f: f.with_columns(
                pl.col("suite_json").map_elements(lambda t: _suite(t, **changes), return_dtype=pl.String)
            )
        },
    )


def test_verdict_is_the_paired_difference(store: Store) -> None:
    expected = paired_difference(
        {f"gold/{d}": s for d, s in _gold(store, "ppo").items()},
        {f"gold/{d}": s for d, s in _gold(store, "dpo").items()},
    )
    assert expected.p < 0.05
    text = answer(store, SWEEP)
    assert text.startswith(
        f"ppo beat dpo by {expected.value:.3f} in gold reward (95 % interval [{expected.low:.3f}, {expected.high:.3f}]"
    )


def test_basis_is_stated(store: Store) -> None:
    text = answer(store, SWEEP)
    assert "2 final seeds a recipe, 40 documents that tuning never saw and 4 tuning trials a recipe" in text
    assert "not the official benchmarks" in text
    assert "2 runs did not finish (1 failed and 1 infeasible)" in text


def test_of_many_recipes_a_sentence_names_the_foremost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = re.search(r"Against the base model, gold reward changed: (.*?)\. ", answer(store, SWEEP))
    assert whole is not None
    first, second = whole[1].split("; ")
    monkeypatch.setattr(_words, "_NAMED", 1)
    text = answer(store, SWEEP)
    # ppo gained more than dpo did.
    assert first.startswith("dpo +")
    assert second.startswith("ppo +")
    assert f"Against the base model, gold reward changed: {second}; 1 more, which the tables have. " in text
    assert "1 more, which the tables have (shared stages count in each recipe)" in text


def test_equal_recipes_are_unresolved(store: Store, tmp_path: Path) -> None:
    def alike(frame: pl.DataFrame) -> pl.DataFrame:
        # Every gold reward becomes a coin toss of its document and measurement: no recipe is better.
        toss = (pl.concat_str("measurement", "document").hash(seed=1) % 100) / 100.0
        return frame.with_columns(
            pl.when(pl.col("metric") == "gold_reward").then(toss).otherwise(pl.col("score")).alias("score")
        )

    text = answer(derive(store, tmp_path / "results", {"samples": alike}), SWEEP)
    assert re.match(r"The data do not resolve (ppo from dpo|dpo from ppo): (ppo|dpo) is ahead by", text)
    assert "beat" not in text


def test_less_is_better_where_the_suite_minimizes(store: Store, tmp_path: Path) -> None:
    other = _with_suite(store, tmp_path / "results", objectives={"kl": "minimize"})
    text = answer(other, SWEEP)
    match = re.match(r"dpo beat ppo by (\S+) in kl \(95 % interval \[(\S+), (\S+)\]", text)
    assert match
    lead, low, high = map(float, match.groups())
    assert 0 < low < lead < high


def test_score_weighs_tasks_alike(store: Store, tmp_path: Path) -> None:
    # GSM8K keeps a fifth of its documents; it must weigh as much as before in the mean of the tasks.
    def thin(frame: pl.DataFrame) -> pl.DataFrame:
        gsm8k = pl.col("metric").str.starts_with("exact_match")
        return frame.filter(~gsm8k | (pl.col("document") < "4"))

    changed = derive(store, tmp_path / "a", {"samples": thin})
    facts = read_facts(_with_suite(changed, tmp_path / "b", objectives={"score": "maximize"}), SWEEP)
    base = next(c for c in facts.contenders if c.is_base)
    ppo = next(c for c in facts.contenders if c.recipe == "ppo")
    pairs = main_metrics(facts)
    parts = [(estimate(facts, ppo, *p), estimate(facts, base, *p)) for p in pairs]
    expected = sum(a.value - b.value for a, b in parts if a and b) / len(pairs)
    found = next(c for c in against_base(facts, "score") if c.a == ppo)
    assert len({e.n for pair in parts for e in pair if e}) == 2
    assert found.difference.value == pytest.approx(expected, abs=1e-12)


def test_a_group_is_one_benchmark(store: Store, tmp_path: Path) -> None:
    def split(frame: pl.DataFrame) -> pl.DataFrame:
        subject = pl.when(pl.col("measurement") < "8").then(pl.lit("mmlu_anatomy")).otherwise(pl.lit("mmlu_virology"))
        return frame.with_columns(
            pl.when(pl.col("task") == "mmlu").then(subject).otherwise(pl.col("task")).alias("task")
        )

    renamed = derive(store, tmp_path / "a", {"measurements": split})
    facts = read_facts(_with_suite(renamed, tmp_path / "b", measure={"tasks": {"mmlu": {}, "hellaswag": {}}}), SWEEP)
    assert main_metrics(facts)[:2] == [("mmlu", "acc"), ("hellaswag", "acc_norm")]
    assert not [group for group, _ in main_metrics(facts) if group.startswith("mmlu_")]


def test_base_counts_as_one_seed_and_families_are_corrected(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    found = against_base(facts)
    assert len(found) == 12
    assert all(c.difference.seeds == (2, 1) for c in found)
    assert all(c.adjusted_p >= c.difference.p for c in found)
    assert len(compare_recipes(facts, "gold_reward")) == 1


def test_over_optimisation_is_the_gap_in_deviations(store: Store, tmp_path: Path) -> None:
    # One proxy for all: base's reward is its gold, ppo's is its gold and two deviations of base more.
    golds = {d: s[0] for d, s in _gold(store, "base").items()}
    spread = pl.Series(list(golds.values())).std()
    assert isinstance(spread, float)
    links = store.query("SELECT DISTINCT recipe, measurement FROM scores WHERE task = 'gold'")
    of_ppo = links.filter(pl.col("recipe") == "ppo")["measurement"].implode()

    def proxy(frame: pl.DataFrame) -> pl.DataFrame:
        plain = frame.filter(pl.col("metric") != "rm_reward")
        ahead = pl.when(pl.col("measurement").is_in(of_ppo)).then(2.0 * spread).otherwise(0.0)
        learned = plain.filter(pl.col("metric") == "gold_reward").with_columns(
            pl.lit("rm_reward").alias("metric"), (pl.col("score") + ahead).alias("score")
        )
        return pl.concat([plain, learned])

    other = derive(store, tmp_path / "results", {"samples": proxy})
    facts = read_facts(other, SWEEP)
    who = {c.recipe: c for c in facts.contenders}
    ppo, dpo = over_optimisation(facts, who["ppo"]), over_optimisation(facts, who["dpo"])
    assert ppo is not None
    assert dpo is not None
    assert ppo[2].value == pytest.approx(2.0)
    assert dpo[2].value == pytest.approx(0.0, abs=1e-9)
    assert "(the reward model overstates the gain)" in answer(other, SWEEP)


def test_without_a_common_reward_model_there_is_no_gap(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    assert [over_optimisation(facts, c) for c in facts.contenders] == [None, None, None]


def test_cost_counts_a_shared_stage_once_per_recipe(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    who = {c.recipe: c for c in facts.contenders}
    # One final model: sft 30 s + dpo 45 s. In all: sft with two seeds, trials 0-2 of dpo, the chosen one with seed 1.
    assert cost_of(facts, who["dpo"]).one == pytest.approx(75.0)
    assert cost_of(facts, who["dpo"]).whole == pytest.approx(2 * 30 + 4 * 45)
    assert cost_of(facts, who["base"]).whole == 0


def test_a_running_sweep_says_so(store: Store, tmp_path: Path) -> None:
    final = pl.col("phase") == "final"
    other = derive(
        store,
        tmp_path / "results",
        {
            "sweep_events": keep(pl.col("state") == "running"),
            "trial_events": keep(~final),
            "measurement_links": keep(~final),
        },
    )
    text = answer(other, SWEEP)
    assert text.startswith("The sweep is still running; these figures are partial. No recipe has final figures")


def test_one_finished_recipe_has_nothing_to_compare(store: Store, tmp_path: Path) -> None:
    unfinished = ~((pl.col("recipe") == "ppo") & (pl.col("phase") == "final"))
    changes = {"trial_events": keep(unfinished), "measurement_links": keep(unfinished)}
    text = answer(derive(store, tmp_path / "results", changes), SWEEP)
    assert text.startswith("Only dpo has final figures of gold reward")


def test_documents_that_one_side_lacks_are_said(store: Store, tmp_path: Path) -> None:
    links = store.query("SELECT DISTINCT measurement FROM scores WHERE recipe = 'ppo' AND task = 'gold'")
    lacking = pl.col("measurement").is_in(links["measurement"].implode()) & (pl.col("document") < "8")
    text = answer(derive(store, tmp_path / "results", {"samples": keep(~lacking)}), SWEEP)
    assert re.search(r"ppo and dpo share \d+ of 40 documents; only these are compared", text)


def test_an_objective_without_documents_is_not_tested(store: Store, tmp_path: Path) -> None:
    text = answer(_with_suite(store, tmp_path / "results", objectives={"latency_ms": "minimize"}), SWEEP)
    assert "latency ms, is not a score of documents" in text


def test_unknown_sweep_names_those_there_are(store: Store) -> None:
    with pytest.raises(UserError, match=f"no sweep 'nope'.*{SWEEP}"):
        answer(store, "nope")


def test_nothing_has_begun(store: Store, tmp_path: Path) -> None:
    changes = dict.fromkeys(("trial_events", "measurement_links", "stage_links", "failure_events"), nothing)
    text = answer(derive(store, tmp_path / "results", changes), SWEEP)
    assert text.startswith("No trial has reached an objective yet")
