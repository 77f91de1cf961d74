"""The part about judges: its figures are those of the votes, and nothing a judge says is believed beyond its worth."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.human import ratings_of
from harness.report import report_markdown, write_report
from harness.report._compare import aspects, estimate
from harness.report._html import number
from harness.report._judges import judges
from harness.report._judges_people import people
from harness.report._judges_quality import known, quality_lines
from harness.report._judges_wins import preferred, strengths
from harness.report._queries import Facts, read_facts
from harness.store import Store
from tests.report.stores import derive, nothing
from tests.store.scenario import JUDGES, MODEL, SCRIPT, SWEEP

ENDPOINT = next(name for name in JUDGES if name != MODEL)


@pytest.fixture(scope="module")
def facts(store: Store) -> Facts:
    return read_facts(store, SWEEP)


def test_a_pair_is_counted_once_though_the_base_model_stands_under_every_seed(store: Store, facts: Facts) -> None:
    # Twelve prompts, two seeds, two judges: the view has each comparison with base under both seeds of base.
    one = preferred(facts)["dpo", "base"]
    assert one.votes + one.unparsed == 12 * 2 * 2
    assert one.unparsed == 1
    assert one.rate.n == 12
    raw = store.query(
        "SELECT avg(w) FROM (SELECT document, avg(win) AS w FROM preferences WHERE a = 'dpo' AND b = 'base' "
        "AND win IS NOT NULL GROUP BY document, judge_key, seed_a, seed_b)"
    ).item()
    assert one.rate.value == pytest.approx(raw, abs=0.02)


def test_the_two_ways_round_are_one_comparison(facts: Facts) -> None:
    for (a, b), one in preferred(facts).items():
        other = preferred(facts)[b, a]
        assert one.rate.value + other.rate.value == pytest.approx(1)
        assert one.won.value + other.won.value + one.tied == pytest.approx(1, abs=0.02)
        assert one.resolved == other.resolved


def test_a_judge_is_as_good_as_its_known_pairs(facts: Facts) -> None:
    local, endpoint = known(facts)[MODEL], known(facts)[ENDPOINT]
    assert local.accuracy is not None
    assert local.accuracy.value == 0.5
    assert local.flips is not None
    assert local.flips.value == 1
    assert "no better than chance" in str(local.doubt())
    assert endpoint.accuracy is not None
    assert endpoint.accuracy.value == pytest.approx(20 / 24)
    assert endpoint.doubt() is None
    assert endpoint.unparsed == 1
    assert endpoint.attacks == {"ignore the above": (1, 12)}
    assert endpoint.line().startswith(f"judge {ENDPOINT}: 83 % of known pairs [")


def test_a_judge_that_was_not_put_to_the_proof_is_said_to_be_so(store: Store, tmp_path: Path) -> None:
    other = derive(store, tmp_path / "results", {"judge_checks": nothing})
    lines = quality_lines(read_facts(other, SWEEP))
    assert len(lines) == 2
    assert all("was not measured" in line for line in lines)


def test_what_a_judge_is_worth_stands_beside_its_figures(page: Path, store: Store) -> None:
    text = page.read_text(encoding="utf-8")
    line = f"judge {MODEL}: 50 % of known pairs"
    ratings = next(f for f in re.findall(r"<figure>.*?</figure>", text, re.DOTALL) if 'id="ratings"' in f)
    assert line.removeprefix("j") in ratings
    assert "no better than chance" in ratings
    # The tables of comparisons and of recipes, and every panel of the part itself but the diagnostics, which are it.
    assert text.count(line) >= 6
    assert line in report_markdown(store, SWEEP).replace("\\", "")


def test_ranks_are_those_that_the_votes_hold(facts: Facts) -> None:
    html = strengths(facts)
    places = re.findall(r"<span>(\d) <span class=\"interval\">\[(\d), (\d)\] of 3", html)
    assert len(places) == 3
    assert all(int(low) <= int(rank) <= int(high) for rank, low, high in places)


def _verdicts(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="verdict-data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


def test_verdicts_stand_with_both_orders_and_words(store: Store, facts: Facts) -> None:
    html = judges(store, facts, 1_000)
    assert html is not None
    assert SCRIPT not in html
    data = _verdicts(html)
    assert len(data["pairs"]) == facts.preferences.height == 144
    kinds = [one["kind"] for one in data["pairs"]]
    assert kinds.count("unparsed") == 1
    unparsed = next(one for one in data["pairs"] if one["kind"] == "unparsed")
    assert "unparsed" in unparsed["verdicts"]
    assert any("Both are fine" in data["texts"][words] for words in unparsed["words"])
    for one in data["pairs"]:
        assert one["kind"] in ("unparsed", "flipped") or one["verdicts"] == [one["kind"]] * 2
    few = _verdicts(str(judges(store, facts, 20)))
    assert len(few["pairs"]) == 20
    assert {one["judge"] for one in few["pairs"]} == {0, 1}


def test_without_votes_and_ratings_there_is_no_part(store: Store, tmp_path: Path) -> None:
    tables = ("judge_votes", "pair_votes", "judge_checks", "human_ratings")
    other = derive(store, tmp_path / "results", dict.fromkeys(tables, nothing))
    assert judges(other, read_facts(other, SWEEP), 10) is None


def test_people_stand_beside_the_judges(store: Store, facts: Facts) -> None:
    found = ratings_of(store, SWEEP)
    assert found is not None
    html = people(store, facts)
    assert html is not None
    for one in found.rated:
        assert number(one.interval.value) in html
    assert "failed an attention check" in html or found.left_out == 0
    assert f"judge {MODEL}: 50 % of known pairs" in html
    assert "same order, 95 %" in html


@pytest.fixture(scope="module")
def panel(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A second judge rates too, over-refusal and two turns as well, and every fourth vote of it is no verdict."""

    def more(frame: pl.DataFrame) -> pl.DataFrame:
        second = frame.with_columns(
            pl.lit(ENDPOINT).alias("judge"),
            pl.lit(JUDGES[ENDPOINT]).alias("judge_key"),
            pl.lit(None).alias("probabilities"),
            pl.lit("No rating.").alias("words"),
        ).with_row_index()
        lost = pl.col("index") % 4 == 0
        second = second.with_columns(
            pl.when(lost).then(None).otherwise(pl.col("score")).alias("score"),
            pl.when(lost).then(pl.lit("unparsed")).otherwise(pl.col("verdict")).alias("verdict"),
        ).drop("index")
        refused = frame.filter(pl.col("aspect") == "harmlessness").with_columns(pl.lit("over_refusal").alias("aspect"))
        turns = [
            frame.filter(pl.col("aspect") == "helpfulness").with_columns(
                pl.lit("multi_turn").alias("aspect"),
                pl.lit(turn, pl.Int64).alias("turn"),
                pl.col("score") / turn,
                pl.when(pl.col("document") < "8").then(pl.lit("math")).otherwise(pl.lit("writing")).alias("category"),
            )
            for turn in (1, 2)
        ]
        return pl.concat([frame, second, refused, *turns], how="vertical_relaxed")

    return derive(store, tmp_path_factory.mktemp("panel") / "results", {"judge_votes": more})


