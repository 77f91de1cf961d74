"""Self-play: demonstrations against the policy's own answers."""

from pathlib import Path
from typing import Any

from harness.method import Inputs, Made
from harness.models import load_model
from methods.self_play import SelfPlay, SelfPlayParams
from tests.methods.helpers import Log, instructions, make_context, turn
from tests.methods.making_contract import MakingContract


class TestSelfPlay(MakingContract):
    name = "self_play"
    logged = frozenset({"equal"})
    recorded = frozenset({"demonstration", "sample"})
    columns: frozenset[str] = frozenset()


def run(folder: Path, scratch: Path, dataset: Any) -> Made:
    inputs = Inputs({"policy": folder}, lambda _role, path: load_model(path), dataset)
    params = SelfPlayParams(max_new_tokens=4, unfinished="keep", prompts=8)
    return SelfPlay().run(inputs, params, make_context(scratch, Log()))


def test_what_the_policy_says_already_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    import datasets

    rows = instructions(12, 3).to_list()
    made = run(tiny_model, tmp_path, datasets.Dataset.from_list(rows))
    assert len(made.rows) > 3
    assert {str(row["chosen"]) for row in made.rows} <= {str(row["completion"]) for row in rows}
    # One of the prompts is now shown answered as the policy answers it, which the same seed makes it say again.
    own = made.rows[0]
    changed = [r | {"completion": own["rejected"]} if r["prompt"] == own["prompt"] else r for r in rows]
    again = run(tiny_model, tmp_path, datasets.Dataset.from_list(changed))
    assert list(again.rows) == list(made.rows[1:])
    assert again.metrics["equal"] == 1
    shown, said = (r for r in again.records if [turn("user", r.prompt)] == own["prompt"])
    assert (shown.kept, said.kept) == (False, False)
    assert [turn("assistant", said.text)] == own["rejected"] == [turn("assistant", shown.text)]
