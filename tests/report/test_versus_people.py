"""`harness compare` has what people say of two models of one sweep, and whom its judges prefer."""

from pathlib import Path

import polars as pl
import pytest

from harness.human import MARKS, cells_of, read_people, set_against
from harness.report import compare, write_comparison
from harness.report._versus import Row
from harness.stats import holm
from harness.store import Store
from tests.report.stores import derive, nothing
from tests.store.scenario import SWEEP


def _rows(store: Store, first: str = "ppo", second: str = "base") -> dict[str, Row]:
    return {row.what: row for row in compare(store, [f"{SWEEP}/{first}", f"{SWEEP}/{second}"]).rows}


def test_people_stand_in_the_paired_table(store: Store) -> None:
    rows = _rows(store)
    assert {"helpfulness", "helpfulness, people", "harmlessness, people", "preferred, people"} <= rows.keys()
    people = read_people(store, SWEEP)
    assert people is not None
    mine, theirs = (
        cells_of(
            (m.document, m.rater, m.score) for m in people.marks if (m.recipe, m.criterion) == (who, "helpfulness")
        )
        for who in ("ppo", "base")
    )
    expected = set_against(mine, theirs, MARKS, (1, 1))
    assert expected is not None
    row = rows["helpfulness, people"]
    assert (row.values, row.difference, row.raters) == (expected.values, expected.difference, 2)
    means = store.query(
        "SELECT recipe, avg(score) FROM ratings WHERE sweep = ? AND criterion = 'helpfulness' AND checks_failed = 0 "
        "AND recipe IN ('base', 'ppo') GROUP BY recipe",
        [SWEEP],
    )
    assert row.values == pytest.approx((dict(means.rows())["ppo"], dict(means.rows())["base"]))
    every = list(rows.values())
    assert [r.adjusted_p for r in every] == holm([r.difference.p for r in every])
    assert {r.raters for r in every if "people" not in r.what} == {0}


def test_the_other_way_round_is_the_opposite(store: Store) -> None:
    there, back = _rows(store), _rows(store, "base", "ppo")
    for what in ("helpfulness, people", "preferred, people", "preferred, judges"):
        one, other = there[what], back[what]
        assert one.values == pytest.approx(other.values[::-1])
        assert one.difference.value == pytest.approx(-other.difference.value)
        assert (one.difference.low, one.difference.high) == pytest.approx(
            (-other.difference.high, -other.difference.low)
        )
        assert one.difference.seeds == other.difference.seeds[::-1]


def test_whom_people_prefer(store: Store, tmp_path: Path) -> None:
    def decided(frame: pl.DataFrame) -> pl.DataFrame:
        """Everybody prefers ppo much, wherever it stands."""
        sign = pl.when(pl.col("recipe") == "ppo").then(3).when(pl.col("other_recipe") == "ppo").then(-3).otherwise(0)
        return frame.with_columns(
            pl.when(pl.col("kind") == "preference").then(sign).cast(pl.Int64).alias("preference"),
            pl.when(pl.col("kind") == "check").then(True).alias("passed"),
        )

    row = _rows(derive(store, tmp_path / "decided", {"human_ratings": decided}))["preferred, people"]
    assert row.values == (1.0, 0.0)
    assert row.difference.value == pytest.approx(1.0)
    # Not for certain: of prompts not seen some may be otherwise.
    assert 0 < row.difference.low < row.difference.high <= 1.0
    assert row.raters == 3


def test_judges_preferences_are_counted_by_prompt(store: Store) -> None:
    row = _rows(store)["preferred, judges"]
    wins = store.query(
        "SELECT document, avg(CASE WHEN a = 'ppo' THEN win ELSE 1 - win END) FROM preferences "
        "WHERE sweep = ? AND list_contains(['ppo', 'base'], a) AND list_contains(['ppo', 'base'], b) "
        "AND win IS NOT NULL GROUP BY document",
        [SWEEP],
    )
    assert row.difference.n == wins.height
    assert row.values[0] + row.values[1] == pytest.approx(1)
    assert row.difference.value == pytest.approx(2 * row.values[0] - 1)


def test_an_artifact_has_the_ratings_of_its_seed_alone(store: Store) -> None:
    artifacts = store.query(
        "SELECT DISTINCT seed, artifact FROM raw.measurement_links WHERE sweep = ? AND recipe = 'ppo' "
        "AND phase = 'final'",
        [SWEEP],
    )
    people = read_people(store, SWEEP)
    assert people is not None
    rated = {m.seed for m in people.marks if m.recipe == "ppo"}
    for seed, artifact in artifacts.rows():
        whats = {row.what for row in compare(store, [artifact, f"{SWEEP}/base"]).rows}
        assert ("helpfulness, people" in whats) == (seed in rated)


def test_without_ratings_there_are_no_such_rows_and_between_sweeps_neither(store: Store, tmp_path: Path) -> None:
    bare = derive(store, tmp_path / "bare", {"human_ratings": nothing})
    assert not [what for what in _rows(bare) if "people" in what]
    assert "preferred, judges" in _rows(bare)


def test_what_the_judges_are_worth_is_said_beside_what_they_say(store: Store) -> None:
    versus = compare(store, [f"{SWEEP}/ppo", f"{SWEEP}/base"])
    assert any("no better than chance" in warning for warning in versus.warnings)
    assert sum(warning.startswith("judge ") for warning in versus.warnings) == 2


def test_the_page_counts_raters_and_names_none(store: Store, tmp_path: Path) -> None:
    named = derive(
        store, tmp_path / "named", {"human_ratings": lambda f: f.with_columns(pl.col("rater") + "-the-rater")}
    )
    page = write_comparison(compare(named, [SWEEP]), tmp_path / "a.html").read_text("utf-8")
    assert "8, 2 raters" in page
    assert "helpfulness, people" in page
    assert "the-rater" not in page
    assert "Hm." not in page
