"""What people say goes out by numbers, is computed again from what went out, and names nobody."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from harness.human import ratings_of
from harness.publish import publish, verify
from harness.publish._aggregates import PEOPLE, against, direction, figure, scores
from harness.publish._cards import Card
from harness.publish._frame import judge_words
from harness.store import Store
from tests.publish.conftest import NOW
from tests.publish.exports import change_table, copied, signed
from tests.report.stores import Change, derive, keep, nothing
from tests.store.scenario import MODEL, SWEEP

RATERS = {"ann": "Annegret Musterfrau", "bea": "bea@example.org", "cy": "Cyprian-XYZ"}
COMMENT = "I know who wrote this: it is the one from Tuesday"


@pytest.fixture(scope="module")
def named(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scenario with few other figures; its raters have names that stand nowhere else, and say a thing or two."""

    def people(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(
            pl.col("rater").replace_strict(RATERS),
            pl.when(pl.col("kind") != "check").then(pl.lit(COMMENT)).alias("comment"),
        )

    few = keep(pl.col("metric") == "gold_reward")
    changes: dict[str, Change] = {"samples": few, "profile_samples": nothing, "human_ratings": people}
    return derive(store, tmp_path_factory.mktemp("named") / "results", changes)


@pytest.fixture(scope="module")
def site(named: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named-site") / "site"
    publish(named, [SWEEP], folder, now=NOW)
    return folder


def _rows(site: Path) -> list[dict[str, Any]]:
    return [row for row in json.loads((site / "data/entries.json").read_text()) if row["task"] == PEOPLE]


def test_means_are_those_of_the_report(named: Store, site: Path) -> None:
    rows = {(r["recipe"], r["metric"]): r for r in _rows(site)}
    found = ratings_of(named, SWEEP)
    assert found is not None
    for one in found.rated:
        row = rows[one.recipe, one.criterion]
        assert (row["value"], row["low"], row["high"]) == pytest.approx(
            (one.interval.value, one.interval.low, one.interval.high)
        )
        assert (row["n"], row["raters"], row["rank"], row["better"]) == (one.prompts, one.raters, None, "higher")
    for pair in found.preferred:
        mine, theirs = rows[pair.a, f"preferred to {pair.b}"], rows[pair.b, f"preferred to {pair.a}"]
        assert mine["value"] == pytest.approx(pair.win.value)
        assert theirs["value"] == pytest.approx(1 - pair.win.value)
        assert mine["difference"] is None
    assert rows["ppo", "helpfulness"]["difference"] is not None
    # What was answered on another target was rated by nobody.
    assert {r["target"] for r in rows.values()} == {"cpu-fp32"}


def test_no_name_comment_or_key_of_a_form_goes_out(named: Store, site: Path) -> None:
    secrets = {*RATERS.values(), "Musterfrau", "example.org", "Cyprian", COMMENT, "from Tuesday"}
    for column in ("form", "item", "submission"):
        secrets |= set(named.query(f"SELECT DISTINCT {column} FROM raw.human_ratings")[column].to_list())
    files = [path for path in site.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        raw = path.read_bytes()
        texts = [raw]
        if path.suffix == ".parquet":
            texts.append(pl.read_parquet(path).write_json().encode())
        for secret in secrets:
            assert not any(secret.encode() in text for text in texts), f"{secret} in {path.name}"


def test_marks_go_out_by_number_and_without_those_who_failed_a_check(named: Store, site: Path) -> None:
    samples = pl.read_parquet(site / "data/samples.parquet").filter(pl.col("task") == PEOPLE)
    assert set(samples["document"].str.extract(r"/([^/]*)$")) == {"1", "2"}
    marks = samples.filter(pl.col("metric").is_in(["helpfulness", "harmlessness"]))
    counted = "SELECT count(*) FROM ratings WHERE sweep = ? AND kind = 'rating' AND checks_failed = 0"
    assert marks.height == named.query(counted, [SWEEP]).item()
    assert samples["response"].null_count() == samples.height
    cards = json.loads((site / "data/provenance.json").read_text())
    for card in cards.values():
        assert any("1 of 3 raters failed an attention check" in note for note in card["notes"])


def test_what_people_say_is_computed_again(site: Path, tmp_path: Path) -> None:
    assert verify(site) == []
    copy = copied(site, tmp_path / "copy")
    mine = (pl.col("task") == PEOPLE) & (pl.col("metric") == "helpfulness") & (pl.col("recipe") == "ppo")

    def better(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.when(mine).then(6.5).otherwise(pl.col("value")).alias("value"))

    change_table(copy, "data/entries.parquet", better)
    found = [d for d in verify(signed(copy)) if d.what == "value in data/entries.parquet"]
    assert [(d.task, d.metric, d.published) for d in found] == [(PEOPLE, "helpfulness", "6.5")]
    again = copied(site, tmp_path / "again")

    def praised(frame: pl.DataFrame) -> pl.DataFrame:
        own = (pl.col("task") == PEOPLE) & (pl.col("metric") == "helpfulness")
        return frame.with_columns(pl.when(own).then(7.0).otherwise(pl.col("score")).alias("score"))

    change_table(again, "data/samples.parquet", praised)
    said = [str(d) for d in verify(signed(again))]
    assert any("people helpfulness: value in data/entries.parquet" in one for one in said)
    assert any("the samples are not those that were published" in one for one in said)
    assert not any("beyond the scale" in one for one in said)
    change_table(again, "data/samples.parquet", lambda f: f.with_columns(pl.col("score") * 2))
    found = [d for d in verify(signed(again)) if d.what == "marks beyond the scale from 1 to 7"]
    assert {(d.task, d.metric) for d in found} >= {(PEOPLE, "helpfulness")}


def test_raters_are_counted_on_pages_and_in_the_formats_of_others(site: Path) -> None:
    (row,) = (r for r in _rows(site) if (r["recipe"], r["metric"]) == ("ppo", "helpfulness"))
    page = (site / f"entries/{row['entry']}.html").read_text("utf-8")
    part = page[page.index('id="people"') : page.index('id="budget"')]
    assert "preferred to dpo" in part
    assert f"{row['value']:.3f}" in part
    assert '<td class="num">8</td><td class="num">2</td>' in part
    card = (site / f"hub/{row['entry']}/README.md").read_text("utf-8")
    assert "helpfulness, mean of 2 people over 8 prompts" in card
    (aggregate,) = (
        found
        for path in (site / "every-eval-ever").rglob("*.json")
        if (found := json.loads(path.read_text()))["source_metadata"]["additional_details"]["digest"] == row["digest"]
    )
    results = {r["evaluation_result_id"]: r for r in aggregate["evaluation_results"]}
    mine = results["people/helpfulness"]
    assert (mine["metric_config"]["min_score"], mine["metric_config"]["max_score"]) == (1.0, 7.0)
    assert mine["metric_config"]["metric_id"] != results["judge/helpfulness"]["metric_config"]["metric_id"]
    assert mine["score_details"]["details"]["raters"] == "2"
    assert mine["score_details"]["uncertainty"]["num_samples"] == 8
    assert not list(site.glob("lm-eval/**/*people*"))


def test_what_judges_are_worth_stands_beside_their_scores(site: Path) -> None:
    cards = {
        key: Card.model_validate_json(json.dumps(c))
        for key, c in json.loads((site / "data/provenance.json").read_text()).items()
    }
    key, card = next((k, c) for k, c in cards.items() if c.recipe == "ppo" and c.target == "cpu-fp32")
    judges = {one.judge: one for one in card.judges}
    assert set(judges) == {MODEL, "gpt-judge"}
    weak, good = judges[MODEL], judges["gpt-judge"]
    assert weak.accuracy is not None
    assert weak.accuracy[0] == pytest.approx(0.5)
    assert "no better than chance" in judge_words(weak)
    assert "no better than chance" not in judge_words(good)
    page = (site / f"entries/{key}.html").read_text("utf-8")
    assert judge_words(weak) in page
    assert "right on" in (site / f"hub/{key}/README.md").read_text("utf-8")
    (aggregate,) = (
        found
        for path in (site / "every-eval-ever").rglob("*.json")
        if (found := json.loads(path.read_text()))["source_metadata"]["additional_details"]["digest"] == card.digest
    )
    judged = next(r for r in aggregate["evaluation_results"] if r["evaluation_result_id"] == "judge/helpfulness")
    told = [json.loads(text)["judge"] for text in judged["generation_config"]["additional_details"].values()]
    assert sorted(told) == sorted(judges)


def test_a_board_without_people_says_so(named: Store, tmp_path: Path) -> None:
    bare = derive(named, tmp_path / "results", {"human_ratings": nothing})
    publish(bare, [SWEEP], tmp_path / "site", texts=False, now=NOW)
    assert _rows(tmp_path / "site") == []
    page = next((tmp_path / "site/entries").iterdir()).read_text("utf-8")
    assert "Nobody has rated its answers." in page
    assert verify(tmp_path / "site") == []


def test_criteria_of_ones_own_have_no_better_end() -> None:
    assert direction(PEOPLE, "clarity") == "higher"
    assert direction(PEOPLE, "preferred to over_refusal") == "higher"
    assert direction(PEOPLE, "verbosity") == "none"


def test_raters_and_documents_of_a_strangers_export_need_not_make_sense() -> None:
    odd = pl.DataFrame({"document": ["x", "", "a/b/c", "a/b/c"], "seed": [0, 0, 0, 1], "score": [1.0, 7.0, 3.0, 4.0]})
    table = scores(PEOPLE, odd)
    found = figure(PEOPLE, "helpfulness", table)
    assert found is not None
    assert (found.seeds, found.raters) == (2, 3)
    assert against({(PEOPLE, "helpfulness"): table}, {(PEOPLE, "helpfulness"): table})[PEOPLE, "helpfulness"].value == 0
