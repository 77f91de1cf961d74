"""What people found: means by prompt and rater, preferences, agreement, raters, and judges beside people."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.human import import_ratings, judges_beside, ratings_of
from harness.human._means import MARKS, cells_of, mean_of, preference_of, set_against
from harness.human._ratings import read_people
from harness.stats import Rating, Unknown, agreement_with_people, krippendorff_alpha, rated_difference, rated_mean
from harness.store import Store
from tests.human.conftest import written
from tests.report.stores import derive, keep, nothing
from tests.store.scenario import SWEEP

Fill = Callable[..., dict[str, Any]]
_COUNTED = "sweep = ? AND kind = 'rating' AND checks_failed = 0"


def _cells(*rows: tuple[str, str, float]) -> dict[tuple[str, str], float]:
    return cells_of(rows)


@pytest.fixture(scope="module")
def many() -> dict[tuple[str, str], float]:
    """Three raters, twelve prompts."""
    return _cells(*((f"p{p}", r, 2.0 + (p * 7 + k * 3) % 5) for p in range(12) for k, r in enumerate("xyz")))


def test_a_mean_is_the_one_of_prompts_and_raters(many: dict[tuple[str, str], float]) -> None:
    found = mean_of(many, MARKS)
    expected = rated_mean([Rating(p, "", r, s) for (p, r), s in many.items()])
    assert (found.prompts, found.raters, found.mean.n) == (12, 3, 36)
    assert found.mean.value == pytest.approx(expected.mean.value)
    assert (found.mean.low, found.mean.high) == pytest.approx((expected.mean.low, expected.mean.high))


def test_no_interval_leaves_the_scale_or_is_of_no_width() -> None:
    top = mean_of(_cells(*((f"p{p}", r, 7.0) for p in range(8) for r in "xy")), MARKS)
    assert top.mean.value == pytest.approx(7.0)
    assert top.mean.high == pytest.approx(7.0)
    # None of eight prompts was seen to be less; by Wilson's bound about a third of the others may be.
    assert top.mean.low == pytest.approx(7 - 6 * 3.8415 / (8 + 3.8415), abs=1e-3)
    near = mean_of(_cells(("a", "x", 7), ("b", "x", 6), ("a", "y", 7), ("b", "y", 7)), MARKS)
    assert near.mean.high == 7.0
    assert math.isnan(mean_of(_cells(("a", "x", 3)), MARKS).mean.low)


def test_a_difference_is_paired_by_prompt_and_rater(many: dict[tuple[str, str], float]) -> None:
    other = {place: value - (0.5 if place[1] == "x" else 1.5) for place, value in many.items() if place[0] != "p0"}
    found = set_against(many, other, MARKS, (2, 1))
    ratings = [Rating(p, "a", r, s) for (p, r), s in many.items()]
    expected = rated_difference(ratings + [Rating(p, "b", r, s) for (p, r), s in other.items()], "a", "b")
    assert found is not None
    assert not isinstance(expected, Unknown)
    d, e = found.difference, expected.mean
    assert (d.value, d.low, d.high, d.stderr) == pytest.approx((e.value, e.low, e.high, e.stderr))
    assert (d.n, d.seeds, found.raters, found.changed) == (11, (2, 1), 3, 1.0)
    assert found.values[0] - found.values[1] == pytest.approx(d.value)
    # p goes with the interval.
    assert (d.p < 0.05) == (d.low > 0 or d.high < 0)
    assert set_against(many, {("p0", "nobody"): 3.0}, MARKS) is None


@pytest.mark.parametrize("by", [0.0, 2.0, -2.0])
def test_differences_that_are_all_alike_are_uncertain_both_ways(many: dict[tuple[str, str], float], by: float) -> None:
    found = set_against(dict.fromkeys(many, 4.0), dict.fromkeys(many, 4.0 - by), MARKS)
    assert found is not None
    d = found.difference
    assert d.low < d.value < d.high
    assert d.value == pytest.approx(by)
    back = set_against(dict.fromkeys(many, 4.0 - by), dict.fromkeys(many, 4.0), MARKS)
    assert back is not None
    assert (back.difference.low, back.difference.high) == pytest.approx((-d.high, -d.low))


def test_preferences_are_a_share_less_the_other() -> None:
    wins = _cells(*((f"p{p}", r, 1.0 if p < 8 else 0.5) for p in range(12) for r in "xy"))
    found = preference_of(wins)
    assert found is not None
    assert found.values == pytest.approx((10 / 12, 2 / 12))
    assert found.difference.value == pytest.approx(8 / 12)
    assert found.difference.high <= 1
    assert found.difference.p < 0.05
    assert found.changed == pytest.approx(8 / 12)


def test_figures_of_a_sweep(store: Store) -> None:
    figures = ratings_of(store, SWEEP)
    assert figures is not None
    assert {(r.recipe, r.criterion) for r in figures.rated} == {
        (recipe, criterion) for recipe in ("base", "dpo", "ppo") for criterion in ("helpfulness", "harmlessness")
    }
    means = f"SELECT recipe, criterion, avg(score) FROM ratings WHERE {_COUNTED} GROUP BY ALL"
    expected = {(recipe, criterion): mean for recipe, criterion, mean in store.query(means, [SWEEP]).rows()}
    for one in figures.rated:
        assert one.interval.value == pytest.approx(expected[one.recipe, one.criterion])
        assert 1 <= one.interval.low < one.interval.value < one.interval.high <= 7
        assert one.raters == 2
    # cy failed a check.
    assert figures.left_out == 1
    assert {r.rater: (r.counted, r.figures is None) for r in figures.raters} == {
        "ann": (True, False),
        "bea": (True, False),
        "cy": (False, True),
    }
    assert {(p.a, p.b) for p in figures.preferred} == {("base", "dpo"), ("base", "ppo"), ("dpo", "ppo")}
    assert set(figures.agreement) == {"helpfulness", "harmlessness", "preference"}
    given = [
        Rating(document, recipe, rater, float(score))
        for document, recipe, rater, score in store.query(
            f"SELECT document, recipe, rater, score FROM ratings WHERE {_COUNTED} AND criterion = 'helpfulness'",
            [SWEEP],
        ).rows()
    ]
    alpha = krippendorff_alpha(given, "ordinal")
    assert not isinstance(alpha, Unknown)
    shown = figures.agreement["helpfulness"]
    assert not isinstance(shown, Unknown)
    assert shown.value == pytest.approx(alpha.value)


def test_preferences_do_not_depend_on_which_answer_was_shown_first(store: Store, tmp_path: Path) -> None:
    def turned(frame: pl.DataFrame) -> pl.DataFrame:
        pairs = [(n, f"other_{n}") for n in ("recipe", "seed", "artifact", "measurement", "position")]
        swap = pl.col("kind") == "preference"
        sides = [
            pl.when(swap).then(pl.col(other)).otherwise(pl.col(own)).alias(own)
            for one in pairs
            for own, other in (one, one[::-1])
        ]
        return frame.with_columns(*sides, pl.when(swap).then(-pl.col("preference")).alias("preference"))

    other = derive(store, tmp_path / "turned", {"human_ratings": turned})
    mine, theirs = (ratings_of(s, SWEEP) for s in (store, other))
    assert mine is not None
    assert theirs is not None
    assert mine.preferred == theirs.preferred


def test_an_answer_rated_in_two_studies_counts_once(
    store: Store, forms: list[dict[str, Any]], fill: Fill, tmp_path: Path
) -> None:
    import_ratings(store, [written(tmp_path / "a.json", fill(forms[0], "ann", base=1, dpo=1, ppo=1))])
    people = read_people(store, SWEEP)
    assert people is not None
    names = [(m.rater, m.document, m.answer, m.criterion) for m in people.marks]
    assert len(set(names)) == len(names)
    # What ann says now of an answer that she has met before takes the place of it.
    now = {m.document: m.score for m in people.marks if m.rater == "ann" and m.recipe == "dpo"}
    assert list(now.values()).count(1) == sum(len(i["answers"]) == 3 for i in forms[0]["items"]) - 2
    assert ratings_of(store, SWEEP) is not None


def test_the_base_model_has_one_set_of_answers_whatever_the_seed(store: Store) -> None:
    people = read_people(store, SWEEP)
    assert people is not None
    assert len({m.seed for m in people.marks if m.recipe == "base"}) == 1


def test_raters_go_by_numbers_that_say_nothing_of_their_names(store: Store) -> None:
    people = read_people(store, SWEEP, failed=True)
    assert people is not None
    assert sorted(people.numbers.values()) == [1, 2, 3]
    counted = read_people(store, SWEEP)
    assert counted is not None
    assert set(counted.numbers) == {"ann", "bea"}


def test_a_judge_stands_beside_people_on_the_answers_both_rated(store: Store) -> None:
    found = {one.criterion: one for one in judges_beside(store, SWEEP)}
    assert set(found) == {"helpfulness", "harmlessness"}
    rows = store.query(
        "SELECT r.document, r.recipe, r.rater, r.score, j.score AS judged FROM ratings r "
        "JOIN raw.judge_votes j USING (measurement, document) "
        "WHERE r.sweep = ? AND r.kind = 'rating' AND r.checks_failed = 0 AND r.criterion = 'helpfulness' "
        "AND j.aspect = 'helpfulness' AND j.half = 'final'",
        [SWEEP],
    )
    people = [Rating(d, recipe, rater, float(score)) for d, recipe, rater, score, _ in rows.rows()]
    judge = {(d, recipe): Rating(d, recipe, "judge", judged) for d, recipe, _, _, judged in rows.rows()}
    expected = agreement_with_people(list(judge.values()), people)
    one = found["helpfulness"]
    assert one.answers == len(judge)
    assert not isinstance(one.agreement.alike, Unknown)
    assert not isinstance(expected.alike, Unknown)
    assert one.agreement.alike.value == pytest.approx(expected.alike.value)


def test_without_ratings_or_votes_there_is_nothing(store: Store, tmp_path: Path) -> None:
    assert ratings_of(store, "no such sweep") is None
    assert judges_beside(store, "no such sweep") == []
    unjudged = derive(store, tmp_path / "unjudged", {"judge_votes": nothing})
    assert judges_beside(unjudged, SWEEP) == []
    only = derive(store, tmp_path / "only", {"human_ratings": keep(pl.col("kind") == "preference")})
    figures = ratings_of(only, SWEEP)
    assert figures is not None
    assert figures.rated == ()
    assert [r.figures for r in figures.raters] == [None] * 3
    assert len(figures.preferred) == 3
