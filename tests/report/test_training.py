"""Training curves: means over seeds with bands, single seeds, tuning runs, and what is left out of many."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from harness.report._html import number
from harness.report._plot import Figure, Variant, checked
from harness.report._queries import Contender, Facts, read_facts
from harness.report._training import training
from harness.store import Store
from tests.report.made import made_facts
from tests.report.stores import derive
from tests.store.scenario import SWEEP

Value = Callable[[str, int, int], float]
"""Recipe, seed and step → what was logged."""


def _facts(recipes: Sequence[str], value: Value, *, seeds: int = 3, steps: int = 10, tuning: int = 0) -> Facts:
    """Recipes that each train once, by a method `sft`; `tuning` runs of the first seed besides."""
    facts = made_facts(recipes, {"t": ["t"]}, lambda *_: 0.0, documents=1)
    runs = [(r, 0, seed, "final") for r in recipes for seed in range(seeds)]
    runs += [(r, 1 + trial, 0, "tune") for r in recipes for trial in range(tuning)]
    rows = [
        (r, trial, seed, phase, f"{r}/{trial}/{seed}", "sft", "loss", step, value(r, seed, step) + trial)
        for r, trial, seed, phase in runs
        for step in range(1, steps + 1)
    ]
    columns = ["label", "trial", "seed", "phase", "stage", "method", "metric", "step", "value"]
    lineage = [(r, trial, seed, 0, "sft", f"{r}/{trial}/{seed}") for r, trial, seed, _ in runs]
    return dataclasses.replace(
        facts,
        cache={},
        training=pl.DataFrame(rows, schema=columns, orient="row"),
        lineage=pl.DataFrame(lineage, schema=["label", "trial", "seed", "position", "step", "stage"], orient="row"),
    )


def _figure(facts: Facts) -> Figure:
    found = training(facts)
    assert isinstance(found, Figure)
    for variant in found.variants:
        assert checked(variant)["data"]
    return found


def _lines(variant: Variant, name: str) -> list[Any]:
    """The traces of a recipe: the most opaque first."""
    own = [t for t in variant.traces if t.get("name") == name]
    return sorted(own, key=lambda t: -float(str(t["opacity"])))


def _band(variant: Variant, name: str) -> tuple[list[float], list[float], str]:
    """The lower and the upper bound of a recipe's band, each an area between it and the line; and its colour."""
    found: list[Any] = [t for t in variant.traces if "fill" in t and t["legendgroup"] == name]
    below, above = found
    n = len(below["x"]) // 2
    assert below["y"][:n] == above["y"][:n] == _lines(variant, name)[0]["y"]
    assert below["x"] == [*below["x"][:n], *below["x"][:n][::-1]] == above["x"]
    return below["y"][n:][::-1], above["y"][n:][::-1], below["fillcolor"]


def _rows(figure: Figure, name: str, metric: str = "loss") -> list[dict[str, object]]:
    rows = (dict(zip(figure.numbers.headers, r, strict=True)) for r in figure.numbers.rows)
    return [r for r in rows if r["recipe"] == name and r["metric"] == metric]


def test_two_seeds_have_a_mean_and_span_a_band(store: Store) -> None:
    figure = _figure(read_facts(store, SWEEP))
    variant = next(v for v in figure.variants if v.label == "dpo · loss")
    mean, *rest = _lines(variant, "dpo")
    finals = [t for t in rest if t["opacity"] == 0.5]
    assert len(finals) == 2
    assert mean["y"] == pytest.approx(np.mean([t["y"] for t in finals], axis=0))
    low, high = np.min([t["y"] for t in finals], axis=0), np.max([t["y"] for t in finals], axis=0)
    drawn = _band(variant, "dpo")
    assert drawn[0] == pytest.approx(low)
    assert drawn[1] == pytest.approx(high)
    # The chosen trial's run with the first seed is a final run; three others were tuning runs, one of which failed.
    assert [t["opacity"] for t in rest if t["opacity"] < 0.5] == [0.28] * 3
    first = _rows(figure, "dpo")[0]
    assert first["run"] == "mean of 2 seeds, lowest to highest"
    assert first["band at the last"] == f"{number(low[-1])} to {number(high[-1])}"


def test_from_three_seeds_on_the_band_is_students() -> None:
    values = {0: 1.0, 1: 2.0, 2: 6.0}
    figure = _figure(_facts(["a"], lambda _, seed, step: values[seed] + step))
    (variant,) = figure.variants
    band, mean = _band(variant, "a"), _lines(variant, "a")[0]
    assert mean["y"] == pytest.approx([3.0 + s for s in range(1, 11)])
    low, high = stats.t.interval(0.95, 2, loc=4.0, scale=np.std([1, 2, 6], ddof=1) / math.sqrt(3))
    assert (band[0][0], band[1][0]) == pytest.approx((low, high))
    assert "95 % t interval" in str(mean["hovertext"][0])
    # Areas lie under every line, and are told apart from one another by more than colour.
    kinds = ["fill" in t for t in variant.traces]
    assert kinds == sorted(kinds, reverse=True)
    assert mean["mode"] == "lines+markers"


