"""What tuning found at each budget, what it cost, and how far its score was flattered."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import optuna
import polars as pl
import pytest

from harness.report._budget_curves import budget_curves
from harness.report._compare import objective_estimate
from harness.report._html import Html
from harness.report._optimism import optimism
from harness.report._plot import Figure, Variant, checked
from harness.report._queries import Facts, read_facts
from harness.report._spent import spent
from harness.report._tuning import tuning_trials
from harness.stats import expected_best
from harness.stats import optimism as mean_optimism
from harness.store import Store
from tests.report.searches import saying, tuned
from tests.report.stores import Change, derive, keep
from tests.store.scenario import SWEEP

SCORES = [0.50, 0.62, 0.41, 0.55, 0.58, 0.47, 0.66, 0.52, 0.60, 0.44, 0.57, 0.63]
GOLD = [{"gold_reward": s} for s in SCORES]


def _made(store: Store, folder: Path, **changes: Change) -> Facts:
    return read_facts(derive(store, folder / "results", changes), SWEEP)


def _figure(facts: Facts) -> Figure:
    found = budget_curves(facts)
    assert isinstance(found, Figure)
    for variant in found.variants:
        assert checked(variant)["data"]
    return found


def _line(variant: Variant, recipe: str) -> Any:
    return next(t for t in variant.traces if t.get("name") == recipe)


def _variant(figure: Figure, label: str) -> Variant:
    return next(v for v in figure.variants if v.label.startswith(label))


def test_random_search_is_averaged_over_all_sets_of_trials(store: Store, tmp_path: Path) -> None:
    facts = _made(store, tmp_path, trial_events=tuned("dpo", GOLD), sweep_events=saying(sampler="random"))
    figure = _figure(facts)
    line = _line(_variant(figure, "tuning trials"), "dpo")
    assert line["x"] == list(range(1, len(SCORES) + 1))
    assert line["y"][0] == pytest.approx(sum(SCORES) / len(SCORES))
    assert line["y"][-1] == max(SCORES)
    assert line["y"] == list(expected_best(SCORES).value)
    # Twelve trials bound the better side of the best of one and two, and the worse side of all.
    areas = [
        len(t["x"]) // 2
        for t in _variant(figure, "tuning trials").traces
        if t.get("legendgroup") == "dpo" and "fill" in t
    ]
    assert areas == [12, 2]
    assert "unbiased for random search" in figure.caption
    # 1, 2, 4, 8 and all 12.
    own = [r for r in figure.numbers.rows if r[:2] == ["dpo", "tuning trials"]]
    assert [r[2] for r in own] == ["1", "2", "4", "8", "12"]
    assert own[-1][3] == max(SCORES)
    assert own[-1][5] == "unknown"


def test_an_adaptive_search_is_shown_as_it_went(store: Store, tmp_path: Path) -> None:
    facts = _made(store, tmp_path, trial_events=tuned("dpo", GOLD), sweep_events=saying(sampler="tpe"))
    figure = _figure(facts)
    for variant in figure.variants:
        line = _line(variant, "dpo")
        assert line["y"] == [max(SCORES[: n + 1]) for n in range(len(SCORES))]
        assert line["line"]["shape"] == "hv"
        assert not [t for t in variant.traces if "fill" in t]
    assert "The sampler (tpe) chooses a trial by the results before it" in figure.caption


def test_the_first_ten_of_an_adaptive_search_were_drawn_at_random(store: Store, tmp_path: Path) -> None:
    for sampler in (optuna.samplers.TPESampler, optuna.samplers.GPSampler):
        assert inspect.signature(sampler).parameters["n_startup_trials"].default == 10
    facts = _made(store, tmp_path, trial_events=tuned("dpo", GOLD[:10]), sweep_events=saying(sampler="tpe"))
    figure = _figure(facts)
    assert _line(_variant(figure, "tuning trials"), "dpo")["y"] == list(expected_best(SCORES[:10]).value)
    assert "draws its first 10 trials at random: here, all of them" in figure.caption


def test_what_failed_or_broke_a_constraint_is_a_trial_without_a_score(store: Store, tmp_path: Path) -> None:
    reached = [
        {"gold_reward": 0.5, "kl": 3.0},
        "pruned",
        {"gold_reward": 0.9, "kl": 99.0},
        {"gold_reward": 0.7, "kl": 1.0},
    ]
    only = keep(pl.col("recipe") != "ppo")
    facts = _made(
        store,
        tmp_path,
        trial_events=lambda f: only(tuned("dpo", reached)(f)),
        sweep_events=saying(objectives={"gold_reward": "maximize"}, constraints={"kl": {"max": 20.0}}),
    )
    figure = _figure(facts)
    line = _line(_variant(figure, "tuning trials"), "dpo")
    nan = float("nan")
    assert line["y"] == list(expected_best([0.5, nan, nan, 0.7], failed=0.5).value)
    assert line["y"][-1] == 0.7
    assert "2 trials that failed, were infeasible, pruned, or broke a constraint" in figure.caption


def test_a_search_within_no_constraint_is_named_and_not_drawn(store: Store, tmp_path: Path) -> None:
    facts = _made(
        store,
        tmp_path,
        trial_events=tuned("dpo", [{"gold_reward": 0.9, "kl": 99.0}]),
        sweep_events=saying(constraints={"kl": {"max": 20.0}}),
    )
    figure = _figure(facts)
    assert "No trial has finished within the constraints yet: dpo." in figure.caption
    assert {t.get("name") for v in figure.variants for t in v.traces} <= {"ppo", None}


def test_less_is_better_where_the_suite_says_so(store: Store, tmp_path: Path) -> None:
    facts = _made(
        store,
        tmp_path,
        trial_events=tuned("dpo", [{"kl": s} for s in SCORES]),
        sweep_events=saying(sampler="random", objectives={"kl": "minimize"}),
    )
    line = _line(_variant(_figure(facts), "tuning trials"), "dpo")
    assert line["y"][-1] == min(SCORES)
    assert line["y"] == sorted(line["y"], reverse=True)


def test_costs_add_up_to_what_the_search_spent(store: Store, tmp_path: Path) -> None:
    facts = read_facts(store, SWEEP)
    dpo = next(c for c in facts.contenders if c.label == "dpo")
    trials = tuning_trials(facts, dpo)
    # sft once 30 s, dpo 45 s in the three that finished, 9 s each of measuring, and the failed one's 3.5 s.
    split = spent(facts, dpo, trials, "device_s", split=True)
    assert split == pytest.approx([61.5, 61.5, 61.5, 11.0])
    assert spent(facts, dpo, trials, "device_s", split=False) == pytest.approx([84.0, 54.0, 54.0, 3.5])
    assert spent(facts, dpo, trials, "tokens", split=True) == [0.0] * 4
    # What a used recipe trained is that one's.
    recipes = {"sft": [{"sft": {}}], "dpo": [{"use": "sft"}, {"dpo": {}}], "ppo": [{"ppo": {}}]}
    other = _made(store, tmp_path, sweep_events=saying(recipes=recipes))
    assert spent(other, dpo, trials, "device_s", split=True) == pytest.approx([54.0, 54.0, 54.0, 3.5])


def test_a_budget_of_compute_has_a_curve_where_it_was_counted(store: Store, tmp_path: Path) -> None:
    figure = _figure(read_facts(store, SWEEP))
    assert [v.label for v in figure.variants] == ["tuning trials", "device-seconds"]
    line = _line(_variant(figure, "device-seconds"), "dpo")
    assert line["x"] == sorted(line["x"])
    # All four cost this; what they found together is the best of them.
    assert line["x"][-1] == pytest.approx(195.5)
    found = {t.number: t.values for t in tuning_trials(read_facts(store, SWEEP), read_facts(store, SWEEP).recipes()[0])}
    assert line["y"][-1] == pytest.approx(max(v["gold_reward"] for v in found.values() if v))
    metrics = pl.lit(json.dumps({"train_tokens": 1000, "sampled_tokens": 200}))
    counted = _made(store, tmp_path, stages=lambda f: f.with_columns(metrics.alias("metrics")))
    line = _line(_variant(_figure(counted), "tokens"), "dpo")
    assert line["x"][-1] == pytest.approx(4 * 1200)


def test_more_trials_than_can_be_counted_out_are_averaged_over_drawn_orders(store: Store, tmp_path: Path) -> None:
    reached = [{"gold_reward": (n * 37 % 600) / 600} for n in range(600)]
    facts = _made(store, tmp_path, trial_events=tuned("dpo", reached), sweep_events=saying(sampler="random"))
    line = _line(_variant(_figure(facts), "tuning trials"), "dpo")
    assert (line["x"][0], line["x"][-1]) == (1, 600)
    assert all(n == int(n) for n in line["x"])
    # Of 600 in equal steps the best of n is at n / (n + 1) of the way, about.
    assert line["y"] == pytest.approx([n / (n + 1) for n in line["x"]], abs=0.04)
    assert line["y"][-1] == pytest.approx(599 / 600)


def test_of_many_recipes_those_that_found_the_best_are_shown(store: Store, tmp_path: Path) -> None:
    def more(frame: pl.DataFrame) -> pl.DataFrame:
        one = frame.filter((pl.col("recipe") == "dpo") & (pl.col("phase") == "tune") & (pl.col("state") == "complete"))
        best = [(f"r{n:02}", json.dumps({"gold_reward": n / 20})) for n in range(14)]
        rows = [one.row(0, named=True) | {"recipe": name, "objectives": told} for name, told in best]
        return pl.concat([frame.filter(pl.col("recipe") == "base"), pl.DataFrame(rows, schema=frame.schema)])

    figure = _figure(_made(store, tmp_path, trial_events=more))
    named = [t["name"] for t in _variant(figure, "tuning trials").traces if "name" in t]
    assert named == [f"r{n:02}" for n in range(2, 14)]
    assert "the 12 that found the best are shown" in figure.caption


def test_without_a_finished_trial_the_page_says_so(store: Store, tmp_path: Path) -> None:
    facts = _made(store, tmp_path, trial_events=keep(pl.col("phase") == "final"))
    found = budget_curves(facts)
    assert isinstance(found, Html)
    assert "No tuning trial has finished" in found
    assert "No recipe with a tuning trial" in optimism(facts)


def _cells(html: str) -> dict[str, list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    texts = [[re.sub(r"<[^>]*>", "", c) for c in re.findall(r"<td[^>]*>(.*?)</td>", r, re.DOTALL)] for r in rows]
    return {t[0]: t for t in texts if t}


def _figures(text: str) -> list[float]:
    return [float(n) for n in re.findall(r"-?\d+\.\d+", text.replace("−", "-"))]


def test_optimism_is_tuning_minus_final_score(store: Store) -> None:
    facts = read_facts(store, SWEEP)
    html = optimism(facts)
    cells = _cells(html)
    tuning, final = {}, {}
    for who, chosen in (("dpo", 1), ("ppo", 2)):
        contender = next(c for c in facts.contenders if c.label == who)
        tuning[who] = next(t for t in tuning_trials(facts, contender) if t.number == chosen).values["gold_reward"]
        estimate = objective_estimate(facts, contender, "gold_reward")
        assert estimate is not None
        final[who] = estimate.value
        gap, low, high = _figures(cells[who][4])
        assert gap == pytest.approx(tuning[who] - final[who], abs=6e-4)
        assert low < gap < high
        # The interval of a difference is wider than either side's and narrower than both together.
        sides = [_figures(cells[who][i]) for i in (2, 3)]
        widths = [side[2] - side[1] for side in sides]
        assert max(widths) < high - low < sum(widths)
        assert cells[who][5:] == ["40", "40"]
    mean = mean_optimism(tuning, final)
    shown = _figures(cells["mean of the recipes"][4])
    assert shown == pytest.approx([mean.value, mean.low, mean.high], abs=6e-4)
    assert "Settings are chosen on tuning documents only" in html


def test_optimism_turns_with_the_direction(store: Store, tmp_path: Path) -> None:
    plain = _cells(optimism(read_facts(store, SWEEP)))
    turned = optimism(_made(store, tmp_path, sweep_events=saying(objectives={"gold_reward": "minimize"})))
    a, b = (_figures(c["dpo"][4]) for c in (plain, _cells(turned)))
    assert b == pytest.approx([-a[0], -a[2], -a[1]], abs=1e-9)
    assert "test − tuning" in turned


def test_scores_all_alike_have_no_interval_of_zero_width(store: Store, tmp_path: Path) -> None:
    alike = _made(
        store,
        tmp_path,
        samples=lambda f: f.with_columns(pl.lit(1.0).alias("score")),
        trial_events=tuned("dpo", [{"gold_reward": 1.0}] * 2),
    )
    tuning, final, gap = (_figures(_cells(optimism(alike))["dpo"][i]) for i in (2, 3, 4))
    assert tuning[1] < 1.0
    assert final[1] < 1.0
    assert gap[1] < 0 < gap[2]


def test_an_objective_of_no_documents_has_no_optimism(store: Store, tmp_path: Path) -> None:
    facts = _made(store, tmp_path, sweep_events=saying(objectives={"latency_ms": "minimize"}))
    assert "latency_ms is no score of documents" in optimism(facts)
