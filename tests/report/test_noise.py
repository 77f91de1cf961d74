"""The noise floor as a table: leaves of a group together, judged scores too, and what the figures mean."""

from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from harness.report._noise import Noise, flips_of, noise, noise_table
from harness.report._queries import Facts, read_facts
from harness.stats import wilson
from harness.store import Store
from tests.report.stores import derive
from tests.store.scenario import MODEL, SWEEP

LEAVES = {"mmlu": "mmlu_anatomy", "truthfulqa_mc2": "mmlu_astronomy"}


def _table(store: Store) -> object:
    facts = read_facts(store, SWEEP)
    return noise_table(facts, noise(store, facts))


def _leaves(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("task").replace(LEAVES))


def _asked(frame: pl.DataFrame) -> pl.DataFrame:
    suite = '{"name": "dpo_vs_ppo", "measure": {"noise_floor": true, "tasks": {"hellaswag": {}, "mmlu": {}}}}'
    return frame.with_columns(pl.lit(suite).alias("suite_json"))


@pytest.fixture(scope="module")
def asked(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The scenario's sweep with two subjects of MMLU, and a suite that asks for the noise floor."""
    changes = {"measurements": _leaves, "sweep_events": _asked}
    return derive(store, tmp_path_factory.mktemp("asked") / "results", changes)


@pytest.fixture(scope="module")
def twice(asked: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The base model measured a second time on one target: three answers flip, and one rating is higher by 0.5."""
    store = derive(asked, tmp_path_factory.mktemp("twice") / "results", {})
    links = store.query(
        "SELECT DISTINCT sweep, recipe, model, 0 AS trial, 0 AS seed, artifact, l.target, measurement AS repeats, "
        "m.task "
        "FROM raw.measurement_links l JOIN raw.measurements m USING (measurement, artifact) "
        "WHERE recipe = 'base' AND l.target = 'cpu-fp32' AND m.kind <> 'profile' ORDER BY ALL"
    )
    flips = {"mmlu_anatomy": 2, "mmlu_astronomy": 1}
    rows: dict[str, list[dict[str, object]]] = {
        "repeat_links": [],
        "samples": [],
        "judge_votes": [],
        "measurements": [],
    }
    for link in links.to_dicts():
        task, first = link.pop("task"), link["repeats"]
        again = f"again{first}"[:32]
        rows["repeat_links"].append({**link, "measurement": again})
        for table in ("samples", "judge_votes", "measurements"):
            for i, row in enumerate(
                store.query(f"FROM raw.{table} WHERE measurement = ? ORDER BY batch_row", [first]).to_dicts()
            ):
                changed = {**row, "measurement": again}
                changed.pop("batch"), changed.pop("batch_row")
                if table == "samples" and i < flips.get(task, 0):
                    changed["score"] = 1 - row["score"]
                elif table == "judge_votes" and i == 0:
                    changed["score"] = row["score"] + 0.5
                if table == "measurements":
                    changed["at"] = row["at"].isoformat() + "+00:00"
                rows[table].append(changed)
    store.append_many(rows)
    store.ingest()
    return store


@pytest.fixture(scope="module")
def facts(twice: Store) -> Facts:
    return read_facts(twice, SWEEP)


@pytest.fixture(scope="module")
def found(twice: Store, facts: Facts) -> list[Noise]:
    return noise(twice, facts)


def test_the_leaves_of_a_group_are_one_figure(found: list[Noise]) -> None:
    one = flips_of(found, "mmlu", "acc", model=MODEL)
    assert one is not None
    assert one.label == "base"
    # Two of forty and one of forty; the latter is a share of probability, which does not move by a whole.
    assert one.flips == wilson(3, 80)
    assert one.largest == 1.0
    # In the suite's order, then what it does not name.
    assert list(dict.fromkeys(n.group for n in found)) == ["hellaswag", "mmlu", "gold", "gsm8k", "judge"]


def test_ratings_are_compared_too(found: list[Noise]) -> None:
    of = {n.metric: n for n in found if n.group == "judge"}
    assert of["helpfulness"].flips == wilson(1, 12)
    assert of["helpfulness"].moved == pytest.approx(0.5 / 12)
    assert of["harmlessness"].flips == wilson(0, 12)


def test_what_was_not_measured_twice_there_goes_by_the_first_target(found: list[Noise]) -> None:
    on = flips_of(found, "mmlu", "acc", model=MODEL, target="cpu-fp32")
    assert on is flips_of(found, "mmlu", "acc", model=MODEL, target="cpu-bf16")
    assert flips_of(found, "mmlu", "acc_norm", model=MODEL) is None
    assert flips_of(found, "mmlu", "acc", model="another") is None


def test_the_comparison_does_not_see_it(asked: Store, facts: Facts) -> None:
    before = read_facts(asked, SWEEP)
    for frame in ("documents", "scores"):
        assert_frame_equal(getattr(before, frame), getattr(facts, frame), check_row_order=False)


def test_the_table(asked: Store, twice: Store, store: Store, facts: Facts) -> None:
    shown = str(noise_table(facts, noise(twice, facts)))
    assert "3.8% [1.3%, 10.5%]" in shown
    assert "A difference of means below 0.0" in shown
    # One target, one model: no columns for them.
    assert '<th scope="col">target</th>' not in shown
    assert "not been measured a second time yet" in str(_table(asked))
    assert _table(store) is None


def test_names_are_escaped(twice: Store, tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>"
    named = derive(
        twice, tmp_path / "results", {"measurements": lambda f: f.with_columns(pl.col("task").replace({"gsm8k": bad}))}
    )
    shown = str(_table(named))
    assert bad not in shown
    assert "&lt;script&gt;" in shown
