"""The Pareto part of the page: which variants stand on the front, and which fail the quality gate."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from harness.report._html import Html
from harness.report._plot import Figure
from harness.report._queries import read_facts
from harness.report._tradeoffs import front_sentences, tradeoffs
from harness.report._volume import volume_lost
from harness.store import Store
from tests.report.stores import derive, keep
from tests.store.scenario import SWEEP


def _figure(store: Store) -> Figure:
    found = tradeoffs(read_facts(store, SWEEP))
    assert isinstance(found, Figure)
    return found


def _rows(figure: Figure) -> dict[tuple[str, str], dict[str, object]]:
    return {(str(r[0]), str(r[1])): dict(zip(figure.numbers.headers, r, strict=True)) for r in figure.numbers.rows}


def test_the_reference_keeps_all_its_quality_and_is_as_fast_as_itself(store: Store) -> None:
    figure = _figure(store)
    rows = _rows(figure)
    target = read_facts(store, SWEEP).target
    base = rows["base", target]
    assert str(base["of the base model's"]).startswith("1.000 [1.000, 1.000]")
    assert base["gate 99.0%"] == "passes"
    assert next(v.label for v in figure.variants).startswith("end-to-end latency")


def test_a_model_that_lost_quality_fails_the_gate_and_is_not_on_the_front(store: Store, tmp_path: Path) -> None:
    lost = derive(
        store,
        tmp_path / "results",
        {
            "samples": lambda f: f.with_columns(
                pl.when(pl.col("measurement").is_in(_of(store, "dpo")))
                .then(pl.col("score") * 0.5)
                .otherwise(pl.col("score"))
                .alias("score")
            )
        },
    )
    rows = [r for (recipe, _), r in _rows(_figure(lost)).items() if recipe == "dpo"]
    assert rows
    assert {r["gate 99.0%"] for r in rows} == {"fails"}
    assert {r["on the front"] for r in rows} == {None}


def _of(store: Store, recipe: str) -> list[str]:
    found = store.query("SELECT DISTINCT measurement FROM raw.measurement_links WHERE recipe = ?", [recipe])
    return [str(m) for m in found["measurement"]]


def test_shares_of_the_front_are_shares(store: Store) -> None:
    shown = [str(r["on the front"]) for r in _rows(_figure(store)).values() if r["on the front"] is not None]
    assert shown
    assert all(re.fullmatch(r"(yes|no), \d+%", text) for text in shown)
    assert any(text.startswith("yes") for text in shown)


def test_the_front_is_said_in_words(store: Store, tmp_path: Path) -> None:
    facts = read_facts(store, SWEEP)
    (said,) = front_sentences(facts)
    members = [name for name, row in _rows(_figure(store)).items() if str(row["on the front"]).startswith("yes")]
    shown = re.findall(r"(\w+ on [\w-]+) \(\d+\.\d+ times as fast as base, on it in \d+% of resamples\)", said)
    assert set(shown) <= {f"{recipe} on {target}" for recipe, target in members}
    assert len(shown) == min(len(members), 4)
    assert "keep 99.0% of the base model's gold reward" in said
    bare = derive(store, tmp_path / "results", {"profile_samples": keep(pl.lit(False))})
    assert front_sentences(read_facts(bare, SWEEP)) == []


def test_without_profiles_the_page_says_so(store: Store, tmp_path: Path) -> None:
    bare = derive(store, tmp_path / "results", {"profile_samples": keep(pl.lit(False))})
    found = tradeoffs(read_facts(bare, SWEEP))
    assert isinstance(found, Html)
    assert "profile" in str(found)


def test_what_the_front_would_lose_is_the_volume_only_one_owner_dominates() -> None:
    # Of two by two: a dominates [0, 2] × [1, 2], b dominates [1, 2] × [0, 2]; the corner [1, 2] × [1, 2] both.
    points = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    draws = np.stack([points, points])
    lost = volume_lost(draws, ["a", "b", "c"])
    # The reference lies a tenth of the range beyond the worst, at 1.1 on both axes.
    whole = 1.1 * 0.1 + 0.1 * 1.0
    assert lost["a"] == pytest.approx(((0.1 * 1.0) / whole,) * 3)
    assert lost["b"] == pytest.approx(((0.1 * 1.0) / whole,) * 3)
    assert lost["c"] == (0.0, 0.0, 0.0)
    # Of one owner's points either may go without loss, of both together all is lost.
    assert volume_lost(draws, ["a", "a", "a"])["a"][0] == pytest.approx(1.0)


def test_the_volume_lost_has_an_interval_over_the_draws() -> None:
    random = np.random.default_rng(0)
    points = np.array([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0]])
    draws = np.concatenate([points[None], points + random.normal(0, 0.2, (300, 2, 3))])
    value, low, high = volume_lost(draws, ["a", "b"])["a"]
    assert low < value < high
    still = volume_lost(np.stack([points] * 3), ["a", "b"])["a"]
    assert still[1] == still[0] == still[2]


def test_the_table_says_what_the_front_would_lose(store: Store) -> None:
    rows = _rows(_figure(store))
    shown = {r: row["front's loss without the recipe, 95 %"] for (r, _), row in rows.items()}
    compared = {r for (r, _), row in rows.items() if row["on the front"] is not None}
    assert all(re.fullmatch(r"\d+% \[\d+%, \d+%\]", str(shown[r])) for r in compared)
    dominated = [r for (r, _), row in rows.items() if str(row["on the front"]).startswith("no, 0%")]
    on_front = {r for (r, _), row in rows.items() if str(row["on the front"]).startswith("yes")}
    assert on_front
    assert all(str(shown[r]).startswith("0%") for r in dominated if r not in on_front)
