"""A judged sweep from its suite to its store: a panel of a model and an endpoint, pairs, quality, resuming."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.errors import MeasurementError, UserError
from harness.plan import Plan, gather_facts
from harness.store import Store
from harness.suite import load_suite
from harness.sweep import Outcome
from tests.in_process import planned, swept
from tests.measure.judge.fault_server import FaultServer, Request, serving

SUITE = """
name: judged
models: [{model}]
recipes:
  sft: [{{sft: {{steps: 1, batch_size: 2, learning_rate: 1e-2}}}}]
  longer: [{{use: sft}}, {{sft: {{steps: 1, batch_size: 2, learning_rate: 2e-2}}}}]
measure:
  judge:
    panel:
      - base
      - {{endpoint: {url}, model: talker, input_price: 10000, output_price: 1000}}
      - {{local: base, name: stammerer, max_tokens: 8}}
    over_refusal: true
    multi_turn: true
    limit: 3
    max_new_tokens: 4
    pairwise: {{against: base, limit: 2}}
    quality: {{limit: 2}}
precision: float32
budget: {{trials_per_cell: 1}}
"""
JUDGES = {"base", "talker", "stammerer"}
COST = 100 * 10000 / 1e6 + 10 * 1000 / 1e6
"""Of a vote of the endpoint, at its prices."""


def _talker(request: Request, before: int) -> str:
    """Prefers what stands first, cannot be read on over-refusal, rates all else alike."""
    del before
    end = request.text.rpartition("\n\n")[2]
    if "[[first]]" in end:
        return "The first is clearer.\n[[first]]"
    if "does it refuse" in end:
        return "Who is to say?"
    return "Fine.\n[[yes]]" if "[[yes]]" in end else "Fine.\n[[7]]"


def _broken(*given: object, **more: object) -> None:
    raise MeasurementError("no pairs today")


@dataclass
class Judged:
    """A finished sweep."""

    suite: Path
    results: Path
    plan: Plan
    broken: Outcome
    """Of the first sweep, in which no pair could be compared."""
    unresolved: list[Any]
    """Whether the failures that it left were resolved then."""
    outcome: Outcome
    server: FaultServer

    def rows(self, sql: str) -> list[Any]:
        return Store(self.results).query(sql).rows()


@pytest.fixture(scope="module")
def judged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    model = tmp_path_factory.mktemp("wide") / "model"
    shutil.copytree(tiny_model, model)
    # A judge's examples are long in a vocabulary of 600; rotary positions have no end of their own.
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    folder = tmp_path_factory.mktemp("judged")
    with serving(_talker) as server:
        suite = folder / "judged.yaml"
        suite.write_text(SUITE.format(model=model, url=server.url))
        results = folder / "results"
        plan = planned(suite, results)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("harness.measure.judge.measure_pairs", _broken)
            broken = swept(plan, results)
        unresolved = Store(results).query("SELECT recipe, resolved FROM failures").rows()
        yield Judged(suite, results, plan, broken, unresolved, swept(planned(suite, results), results), server)


def test_it_ends_and_nothing_is_asked_twice(judged: Judged) -> None:
    assert judged.outcome.failures == []
    assert set(judged.server.counts()) == {1}
    asked = len(judged.server.requests)
    again = planned(judged.suite, judged.results)
    assert again.estimate.measured == again.estimate.measurements
    assert swept(again, judged.results).computed == 0
    assert len(judged.server.requests) == asked


def test_runs_keep_their_figures_where_pairs_fail_and_only_the_pairs_are_made_later(judged: Judged) -> None:
    (line,) = set(judged.broken.failures)
    assert "comparisons in pairs" in line
    assert "no pairs today" in line
    assert judged.unresolved == [("base", False)]
    # A process for each run that comes first in a pair.
    assert judged.outcome.computed == 2
    assert judged.rows("SELECT recipe, resolved FROM failures") == [("base", True)]
    assert judged.rows("SELECT DISTINCT state FROM trials") == [("complete",)]


def test_the_plan_counts_every_measurement(judged: Judged) -> None:
    # Three models judged, three judges checked, three pairs of models.
    (made,) = judged.rows("SELECT count(*) FROM raw.measurements")
    assert made == (3 + 3 + 3,)
    # While tuning has decided nothing, pairs are not known; here nothing is tuned.
    assert judged.plan.estimate.measurements == 9


def test_every_judge_votes_on_every_answer(judged: Judged) -> None:
    sql = "SELECT aspect, judge, count(*) FROM raw.judge_votes GROUP BY ALL"
    counts = {(a, j): n for a, j, n in judged.rows(sql)}
    assert {j for _, j in counts} == JUDGES
    for aspect in ("helpfulness", "harmlessness", "over_refusal", "multi_turn"):
        assert counts[aspect, "base"] == counts[aspect, "talker"] == counts[aspect, "stammerer"] > 0
    turns = judged.rows("SELECT DISTINCT turn FROM raw.judge_votes WHERE aspect = 'multi_turn' ORDER BY turn")
    assert turns == [(1,), (2,)]


def test_what_is_no_verdict_is_a_row_and_no_score(judged: Judged) -> None:
    sql = (
        "SELECT DISTINCT aspect, verdict, score, words FROM judgements WHERE judge = 'talker' AND verdict = 'unparsed'"
    )
    assert judged.rows(sql) == [("over_refusal", "unparsed", None, "Who is to say?")]
    # A random model ends as nobody told it to: its words are kept, empty ones too.
    said = judged.rows("SELECT DISTINCT verdict, score FROM judgements WHERE judge = 'stammerer'")
    assert said == [("unparsed", None)]
    assert judged.rows("SELECT count(*) FROM judgements WHERE judge = 'stammerer' AND words IS NULL") == [(0,)]
    (alone,) = judged.rows("SELECT count(*) FROM judgements WHERE aspect = 'over_refusal' AND score IS NOT NULL")
    assert alone[0] > 0
    shown = judged.rows("SELECT DISTINCT metric FROM scores WHERE task = 'judge' ORDER BY ALL")
    assert shown == [("harmlessness",), ("helpfulness",), ("multi_turn",), ("over_refusal",)]


def test_votes_have_their_price(judged: Judged) -> None:
    costs = {c for (c,) in judged.rows("SELECT DISTINCT cost FROM raw.judge_votes WHERE judge = 'talker'")}
    # A question that was put before is not paid again.
    assert {round(c, 6) for c in costs} <= {0.0, round(COST, 6)}
    assert judged.rows("SELECT DISTINCT cost FROM raw.judge_votes WHERE judge = 'base'") == [(None,)]


def test_a_preference_that_follows_the_order_is_a_tie(judged: Judged) -> None:
    pairs = judged.rows("SELECT DISTINCT a, b FROM preferences ORDER BY ALL")
    assert pairs == [("longer", "base"), ("sft", "base"), ("sft", "longer")]
    found = judged.rows("SELECT DISTINCT win, flipped, words_first FROM preferences WHERE judge = 'talker'")
    assert found == [(0.5, True, "The first is clearer.\n[[first]]")]
    assert judged.rows("SELECT count(*), count(DISTINCT document) FROM preferences WHERE judge = 'talker'") == [(6, 2)]


def test_every_judge_is_checked_and_its_key_is_that_of_its_votes(judged: Judged) -> None:
    found = judged.rows('SELECT judge, judge_key, "check" FROM judge_quality ORDER BY ALL')
    assert {(j, c) for j, _, c in found} == {(j, c) for j in JUDGES for c in ("known_order", "injection")}
    keys = set(judged.rows("SELECT DISTINCT judge, judge_key FROM raw.judge_votes"))
    assert {(j, k) for j, k, _ in found} == keys
    order = "SELECT \"value\", flipped FROM judge_quality WHERE judge = 'talker' AND \"check\" = 'known_order'"
    assert judged.rows(order) == [(0.5, 1.0)]


def test_an_endpoint_elsewhere_needs_its_key_before_anything_runs(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    suite = load_suite(judged.suite, ["measure.judge.panel=[{endpoint: https://judge.example/v1, model: big}]"])
    with pytest.raises(UserError, match=r"measure\.judge\.panel: .*OPENAI_API_KEY"):
        gather_facts(suite)