def test_the_mean_goes_as_far_as_every_seed() -> None:
    def value(_: str, seed: int, step: int) -> float:
        return float("nan") if seed == 1 and step > 4 else float(step)

    figure = _figure(_facts(["a"], value))
    mean, *seeds = _lines(figure.variants[0], "a")
    assert mean["x"] == [1, 2, 3, 4]
    assert sorted(len(t["x"]) for t in seeds) == [4, 10, 10]
    assert "6 logged values were NaN or infinite and are not drawn" in figure.caption


def test_one_seed_stands_for_itself() -> None:
    figure = _figure(_facts(["a"], lambda *_: 1.0, seeds=1, tuning=2))
    (variant,) = figure.variants
    assert not [t for t in variant.traces if "fill" in t]
    assert [t["opacity"] for t in _lines(variant, "a")] == [1.0, 0.28, 0.28]
    assert [r["run"] for r in _rows(figure, "a")] == [
        "final run, trial 0, seed 0",
        "tuning run, trial 1, seed 0",
        "tuning run, trial 2, seed 0",
    ]


def test_each_name_stands_in_the_legend_once() -> None:
    figure = _figure(_facts(["a", "b"], lambda *_: 1.0, tuning=2))
    (variant,) = figure.variants
    assert sorted(str(t["name"]) for t in variant.traces if t["showlegend"]) == ["a", "b"]


def test_a_shared_stage_is_drawn_once_under_all_that_used_it(store: Store) -> None:
    figure = _figure(read_facts(store, SWEEP))
    variant = next(v for v in figure.variants if v.label == "sft · loss")
    assert {str(t["name"]) for t in variant.traces if "name" in t} == {"dpo + ppo"}
    assert len(_lines(variant, "dpo + ppo")) == 3


def test_a_method_that_a_recipe_uses_twice_is_two_lines() -> None:
    facts = _facts(["a"], lambda *_: 1.0, seeds=2)
    again = facts.lineage.with_columns(pl.col("position") + 1, pl.concat_str("stage", pl.lit("/2")).alias("stage"))
    later = facts.training.with_columns(pl.concat_str("stage", pl.lit("/2")).alias("stage"), pl.col("value") + 1)
    both = dataclasses.replace(
        facts, cache={}, lineage=pl.concat([facts.lineage, again]), training=pl.concat([facts.training, later])
    )
    (variant,) = _figure(both).variants
    assert [_lines(variant, f"a, step {n}")[0]["y"][0] for n in (1, 2)] == [1.0, 2.0]


def test_many_recipes_have_their_bands_in_the_table_only() -> None:
    names = [f"r{n}" for n in range(9)]
    few, many = (_figure(_facts(n, lambda r, s, _: float(len(r) + s))) for n in (names[:8], names))
    assert sum("fill" in t for t in few.variants[0].traces) == 16
    assert not [t for t in many.variants[0].traces if "fill" in t]
    assert "the bands are in the table only" in many.caption
    assert "the bands are in the table only" not in few.caption
    assert _rows(many, "r8")[0]["band at the last"] == _rows(few, "r7")[0]["band at the last"]


def test_the_page_does_not_grow_with_the_number_of_curves() -> None:
    figure = _figure(_facts([f"r{n}" for n in range(40)], lambda *_: 1.0, steps=400, tuning=5))
    points = sum(len(t["x"]) for v in figure.variants for t in v.traces)  # type: ignore[arg-type]  # lists
    assert points < 30_000
    # Ends are kept, and the table counts every step.
    assert _lines(figure.variants[0], "r0")[0]["x"][-1] == 400
    assert _rows(figure, "r0")[0]["steps"] == 400


def test_a_failed_final_run_has_its_curve(store: Store, tmp_path: Path) -> None:
    # A stage that never completed stands in no lineage; it is its recipe's all the same.
    def without(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.filter(~((pl.col("recipe") == "dpo") & (pl.col("seed") == 1) & (pl.col("step") == "dpo")))

    facts = read_facts(derive(store, tmp_path, {"stage_links": without}), SWEEP)
    assert _figure(facts).variants


def test_a_curve_goes_by_its_recipes_colour() -> None:
    facts = _facts(["a", "b"], lambda *_: 1.0)
    facts = dataclasses.replace(
        facts, cache={}, contenders=tuple(Contender(c.label, c.recipe, c.model, c.index + 2) for c in facts.contenders)
    )
    (variant,) = _figure(facts).variants
    colours = {name: _lines(variant, name)[0]["line"]["color"] for name in ("a", "b")}
    assert colours["a"] != colours["b"]
    red, green, blue = (int(colours["a"][i : i + 2], 16) for i in (1, 3, 5))
    assert _band(variant, "a")[2].startswith(f"rgba({red},{green},{blue},")
