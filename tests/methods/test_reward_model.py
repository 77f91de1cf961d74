"""Reward model: it ranks pairs it has not seen, and its artifact scores by itself."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import InfeasibleError, UserError
from harness.method import Inputs, Trained
from harness.models import load_model, save_model
from methods._rows import encode
from methods.reward_model import RewardModel, RewardModelParams, _split
from tests.methods.helpers import Log, make_context, make_inputs, preferences, weights

QUICK = {"steps": 25, "batch_size": 8, "learning_rate": 3e-3}


def run(
    folder: Path, scratch: Path, *, log: Log | None = None, seed: int = 0, precision: Any = "float32", **params: Any
) -> Trained:
    context = make_context(scratch, log or Log(), seed=seed, precision=precision)
    return RewardModel().run(
        make_inputs(folder, preferences(200, 1)), RewardModelParams(**{**QUICK, **params}), context
    )


def score(model: Any, tokenizer: Any, row: Any, side: str) -> float:
    prompt, completion = encode(tokenizer, row["prompt"], row[side])
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt + completion])).logits.item()


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 8, "learning_rate": 1e-2}], ids=["full", "lora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ranks_held_out_pairs(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    trained = run(tiny_model, tmp_path / "scratch", log=log, precision=precision, **settings)
    # A zero head: every reward is 0 before the first update.
    assert log.values("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert log.values("margin")[0] == 0.0
    save_model(trained.model, trained.tokenizer, tmp_path / "saved")
    saved = load_model(tmp_path / "saved", head="reward")
    unseen = preferences(40, 2)
    right = [
        score(saved.model, saved.tokenizer, row, "chosen") > score(saved.model, saved.tokenizer, row, "rejected")
        for row in unseen
    ]
    assert sum(right) / len(right) > 0.9
    assert trained.metrics["held_out_accuracy"] > 0.9
    assert trained.metrics["held_out_pairs"] == 40
    assert trained.metrics["steps"] == len(log.steps) == 25
    assert not list((tmp_path / "saved").glob("adapter*"))
    assert saved.model.config.architectures == ["LlamaForSequenceClassification"]
    # The saved folder scores as the returned model does, with an ordinary fp32 head.
    assert type(trained.model.get_submodule("score")) is torch.nn.Linear
    row = unseen[0]
    assert score(trained.model, trained.tokenizer, row, "chosen") == pytest.approx(
        score(saved.model, saved.tokenizer, row, "chosen"), abs=1e-5
    )
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())
    assert capsys.readouterr().out == ""


def test_starts_from_the_policy_and_leaves_it_alone(tiny_model: Path, tmp_path: Path) -> None:
    trained = run(tiny_model, tmp_path, learning_rate=1e-12, steps=1)
    body = load_model(tiny_model).model.state_dict()
    after = trained.model.state_dict()
    assert all(torch.allclose(after[name], value, atol=1e-6) for name, value in body.items() if name in after)
    assert sum(name in after for name in body) >= len(body) - 1


def test_same_seed_gives_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    first, again = (weights(run(tiny_model, tmp_path, precision="bfloat16", steps=4).model) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_rewards_stay_centred(tiny_model: Path, tmp_path: Path) -> None:
    log = Log()
    run(tiny_model, tmp_path, log=log, center_rewards=0.1, steps=40)
    assert abs(log.values("mean_reward")[-1]) < 0.2 * log.values("margin")[-1]


def test_no_prompt_is_on_both_sides_of_the_split() -> None:
    rows = [{"prompt_ids": [i // 3], "chosen_ids": [i], "rejected_ids": [-i]} for i in range(90)]
    training, held_out = _split(rows, 10, 0)
    assert len(held_out) == 9
    assert len(training) == 81
    assert not {row["prompt_ids"][0] for row in training} & {row["prompt_ids"][0] for row in held_out}
    assert _split(rows, 10, 0) == (training, held_out)
    assert _split(rows, 0, 0) == (rows, [])
    assert len(_split(rows, 1000, 0)[1]) == 18


def test_divergence_is_infeasible(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="step"):
        run(tiny_model, tmp_path, learning_rate=1e30, warmup_fraction=0.0, lr_scheduler="constant")


def test_needs_a_policy(tmp_path: Path) -> None:
    inputs = Inputs(folders={}, loader=lambda _role, path: load_model(path), dataset=preferences(10, 1))
    with pytest.raises(UserError, match="policy"):
        RewardModel().run(inputs, RewardModelParams(), make_context(tmp_path, Log()))
