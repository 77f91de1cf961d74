"""Failures run again: which, with which settings, and what becomes of the choice that was made without them."""

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UserError
from harness.plan import Plan
from harness.retry import close_unused, find_ended, reopen
from harness.search import Past, suggest
from harness.store import Store
from harness.suite import load_suite
from tests.in_process import planned, swept

# Whatever stands in the file goes wrong: learning rates, or `all`.
METHOD = """
import pathlib
from harness.errors import InfeasibleError
from methods.sft import SFT

class Brittle(SFT):
    name = "brittle"

    def run(self, inputs, params, context):
        bad = pathlib.Path({switch!r}).read_text().split()
        if "error" in bad or repr(params.learning_rate) in bad:
            raise RuntimeError("brittle")
        if "diverge" in bad:
            raise InfeasibleError("diverged", step=1)
        return super().run(inputs, params, context)
"""
SUITE = """
name: again
models: [{model}]
recipes:
  tuned: [{{"brittle:Brittle": {{steps: 2, batch_size: 2, learning_rate: {{min: 1e-5, max: 1e-2, log: true}}}}}}]
  fixed: [{{"brittle:Brittle": {{steps: 1, batch_size: 2}}}}]
measure: {{gold: {{limit: 6, max_new_tokens: 4}}}}
objectives: {{kl: maximize}}
precision: float32
budget: {{trials_per_cell: 2}}
"""


class _Bench:
    def __init__(self, folder: Path, model: Path) -> None:
        self.switch, self.results, self.suite = folder / "switch", folder / "results", folder / "again.yaml"
        self.suite.write_text(SUITE.format(model=model))
        (folder / "brittle.py").write_text(METHOD.format(switch=str(self.switch)))
        self.store = Store(self.results)

    def plan(self) -> Plan:
        return planned(self.suite, self.results)

    def rows(self, sql: str) -> list[Any]:
        self.store.ingest()
        return self.store.query(sql).rows()

    def rates(self) -> list[float]:
        """The learning rates of the two trials: neither depends on the other's result."""
        suite = load_suite(self.suite)
        seed, space = f"again/tuned/{suite.models[0]}", suite.search_space("tuned")
        past: list[Past] = []
        for number in range(2):
            found = suggest(space, past, number, seed=seed, sampler="tpe", directions=["maximize"])
            past.append(Past(number, found, "failed"))
        return [float(str(next(iter(p.settings.values())))) for p in past]


@pytest.fixture
def bench(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Bench:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "brittle", raising=False)
    return _Bench(tmp_path, tiny_model)


FINALS = "SELECT recipe, trial, state FROM trials WHERE phase = 'final' ORDER BY ALL"
TUNED = "SELECT trial, state, settings FROM trials WHERE phase = 'tune' ORDER BY ALL"


def test_what_failed_is_run_again_and_a_better_trial_is_chosen(bench: _Bench) -> None:
    rates = bench.rates()
    # The larger step mostly moves the model further from its base, which this suite calls better.
    best = rates.index(max(rates))
    bench.switch.write_text(f"{max(rates)!r} {2e-5!r} 1e-05")
    plan = bench.plan()
    first = swept(plan, bench.results)
    settings = bench.rows(TUNED)
    assert [state for _, state, _ in settings] == ["failed" if n == best else "complete" for n in range(2)]
    chosen = ("tuned", 1 - best, "complete")
    assert chosen in bench.rows(FINALS)
    assert ("fixed", 0, "failed") in bench.rows(FINALS)
    assert len(first.failures) == 2
    assert bench.rows("SELECT resolved, count(*) FROM failures GROUP BY ALL") == [(False, 2)]
    # Nothing that failed is run again before it is asked for.
    assert len(swept(bench.plan(), bench.results).failures) == 2
    assert bench.rows("SELECT count(*) FROM failures") == [(2,)]

    bench.switch.write_text("")
    assert find_ended(bench.store, plan, kind="crash") == []
    assert [e.words() for e in find_ended(bench.store, plan, recipe="fixed")] == [
        f"fixed on {plan.suite.models[0]}, final run, seed 0: failed"
    ]
    ended = find_ended(bench.store, plan)
    assert [(e.recipe, e.phase) for e in ended] == [("fixed", "final"), ("tuned", "tune")]
    reopen(bench.store, plan.sweep, ended)
    now = bench.plan()
    # The plan counts what was opened: the fixed recipe's stage and the trial's.
    assert (now.estimate.new, now.estimate.undecided) == (2, 0)
    assert swept(now, bench.results).failures == []
    close_unused(bench.store, plan.sweep, ended)
    assert [(n, s) for n, s, _ in bench.rows(TUNED)] == [(0, "complete"), (1, "complete")]
    assert [s for _, _, s in bench.rows(TUNED)] == [s for _, _, s in settings]
    # The comparison goes by the trial chosen now, and by that alone.
    reached = bench.rows("SELECT objectives FROM trials WHERE phase = 'tune' ORDER BY trial")
    values = [json.loads(objectives)["kl"] for (objectives,) in reached]
    best = values.index(max(values))
    assert bench.rows(FINALS) == [("base", 0, "complete"), ("fixed", 0, "complete"), ("tuned", best, "complete")]
    assert bench.rows("SELECT DISTINCT trial FROM scores WHERE recipe = 'tuned' AND phase = 'final'") == [(best,)]
    assert bench.rows("SELECT resolved, count(*) FROM failures GROUP BY ALL") == [(True, 2)]
    assert find_ended(bench.store, plan) == []


def test_what_the_search_has_learned_from_is_run_again_only_when_asked_for(bench: _Bench) -> None:
    bench.switch.write_text("diverge")
    plan = bench.plan()
    with pytest.raises(UserError, match=r"has not run in .* yet: run `harness sweep` first"):
        find_ended(bench.store, plan)
    assert len(swept(plan, bench.results).failures) == 2
    # No trial of the cell came to a result: then all of them count.
    assert [(e.recipe, e.kind) for e in find_ended(bench.store, plan)] == [
        ("fixed", "infeasible"),
        ("tuned", "infeasible"),
        ("tuned", "infeasible"),
    ]
    ((first,),) = [find_ended(bench.store, plan, recipe="tuned", trial=0)]
    reopen(bench.store, plan.sweep, [first])
    bench.switch.write_text("")
    swept(bench.plan(), bench.results)
    assert [(n, s) for n, s, _ in bench.rows(TUNED)] == [(0, "complete"), (1, "infeasible")]
    assert [e.recipe for e in find_ended(bench.store, plan)] == ["fixed"]
    assert {e.recipe for e in find_ended(bench.store, plan, kind="infeasible")} == {"fixed", "tuned"}
    for wrong, there in (({"recipe": "none"}, "base, tuned, fixed"), ({"kind": "odd"}, "failed, infeasible, pruned")):
        with pytest.raises(UserError, match=f"expected one of {there}"):
            find_ended(bench.store, plan, **wrong)  # type: ignore[arg-type]  # the options of one call each


def test_a_run_that_is_not_gone_through_gets_its_state_back(bench: _Bench) -> None:
    bench.switch.write_text("error")
    plan = bench.plan()
    swept(plan, bench.results)
    ended = find_ended(bench.store, plan, recipe="fixed")
    reopen(bench.store, plan.sweep, ended)
    assert ("fixed", 0, "running") in bench.rows(FINALS)
    close_unused(bench.store, plan.sweep, ended)
    assert ("fixed", 0, "failed") in bench.rows(FINALS)
    assert json.loads(ended[0].settings) == {}
