"""Which settings mattered, how the objective moves with each, and whether gains depend on the model or the data."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.report._compare import scores_of
from harness.report._interactions import interactions
from harness.report._queries import Facts, read_facts
from harness.report._sensitivity import importances, sensitivity
from harness.stats import paired_difference
from harness.store import Store
from tests.report.made import made_facts
from tests.report.searches import saying, tuned
from tests.report.stores import derive, keep
from tests.store.scenario import SWEEP

RATES = [1e-5 * (1 + (7 * t) % 16) for t in range(16)]


def _rows(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    texts = [[re.sub(r"<[^>]*>", "", c) for c in re.findall(r"<td[^>]*>(.*?)</td>", r, re.DOTALL)] for r in rows]
    return [t for t in texts if t]


def _figures(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", text.replace("−", "-"))]


@pytest.fixture(scope="module")
def searched(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """Sixteen trials of dpo in which beta alone decides the objective, and a loss that decides nothing."""
    change = tuned(
        "dpo",
        [{"gold_reward": t / 16} for t in range(16)],
        lambda t: {
            "dpo.beta": 0.01 * 1.3**t,
            "dpo.learning_rate": RATES[t],
            "dpo.loss": "<hinge>" if t % 2 else "sigmoid",
        },
    )
    changes = {"trial_events": change, "sweep_events": saying(sampler="random")}
    return read_facts(derive(store, tmp_path_factory.mktemp("searched"), changes), SWEEP)


def test_importance_needs_four_finished_trials(store: Store, searched: Facts) -> None:
    assert "3 finished tuning trials; at least 4 are needed" in importances(read_facts(store, SWEEP))
    shares = {r[1]: int(r[2].rstrip("%")) for r in _rows(importances(searched)) if r[0] == "dpo"}
    assert set(shares) == {"dpo.beta", "dpo.learning_rate", "dpo.loss"}
    assert shares["dpo.beta"] > 70


def test_the_objective_moves_with_what_decides_it(searched: Facts) -> None:
    html = sensitivity(searched)
    rows = {r[1]: r for r in _rows(html) if r[0] == "dpo"}
    beta = rows["dpo.beta"]
    assert beta[3] == "16"
    # Trials 0 to 4, 5 to 10 and 11 to 15: the thirds of sixteen.
    low, middle, high = (float(x) for x in beta[4:7])
    assert (low, middle, high) == pytest.approx((2 / 16, 7.5 / 16, 13 / 16), abs=6e-4)
    r, below, above = _figures(beta[7])
    assert (r, above) == (1.0, 1.0)
    # In order without exception, and yet no certainty: sixteen trials do not prove the order of all.
    assert 0.9 < below < 1
    assert "<hinge>" not in html
    assert rows["dpo.loss"][2] == "&lt;hinge&gt;: 0.500 (8); sigmoid: 0.438 (8)"


def test_the_correlation_is_spearmans_with_the_interval_of_bonett_and_wright(searched: Facts) -> None:
    (row,) = (r for r in _rows(sensitivity(searched)) if r[:2] == ["dpo", "dpo.learning_rate"])
    r, low, high = _figures(row[7])
    expected = float(stats.spearmanr(RATES, range(16)).statistic)
    half = stats.norm.ppf(0.975) * math.sqrt((1 + expected**2 / 2) / 13)
    wanted = [expected, math.tanh(math.atanh(expected) - half), math.tanh(math.atanh(expected) + half)]
    assert [r, low, high] == pytest.approx(wanted, abs=6e-3)


def test_the_interval_of_a_correlation_covers() -> None:
    from harness.report._sensitivity import _correlation

    random = np.random.default_rng(0)
    true = 6 / math.pi * math.asin(0.6 / 2)
    held = 0
    for _ in range(400):
        x, noise = random.normal(size=(2, 12))
        text = _correlation(x.tolist(), (0.6 * x + 0.8 * noise).tolist())
        assert text is not None
        _, low, high = _figures(text)
        held += low <= true <= high
    assert 0.92 < held / 400 < 0.985


def test_too_few_trials_and_one_value_say_so(store: Store, tmp_path: Path) -> None:
    assert "No recipe has 4 finished tuning trials" in sensitivity(read_facts(store, SWEEP))
    same = tuned("dpo", [{"gold_reward": t / 8} for t in range(8)], lambda t: {"dpo.beta": 0.1})
    (row,) = _rows(sensitivity(read_facts(derive(store, tmp_path, {"trial_events": same}), SWEEP)))
    assert row == ["dpo", "dpo.beta", "0.1", "8", "–", "–", "–", "–"]
    flat = tuned("dpo", [{"gold_reward": 0.5} for _ in range(8)])
    (row,) = _rows(sensitivity(read_facts(derive(store, tmp_path / "flat", {"trial_events": flat}), SWEEP)))
    assert row[4:] == ["0.500", "0.500", "0.500", "–"]


def _score(recipe: str, task: str, seed: int, document: int) -> float:
    hard = 0.5 * (document % 2)
    return hard + {"base": 0.0, "sft": 0.1, "dpo": 0.3}.get(recipe, 0.0) + 0.01 * seed * (document % 3)


def test_an_interaction_is_a_paired_difference_of_differences() -> None:
    import polars as pl

    facts = made_facts(["sft", "dpo"], {"t": ["t"]}, _score, models=("a", "b"), seeds=3)
    # On model b, dpo gains 0.2 less, give or take.
    lost = (pl.col("recipe") == "dpo") & (pl.col("model") == "b")
    less = pl.col("score") - 0.2 - 0.02 * (pl.col("document").cast(pl.Int64) % 5)
    documents = facts.documents.with_columns(pl.when(lost).then(less).otherwise(pl.col("score")).alias("score"))
    facts = _with(facts, documents=documents)
    rows = {r[0]: r for r in _rows(interactions(facts))}
    assert set(rows) == {"sft − base: on a minus on b", "dpo − base: on a minus on b"}
    row = rows["dpo − base: on a minus on b"]
    at = {c.label: c for c in facts.contenders}
    gains = []
    for model in ("a", "b"):
        own, base = (scores_of(facts, at[f"{r} · {model}"], "t", "acc") for r in ("dpo", "base"))
        gains.append({d: [x - base[d][0] for x in own[d]] for d in own})
    expected = paired_difference(*gains)
    assert _figures(row[2].replace("+", "")) == pytest.approx([expected.value, expected.low, expected.high], abs=6e-4)
    assert expected.value == pytest.approx(0.24)
    assert row[3] == "higher"
    assert rows["sft − base: on a minus on b"][3] == "unresolved"


def _with(facts: Facts, **changes: object) -> Facts:
    import dataclasses

    return dataclasses.replace(facts, cache={}, **changes)  # type: ignore[arg-type]  # by the fields' names


def _recipes(**data: tuple[str, str]) -> dict[str, object]:
    return {
        **{f"sft_{d}": [{"sft": {"dataset": f"org/{d}", "steps": 4}}] for d in data["sft"]},
        **{f"dpo_{d}": [{"use": f"sft_{d}"}, {"dpo": {"dataset": "preferences"}}] for d in data["dpo"]},
    }


def test_data_are_crossed_where_recipes_are_alike_but_for_their_dataset() -> None:
    def score(recipe: str, task: str, seed: int, document: int) -> float:
        return (
            0.4 * (recipe == "dpo_x") + 0.1 * (document % 3) + 0.01 * seed + 0.02 * (document % 5) * ("dpo" in recipe)
        )

    facts = made_facts(["sft_x", "sft_y", "dpo_x", "dpo_y"], {"t": ["t"]}, score)
    recipes = _recipes(sft=("x", "y"), dpo=("x", "y"))
    (row,) = _rows(interactions(_with(facts, settings={**facts.settings, "recipes": recipes})))
    assert row[0] == "sft_x − dpo_x (data org/x) minus sft_y − dpo_y (data org/y)"
    assert _figures(row[2])[0] == pytest.approx(-0.4)
    # Another setting beside the dataset, and nothing is crossed.
    recipes["sft_y"] = [{"sft": {"dataset": "org/y", "steps": 5}}]
    assert "No interaction can be asked" in interactions(_with(facts, settings={**facts.settings, "recipes": recipes}))


def test_where_nothing_is_crossed_one_line_says_so(store: Store) -> None:
    html = interactions(read_facts(store, SWEEP))
    assert "it names one model" in html
    assert "<table>" not in html


def test_crossed_but_not_measured_is_said_too(store: Store, tmp_path: Path) -> None:
    import polars as pl

    def twice(frame: pl.DataFrame) -> pl.DataFrame:
        return pl.concat([frame, frame.with_columns(pl.lit("other/model").alias("model"))])

    changes = {"trial_events": twice, "measurement_links": keep(pl.col("phase") == "tune")}
    facts = read_facts(derive(store, tmp_path, changes), SWEEP)
    assert "no two gains have final scores yet" in interactions(facts)
