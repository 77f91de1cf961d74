"""Boards of several: duplicates are one, contradictions both stand."""

import html
import json
import re
from pathlib import Path

import polars as pl
import pytest

from harness.errors import UserError
from harness.publish import publish, verify
from harness.store import Store
from tests.publish.conftest import NOW
from tests.publish.exports import change_table, copied, signed
from tests.report.stores import Change, derive, keep, nothing
from tests.store.scenario import SWEEP

OTHER = "other_suite-99aabbcc"


def _renamed(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.lit(OTHER).alias("sweep"))


@pytest.fixture(scope="module")
def ours(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scenario with two of its figures: every two entries of a board are compared on each."""
    few = pl.col("metric").is_in(["gold_reward", "exact_match_strict"])
    changes: dict[str, Change] = {"samples": keep(few), "judge_votes": nothing, "profile_samples": nothing}
    changes["human_ratings"] = nothing
    return derive(store, tmp_path_factory.mktemp("ours") / "results", changes)


@pytest.fixture(scope="module")
def other(ours: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another's export: the same sweep, in which dpo scored otherwise, and a sweep of their own."""
    folder = tmp_path_factory.mktemp("other")
    mine = ours.query(
        "SELECT DISTINCT measurement FROM raw.measurement_links WHERE recipe = 'dpo' AND phase = 'final'"
    )["measurement"].to_list()

    def rescored(frame: pl.DataFrame) -> pl.DataFrame:
        moved = (pl.col("metric") == "gold_reward") & pl.col("measurement").is_in(mine)
        return frame.with_columns(pl.when(moved).then(pl.col("score") * 0.5).otherwise(pl.col("score")).alias("score"))

    def doubled(frame: pl.DataFrame) -> pl.DataFrame:
        return pl.concat([frame, _renamed(frame)])

    changes: dict[str, Change] = dict.fromkeys(
        ("sweep_events", "trial_events", "stage_links", "measurement_links", "failure_events"), doubled
    )
    changes["samples"] = rescored
    theirs = derive(ours, folder / "results", changes)
    publish(theirs, [SWEEP, OTHER], folder / "site", texts=False, now=NOW)
    assert verify(folder / "site") == []
    return folder / "site"


def test_duplicates_are_one_and_conflicts_stand(ours: Store, other: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = publish(ours, [SWEEP], site, merge=[other], now=NOW)
    # Six of ours; of theirs the four of base and ppo are the same, two contradict, six are of another sweep.
    assert (done.entries, done.conflicts) == (14, 2)
    assert verify(site) == []
    rows = json.loads((site / "data/entries.json").read_text())
    gold = [r for r in rows if (r["task"], r["metric"]) == ("gold", "gold_reward")]
    assert {r["ranked"] for r in gold} == {14}
    twice = [r for r in gold if r["sweep"] == SWEEP and r["recipe"] == "dpo" and r["target"] == "cpu-fp32"]
    assert len({r["id"] for r in twice}) == 1
    assert re.fullmatch(rf"{twice[0]['id']}-[0-9a-f]{{8}}", twice[1]["entry"])
    assert twice[1]["value"] == pytest.approx(twice[0]["value"] / 2)
    # Each is held against the base model, which is the same for both.
    assert twice[0]["base"] == twice[1]["base"]
    index = html.unescape((site / "index.html").read_text(encoding="utf-8"))
    section = index[index.index('id="conflicts"') : index.index('id="cost"')]
    for row in twice:
        assert f"entries/{row['entry']}.html" in section
    assert "gold_reward" in section
    assert "exact_match_strict" not in section
    # Ours has the texts, and stays.
    samples = pl.read_parquet(site / "data/samples.parquet")
    assert (
        samples.filter((pl.col("entry") == gold[0]["entry"]) & (pl.col("task") == "gold"))["response"].null_count() == 0
    )


def test_merging_again_in_its_own_place_changes_nothing(ours: Store, other: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    publish(ours, [SWEEP], site, merge=[other], now=NOW)
    before = (site / "manifest.json").read_bytes()
    publish(ours, [SWEEP], site, merge=[site], now=NOW)
    assert (site / "manifest.json").read_bytes() == before


def test_what_is_not_what_its_samples_say_is_not_merged(ours: Store, other: Path, tmp_path: Path) -> None:
    bad = copied(other, tmp_path / "bad")
    change_table(bad, "data/entries.parquet", lambda f: f.with_columns(pl.col("value") + 0.1))
    with pytest.raises(UserError, match="is not what its samples say, and is not merged"):
        publish(ours, [SWEEP], tmp_path / "site", merge=[signed(bad)])
    assert not (tmp_path / "site").exists()


def test_a_secret_of_ours_in_their_export_stops_it(
    ours: Store, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET_TOKEN", OTHER)
    with pytest.raises(UserError, match="would hold a secret"):
        publish(ours, [SWEEP], tmp_path / "site", merge=[other])
    assert not (tmp_path / "site").exists()