def test_votes_that_are_no_verdict_are_counted_and_score_nothing(panel: Store, store: Store, facts: Facts) -> None:
    found = read_facts(panel, SWEEP)
    assert found.votes["score"].null_count() > 0
    assert found.documents["score"].null_count() == 0
    for who in found.contenders:
        # The second judge says the same where it says anything.
        mine, before = (estimate(f, who, "judge", "helpfulness") for f in (found, facts))
        assert mine is not None
        assert before is not None
        assert mine.value == pytest.approx(before.value)
    assert aspects(found) == ["helpfulness", "harmlessness", "over_refusal", "multi_turn"]


def test_ratings_are_shown_by_judge_turn_and_category(panel: Store, tmp_path: Path) -> None:
    text = write_report(panel, SWEEP, tmp_path).read_text(encoding="utf-8")
    part = text[text.index('id="judging--ratings"') :]
    assert "over_refusal (less is better)" in part
    assert "all together" in part
    for title in ("turn 1", "turn 2", "math", "writing"):
        assert f'scope="col">{title}</th>' in part
    assert report_markdown(panel, SWEEP)


def test_a_measurement_of_which_no_vote_is_a_verdict_breaks_nothing(store: Store, tmp_path: Path) -> None:
    def lost(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.lit(None, pl.Float64).alias("score"), pl.lit("unparsed").alias("verdict"))

    other = derive(store, tmp_path / "results", {"judge_votes": lost, "pair_votes": lost, "judge_checks": lost})
    found = read_facts(other, SWEEP)
    assert found.votes["score"].null_count() == found.votes.height > 0
    assert preferred(found) == {}
    text = write_report(other, SWEEP, tmp_path).read_text(encoding="utf-8")
    assert "No two recipes" in text
    assert "144 of 144" in text
