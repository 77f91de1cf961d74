"""A run that was cut at any step goes on to the very weights and the very curve of one that was not."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import PrunedError
from harness.execute._spec import StageSpec
from harness.execute._stage import run_stage
from harness.folders import Folders
from harness.method import Context
from harness.models import load_model
from harness.plan import gather_facts
from harness.resolve import Facts, Run, chain
from harness.store import Store
from harness.suite import load_suite
from methods._checkpoint import Checkpoints
from tests.methods.helpers import Log, make_context, weights

_ADAPTERS = {"lora_rank": 4, "learning_rate": 1e-2}
_TRAIN: dict[str, Any] = {"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "gradient_accumulation": 2}
_ONLINE: dict[str, Any] = {"iterations": 4, "rollout_batch_size": 4, "minibatch_size": 2, "max_new_tokens": 6}
_REWARD = {"reward_model": {"steps": 2, "batch_size": 2, "held_out_pairs": 2}}
_RECIPES: dict[str, list[dict[str, Any]]] = {
    "sft": [{"sft": _TRAIN}],
    "sft_pissa": [{"sft": {**_TRAIN, **_ADAPTERS, "adapter": "pissa"}}],
    "dpo": [{"dpo": {**_TRAIN, "optimizer": "adafactor"}}],
    "dpo_lora": [{"dpo": {**_TRAIN, **_ADAPTERS}}],
    "reward": [{"reward_model": {**_TRAIN, "held_out_pairs": 2}}],
    "ppo": [_REWARD, {"ppo": {**_ONLINE, "kl_controller": "adaptive", "normalize_reward": True}}],
    "ppo_lora": [_REWARD, {"ppo": {**_ONLINE, **_ADAPTERS}}],
    "grpo": [_REWARD, {"grpo": {**_ONLINE, "group_size": 2}}],
    "online_dpo_lora": [_REWARD, {"online_dpo": {**_ONLINE, **_ADAPTERS}}],
}
_SUITE = """
name: checkpoints
models: [{model}]
recipes: {recipes}
measure: {{profile: {{}}}}
budget: {{trials_per_cell: 1, checkpoint_minutes: 1e-9}}
precision: float32
"""


class Killed(BaseException):
    """As a signal would have it: nothing that is tidied up after."""


@pytest.fixture(scope="module")
def facts(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    path = tmp_path_factory.mktemp("suite") / "suite.yaml"
    path.write_text(_SUITE.format(model=tiny_model, recipes=json.dumps(_RECIPES)))
    return gather_facts(load_suite(path))


def _stages(facts: Facts, recipe: str) -> list[StageSpec]:
    return chain(facts, Run(recipe, facts.suite.models[0], 0, {}))


def _before(stages: Sequence[StageSpec], results: Path) -> StageSpec:
    for spec in stages[:-1]:
        if not Folders(results).has(spec.key):
            run_stage(spec, results, Log())
    return stages[-1]


def _cut(spec: StageSpec, results: Path, at: int) -> None:
    def log(step: int, _total: int, _metrics: Mapping[str, float]) -> None:
        if step == at:
            raise Killed

    with pytest.raises(Killed):
        run_stage(spec, results, log)


def _curve(results: Path, spec: StageSpec) -> list[tuple[Any, ...]]:
    store = Store(results)
    store.ingest()
    return store.query(
        "SELECT step, metric, value FROM raw.training_steps WHERE stage = ? ORDER BY step, metric", [spec.key]
    ).rows()


def _left(results: Path, spec: StageSpec) -> dict[str, Any]:
    head: Any = "reward" if spec.method == "reward_model" else "causal"
    return weights(load_model(Folders(results).artifacts / spec.key, head=head).model)


@pytest.mark.parametrize("recipe", _RECIPES)
def test_a_cut_run_ends_with_the_same_bits_and_the_whole_curve(facts: Facts, tmp_path: Path, recipe: str) -> None:
    stages = _stages(facts, recipe)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    spec = _before(stages, whole)
    run_stage(spec.model_copy(update={"checkpoint_s": None}), whole, Log())
    assert not (whole / "checkpoints" / spec.key).exists()
    shutil.copytree(whole / "artifacts", cut / "artifacts", ignore=shutil.ignore_patterns(spec.key))
    # Cut twice: what went on is kept as what began was.
    for at, kept in ((2, 1), (4, 3)):
        _cut(spec, cut, at)
        assert [p.name for p in (cut / "checkpoints" / spec.key).iterdir()] == [f"{kept:09}"]
    log = Log()
    run_stage(spec, cut, log)
    assert [step for step, *_ in log.steps] == [1, 2, 3, 4]
    one, other = _left(whole, spec), _left(cut, spec)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert _curve(whole, spec) == _curve(cut, spec)
    figures = [Folders(r).manifest(spec.key)["metrics"] for r in (whole, cut)]
    for name in ("train_tokens", "train_flops", "sampled_tokens", "final_loss", "final_reward"):
        assert figures[0].get(name) == figures[1].get(name)
    assert not (cut / "checkpoints" / spec.key).exists()


def test_a_damaged_checkpoint_is_set_aside_and_the_run_begins_anew(
    facts: Facts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = _before(_stages(facts, "sft"), tmp_path)
    _cut(spec, tmp_path, 3)
    folder = tmp_path / "checkpoints" / spec.key
    (weights_file,) = folder.glob("*/weights-*.safetensors")
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    # Half of one, as a killed process leaves it.
    (folder / ".new-abc").mkdir()
    context = make_context(tmp_path, Log())
    context.checkpoints = folder
    assert Checkpoints(context, "cpu").resume() is None
    assert "is damaged and was set aside" in caplog.text
    assert sorted(p.name for p in folder.iterdir()) == [".damaged-000000002", ".new-abc"]
    run_stage(spec, tmp_path, Log())
    assert len({step for step, *_ in _curve(tmp_path, spec)}) == 4
    assert not folder.exists()


def test_time_that_was_spent_before_counts_for_the_deadline(facts: Facts, tmp_path: Path) -> None:
    spec = _before(_stages(facts, "sft"), tmp_path)
    _cut(spec, tmp_path, 3)
    folder = tmp_path / "checkpoints" / spec.key
    context = Context(seed=0, scratch=tmp_path, precision="float32", log=Log(), deadline=1000.0, checkpoints=folder)
    found = Checkpoints(context, "cpu").resume()
    assert found is not None
    assert context.before_s > 0
    assert context.deadline == 1000.0 - context.before_s
    # Another kind of device: sound, not used, and left to the one that made it.
    assert Checkpoints(context, "cuda").resume() is None
    assert found.folder.exists()


def test_a_run_that_failed_by_itself_leaves_no_checkpoint(facts: Facts, tmp_path: Path) -> None:
    spec = _before(_stages(facts, "sft"), tmp_path)

    def log(step: int, _total: int, _metrics: Mapping[str, float]) -> None:
        if step == 3:
            raise PrunedError("as a rung would")

    with pytest.raises(PrunedError):
        run_stage(spec, tmp_path, log)
    assert not (tmp_path / "checkpoints" / spec.key).exists()


def test_checkpoints_are_no_part_of_a_key_or_a_sweeps_identity(facts: Facts, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    text = _SUITE.format(model=tiny_model, recipes=json.dumps(_RECIPES))
    path.write_text(text.replace("1e-9", "null"))
    other = gather_facts(load_suite(path))
    assert other.suite.sweep_id() == facts.suite.sweep_id()
    mine, theirs = _stages(facts, "dpo")[-1], _stages(other, "dpo")[-1]
    assert mine.key == theirs.key
    assert (mine.checkpoint_s, theirs.checkpoint_s) == (pytest.approx(6e-8), None)
