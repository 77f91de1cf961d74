"""The command on an entry's page repeats the sweep: with it, the suite is what was run."""

import itertools
import json
import shlex
from pathlib import Path

import polars as pl

from harness.publish._command import command_of
from harness.report._queries import read_facts
from harness.store import Store
from harness.suite import load_suite
from tests.report.stores import Change, derive
from tests.store.scenario import SWEEP

SUITE = Path(__file__).parent.parent.parent / "suites" / "sft_learning_rate.yaml"


def _facts_of(store: Store, results: Path, overrides: list[str], **more: str) -> tuple[str, list[str]]:
    ran = load_suite(SUITE, overrides).model_dump(mode="json")
    columns = {"yaml": SUITE.read_text(encoding="utf-8"), "suite_json": json.dumps(ran), **more}
    changes: dict[str, Change] = {
        "sweep_events": lambda f: f.with_columns(pl.lit(v).alias(c) for c, v in columns.items()),
        "environment_rows": lambda f: f.with_columns(pl.lit('{"remote code allowed": true}').alias("json")),
    }
    return command_of(read_facts(derive(store, results, changes), SWEEP))


def test_what_was_set_is_told(store: Store, tmp_path: Path) -> None:
    overrides = ["seeds=[3, 5]", 'question=It\'s "what"?', "budget.trials_per_cell=7"]
    command, notes = _facts_of(store, tmp_path, overrides)
    assert notes == []
    words = shlex.split(command)
    assert words[:3] == ["harness", "sweep", "dpo_vs_ppo.yaml"]
    assert words[-1] == "--trust-remote-code"
    told = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    assert load_suite(SUITE, told).model_dump() == load_suite(SUITE, overrides).model_dump()
    assert len(told) == 3


def test_nothing_set_and_what_is_not_known(store: Store, tmp_path: Path) -> None:
    command, notes = _facts_of(store, tmp_path / "plain", [], plan_json='{"skipped": {"gpu": "no GPU"}}')
    assert command == "harness sweep dpo_vs_ppo.yaml --trust-remote-code --skip-unavailable"
    assert notes == []
    command, notes = _facts_of(store, tmp_path / "old", [], yaml="name: [")
    assert "is not known" in notes[0]
