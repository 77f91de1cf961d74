"""What the reference says: an artifact that all trials of a cell share, with the numbers as computed on the spot."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import PrunedError, UserError
from harness.execute._stage import run_stage
from harness.folders import Folders
from harness.method import Context, Made, find_method
from harness.models import load_model
from harness.plan import gather_facts
from harness.resolve import Facts, Run, chain
from harness.suite import load_suite
from methods import _reference_logprobs
from methods._reference_logprobs import PREPARATION
from tests.methods.helpers import Log, completion_log_prob, make_context, make_inputs, preferences, weights

CASES: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {}),
    ("dpo", {"lora_rank": 4, "adapter": "pissa"}),
    ("kto", {}),
    ("kto", {"loss_type": "apo_zero_unpaired"}),
]


def prepare(folder: Path, scratch: Path, name: str, settings: Mapping[str, Any], context: Context) -> Made:
    method: Any = find_method(name)
    prepared = method.prepares(method.params.model_validate(settings).model_dump(mode="json"))
    assert prepared is not None
    assert prepared[0] == PREPARATION
    preparation: Any = find_method(prepared[0])
    made: Made = preparation().run(
        make_inputs(folder, preferences(10, 1)), preparation.params.model_validate(prepared[1]), context
    )
    return made


@pytest.mark.parametrize(("name", "settings"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_is_the_same_to_the_last_bit(
    name: str,
    settings: dict[str, Any],
    precision: Any,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of 10 pairs, so that the second epoch begins within a batch; single answers enough for good and bad ones in each.
    whole = {"steps": 5, "batch_size": 8 if name == "kto" else 4, "learning_rate": 1e-3, **settings}
    method: Any = find_method(name)

    def train(before: Any) -> tuple[Any, Log]:
        log = Log()
        inputs = make_inputs(tiny_model, preferences(10, 1))
        inputs.prepared = before
        context = make_context(tmp_path, log, precision=precision)
        return method().run(inputs, method.params.model_validate(whole), context), log

    alone, first = train(None)
    made = prepare(tiny_model, tmp_path, name, whole, make_context(tmp_path, Log(), precision=precision))
    assert made.metrics["shared_prompt"] == 1.0
    # As the engine hands it on.
    rows = [json.loads(json.dumps(row)) for row in made.rows]

    def refused(*_: object) -> None:
        raise AssertionError("a forward pass for the reference")

    monkeypatch.setattr(_reference_logprobs, "_log_probs", refused)
    given, second = train(rows)
    assert first.steps == second.steps
    one, other = weights(alone.model), weights(given.model)
    assert all(torch.equal(one[key], other[key]) for key in one)
    if "adapter" not in settings:
        assert first.values("rewards_chosen")[0] == 0.0


def test_they_are_those_of_the_plain_model(tiny_model: Path, tmp_path: Path) -> None:
    made = prepare(tiny_model, tmp_path, "dpo", {"steps": 3, "batch_size": 4}, make_context(tmp_path, Log()))
    assert sorted(int(str(row["row"])) for row in made.rows) == list(range(10))
    loaded, dataset = load_model(tiny_model), preferences(10, 1)
    for row in made.rows:
        pair = dataset[int(str(row["row"]))]
        for side in ("chosen", "rejected"):
            value, _ = completion_log_prob(loaded, loaded.model, pair["prompt"], pair[side])
            assert row[f"ref_{side}_logps"] == pytest.approx(value, abs=1e-4)


def test_it_stops_at_its_deadline_and_needs_a_dataset(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(PrunedError, match="deadline"):
        prepare(tiny_model, tmp_path, "kto", {"steps": 2}, make_context(tmp_path, Log(), deadline=0.0))
    preparation: Any = find_method(PREPARATION)
    params = preparation.params(dataset="some", max_length=64, batch_size=2, rows=2, of="pairs")
    with pytest.raises(UserError, match="needs a dataset"):
        preparation().run(make_inputs(tiny_model, None), params, make_context(tmp_path, Log()))


SUITE = """
name: shared_reference
models: [{model}]
data: {data}
recipes:
  dpo: [dpo: {{dataset: some/preferences, steps: 2, batch_size: {{values: [2, 4]}}, beta: {{min: 0.01, max: 0.5}}}}]
  ipo: [dpo: {{dataset: some/preferences, steps: 2, batch_size: 4, loss_type: ipo, lora_rank: 4}}]
  kto: [kto: {{dataset: some/preferences, steps: 2, batch_size: 4}}]
measure: {{profile: {{}}}}
seeds: [0]
budget: {{trials_per_cell: 2}}
"""


@pytest.fixture(scope="module")
def facts(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    folder = tmp_path_factory.mktemp("data")
    (folder / "some" / "preferences").mkdir(parents=True)
    lines = (json.dumps(row) + "\n" for row in preferences(20, 1))
    (folder / "some" / "preferences" / "train.jsonl").write_text("".join(lines))
    path = folder / "suite.yaml"
    path.write_text(SUITE.format(model=tiny_model, data=folder))
    return gather_facts(load_suite(path))


def stages(facts: Facts, recipe: str, seed: int = 0, **settings: Any) -> list[Any]:
    given = {f"dpo.{name}": value for name, value in settings.items()}
    return list(chain(facts, Run(recipe, facts.suite.models[0], seed, {recipe: given} if given else {})))


def test_trials_that_see_the_same_batches_share_one_stage(
    facts: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, one = stages(facts, "dpo", batch_size=4, beta=0.1)
    assert before.label == "dpo dpo: reference_logprobs seed 0"
    again, other = stages(facts, "dpo", batch_size=4, beta=0.3)
    assert before.key == again.key
    assert one.key != other.key
    assert one.inputs["prepared"] == other.inputs["prepared"] == before.key
    # Another loss and adapters ask the same of the reference; other batches, another seed and single answers do not.
    assert stages(facts, "ipo")[0].key == before.key
    others = [stages(facts, "dpo", batch_size=2, beta=0.1), stages(facts, "ipo", seed=1), stages(facts, "kto")]
    assert len({before.key, *(found[0].key for found in others)}) == 4
    run_stage(before, tmp_path, Log())
    written = Folders(tmp_path).artifacts / before.key
    assert not list(written.rglob("*.safetensors"))
    log = Log()
    run_stage(one, tmp_path, log)
    assert log.values("rewards_margin")[0] == 0.0

    def refused(*_: object) -> None:
        raise AssertionError("a forward pass for the reference")

    monkeypatch.setattr(_reference_logprobs, "_log_probs", refused)
    run_stage(other, tmp_path, log := Log())
    assert log.values("rewards_margin")[0] == 0.0
