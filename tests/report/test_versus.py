"""Models of several sweeps set against each other: found by name, paired by document, warned where they differ."""

from pathlib import Path

import polars as pl
import pytest

from harness.errors import UserError
from harness.report import against_baseline, compare, regressed, write_comparison
from harness.stats import holm, paired_difference
from harness.store import TABLES, Store
from tests.report.stores import Change, derive
from tests.store.scenario import MODEL, SWEEP

OTHER = "later-99887766"


def _renamed(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows of another sweep, with models and measurements of its own."""
    own = [c for c in ("measurement", "artifact", "stage", "reward_artifact") if c in frame.columns]
    frame = frame.with_columns(pl.concat_str(pl.lit("ffff"), pl.col(c)).str.slice(0, 32).alias(c) for c in own)
    named = [pl.lit(OTHER).alias("sweep")] if "sweep" in frame.columns else []
    return frame.with_columns(*named, *([pl.lit("later").alias("suite")] if "suite" in frame.columns else []))


def _better(frame: pl.DataFrame) -> pl.DataFrame:
    """Every gold reward of the later sweep is higher by 0.6, and its MMLU prompts are others."""
    frame = _renamed(frame)
    gold = pl.col("metric") == "gold_reward"
    return frame.with_columns(
        pl.when(gold).then(pl.col("score") + 0.6).otherwise(pl.col("score")).alias("score"),
        pl.when(pl.col("metric") == "acc").then(pl.lit("other")).otherwise(pl.col("prompt_hash")).alias("prompt_hash"),
    )


@pytest.fixture(scope="module")
def both(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scenario's sweep, and a later one of another suite whose gold rewards are higher."""
    folder = tmp_path_factory.mktemp("both")
    changes = dict.fromkeys(TABLES, _renamed) | {"samples": _better, "environment_rows": lambda f: f}
    return _joined(folder / "results", store, derive(store, folder / "later", changes))


def _joined(results: Path, *stores: Store) -> Store:
    joined = Store(results)
    for one in stores:
        for name, table in TABLES.items():
            columns = ", ".join(f'"{c}"' for c in table.names)
            frame = one.query(f"SELECT {columns} FROM raw.{name}")
            times = [pl.col(c.name).dt.replace_time_zone("UTC") for c in table.columns if c.kind == "time"]
            joined.append_many({name: frame.with_columns(times).to_dicts()})
    joined.ingest()
    return joined


def _gold(store: Store, sweep: str, recipe: str) -> dict[str, list[float]]:
    rows = store.query(
        "SELECT s.document, l.seed, s.score FROM (SELECT DISTINCT seed, measurement, target FROM scores "
        "WHERE sweep = ? AND recipe = ? AND phase = 'final' AND target = 'cpu-fp32' AND task = 'gold') l "
        "JOIN samples s USING (measurement, target) WHERE s.metric = 'gold_reward' AND s.half = 'final' "
        "ORDER BY s.document, l.seed",
        [sweep, recipe],
    )
    found: dict[str, list[float]] = {}
    for document, _, score in rows.iter_rows():
        found.setdefault(f"gold/{document}", []).append(score)
    return found


def test_two_recipes_of_two_sweeps(both: Store) -> None:
    versus = compare(both, ["later/dpo", f"{SWEEP}/dpo"])
    rows = {row.what: row for row in versus.rows}
    assert {"mmlu acc", "hellaswag acc_norm", "gsm8k exact_match_flexible", "gold_reward", "kl"} <= rows.keys()
    gold = rows["gold_reward"]
    expected = paired_difference(_gold(both, OTHER, "dpo"), _gold(both, SWEEP, "dpo"))
    assert gold.difference == expected
    assert expected.value == pytest.approx(0.6)
    assert gold.verdict == "higher"
    assert gold.changed == 1.0
    assert gold.values[0] - gold.values[1] == pytest.approx(0.6)
    assert rows["kl"].difference.value == 0
    assert rows["kl"].changed == 0
    assert rows["kl"].verdict == "unresolved"
    assert [row.adjusted_p for row in versus.rows] == holm([row.difference.p for row in versus.rows])
    assert any("were given other prompts" in w and "mmlu" in w for w in versus.warnings)
    assert not any("gold" in w for w in versus.warnings)


def test_two_sweeps_are_compared_recipe_by_recipe_and_one_within_itself(both: Store) -> None:
    pairs = {(r.a.label, r.b.label) for r in compare(both, ["later", SWEEP]).rows}
    assert pairs == {(f"{OTHER}/{who}", f"{SWEEP}/{who}") for who in ("base", "dpo", "ppo")}
    within = {(r.a.who.recipe, r.b.who.recipe) for r in compare(both, [SWEEP]).rows}
    assert within == {("base", "dpo"), ("base", "ppo"), ("dpo", "ppo")}


def test_an_artifact_stands_for_its_seed_alone(both: Store) -> None:
    key = both.query(
        "SELECT artifact FROM raw.measurement_links WHERE sweep = ? AND recipe = 'ppo' AND phase = 'final' "
        "AND seed = 1 LIMIT 1",
        [SWEEP],
    )["artifact"][0]
    (row,) = (r for r in compare(both, [key, f"{SWEEP}/dpo@{MODEL}"]).rows if r.what == "gold_reward")
    assert row.difference.seeds == (1, 2)
    mine = {d: [s[1]] for d, s in _gold(both, SWEEP, "ppo").items()}
    assert row.difference == paired_difference(mine, _gold(both, SWEEP, "dpo"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nothing", "dpo"], "'nothing' is no sweep, recipe"),
        (["dpo", "later/ppo"], "'dpo' is in several places: give one of "),
        ([f"{SWEEP}/nothing", "later"], "is no sweep, recipe"),
        ([f"{SWEEP}/dpo@gpt2", "later"], "is no sweep, recipe"),
        (["nowhere/dpo", "later"], "is no sweep, recipe"),
        ([f"{SWEEP}/dpo", f"{SWEEP}/dpo"], "nothing to compare"),
        ([f"{SWEEP}/dpo"], "nothing to compare"),
        (["ffff", "later"], "is no sweep, recipe"),
        (["deadbeefdeadbeef", "later"], "is no sweep, recipe"),
    ],
)
def test_names_that_stand_for_nothing_or_several_things(both: Store, names: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        compare(both, names)
    assert said in str(caught.value)


def test_the_page_says_what_is_resolved_and_what_to_know(both: Store, tmp_path: Path) -> None:
    versus = compare(both, ["later/dpo", f"{SWEEP}/dpo"])
    page = write_comparison(versus, tmp_path / "made" / "a.html").read_text("utf-8")
    assert f"{OTHER}/dpo is higher than {SWEEP}/dpo in gold_reward: +0.600" in page
    assert "were given other prompts" in page
    assert page.count("<tr>") > 10


def test_a_regression_is_a_resolved_loss_in_what_counts(both: Store) -> None:
    worse = regressed(against_baseline(both, SWEEP, "later"))
    assert {(row.a.who.recipe, row.what) for row in worse} == {(r, "gold_reward") for r in ("base", "dpo", "ppo")}
    assert not regressed(against_baseline(both, OTHER, SWEEP))
    # A baseline of one model: the untrained one is not held against it.
    one = against_baseline(both, SWEEP, "later/dpo")
    assert {row.a.who.recipe for row in one.rows} == {"dpo", "ppo"}
    assert ("dpo", "gold_reward") in {(row.a.who.recipe, row.what) for row in regressed(one)}


def test_more_kl_is_no_regression_unless_it_is_an_objective(store: Store, tmp_path: Path) -> None:
    base_kl = [row for row in compare(store, [f"{SWEEP}/base", f"{SWEEP}/ppo"]).rows if row.what == "kl"]
    assert [row.verdict for row in base_kl] == ["lower"]
    assert not [row for row in regressed(compare(store, [f"{SWEEP}/base", f"{SWEEP}/ppo"])) if row.what == "kl"]


def test_a_sweep_is_not_its_own_baseline_and_must_have_ended(both: Store, store: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is the sweep .* itself"):
        against_baseline(both, SWEEP, SWEEP)
    running = derive(store, tmp_path, {"sweep_events": lambda f: f.with_columns(pl.lit("running").alias("state"))})
    with pytest.raises(UserError, match="its figures are not final"):
        against_baseline(running, SWEEP, f"{SWEEP}/dpo")


def _subjects(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("task").replace({"mmlu": "mmlu_anatomy", "gsm8k": "mmlu_astronomy"}))


def _asking(tasks: str) -> Change:
    suite = f'{{"name": "s", "measure": {{"tasks": {{{tasks}}}}}}}'
    return lambda frame: frame.with_columns(pl.lit(suite).alias("suite_json"))


def test_a_group_and_a_part_of_it_meet_on_the_shared_subjects(store: Store, tmp_path: Path) -> None:
    whole = {"measurements": _subjects, "sweep_events": _asking('"mmlu": {}')}
    first = derive(store, tmp_path / "first", whole)
    part = {name: lambda f, name=name: whole.get(name, lambda g: g)(_renamed(f)) for name in TABLES}
    part |= {"sweep_events": lambda f: _asking('"mmlu_anatomy": {}, "hellaswag": {}')(_renamed(f))}
    second = derive(store, tmp_path / "second", part | {"environment_rows": lambda f: f})
    joined = _joined(tmp_path / "results", first, second)
    for names in ([f"{SWEEP}/dpo", "later/dpo"], ["later/dpo", f"{SWEEP}/dpo"]):
        rows = {row.what: row for row in compare(joined, names).rows}
        assert "mmlu acc" not in rows
        assert (rows["mmlu_anatomy acc"].difference.n, rows["mmlu_anatomy acc"].changed) == (40, 0.0)
        # Both have it by its own name.
        assert "hellaswag acc_norm" in rows
    # Within one sweep nothing is renamed.
    assert "mmlu_anatomy acc" not in {row.what for row in compare(joined, [SWEEP]).rows}
