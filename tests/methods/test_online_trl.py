"""GRPO's and RLOO's losses, gradients and advantages against those of TRL's trainers, where the settings coincide."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.method import find_method
from harness.models import load_model
from methods._online_math import group_advantages, leave_one_out
from methods._online_trainer import OnlineTrainer
from tests.methods.helpers import Log, make_context
from tests.methods.test_ppo import make_inputs

REWARD = "tests.methods.test_online:vowels"
SIZE = 4
"""Responses to one prompt."""


def _ours(name: str, folder: Path, scratch: Path, **settings: Any) -> Any:
    """A trainer with a batch of responses, whose policy has since moved by a step, so that no ratio is 1."""
    method = find_method(name)
    given = {"rollout_batch_size": 8, "minibatch_size": 8, "group_size": SIZE, "max_new_tokens": 6, "max_kl": None}
    params: Any = method.params.model_validate({**given, "reward": REWARD, "learning_rate": 1e-2, **settings})
    made: Any = method()
    trainer = OnlineTrainer(
        name, make_inputs(folder, folder), params, make_context(scratch, Log()), made.objective(params)
    )
    sampled, _ = trainer.collect()
    weights, _ = trainer.objective.weigh(sampled, trainer.rewarder)
    trainer._step(sampled, weights, sampled.minibatches[0])
    return trainer, sampled, weights


def _theirs(trainer: Any, config: Any, folder: Path, scratch: Path, settings: dict[str, Any]) -> Any:
    """TRL's trainer of the model that ours has moved."""
    import datasets

    args = config(
        output_dir=str(scratch / "trl"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        per_device_train_batch_size=8,
        num_generations=SIZE,
        max_completion_length=6,
        max_steps=1,
        **settings,
    )
    prompts = datasets.Dataset.from_list([{"prompt": [{"role": "user", "content": f"say {n}"}]} for n in range(8)])
    model: Any = load_model(folder).model
    made = trainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=prompts,
        processing_class=load_model(folder).tokenizer,
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


def _inputs(trainer: Any, sampled: Any, weights: torch.Tensor) -> dict[str, Any]:
    """The batch as TRL pads it: prompts on the left, responses on the right."""
    longest = max(map(len, sampled.prompts))
    prompts = [[trainer.texts.pad] * (longest - len(p)) + list(p) for p in sampled.prompts]
    seen = [[0] * (longest - len(p)) + [1] * len(p) for p in sampled.prompts]
    mask = sampled.rollout.mask
    return {
        "prompt_ids": torch.tensor(prompts),
        "prompt_mask": torch.tensor(seen),
        "completion_ids": sampled.rollout.tokens,
        "completion_mask": mask.long(),
        "advantages": weights,
        "old_per_token_logps": sampled.logprobs,
        "ref_per_token_logps": sampled.reference,
        "old_logps": (sampled.logprobs * mask).sum(1),
        "num_items_in_batch": mask.sum(),
    }


def _agree(ours: Any, theirs: Any) -> None:
    trainer, sampled, weights = ours
    theirs.model.load_state_dict(trainer.model.state_dict())
    wanted = theirs._compute_loss(theirs.model, _inputs(trainer, sampled, weights))
    wanted.backward()
    rows = torch.arange(len(sampled.prompts))
    trainer.model.zero_grad(set_to_none=True)
    now = trainer.policy.evaluate(sampled.batch(rows)).logprobs
    assert float((now - sampled.logprobs).detach().abs().max()) > 0.1
    found, figures = trainer.objective.loss(now, sampled, weights, rows)
    assert 0 < figures["clip_fraction"] < 1
    found.backward()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    for (name, one), other in zip(trainer.model.named_parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"loss_per": "sequence", "beta": 0.04}, {"loss_type": "grpo", "beta": 0.04}),
        (
            {"loss_per": "token", "beta": 0.0, "clip_range_high": 0.28},
            {"loss_type": "dapo", "beta": 0.0, "epsilon_high": 0.28},
        ),
        ({"loss_per": "constant", "beta": 0.1}, {"loss_type": "dr_grpo", "beta": 0.1}),
    ],
    ids=["grpo", "dapo", "dr-grpo"],
)
def test_grpo_is_that_of_trl(tiny_model: Path, tmp_path: Path, settings: dict[str, Any], named: dict[str, Any]) -> None:
    from trl import GRPOConfig, GRPOTrainer

    ours = _ours("grpo", tiny_model, tmp_path, **settings)
    # The KL as in the paper; TRL's default weighs it by the ratio besides.
    named = {"epsilon": 0.2, "use_bias_correction_kl": False, **named}
    _agree(ours, _theirs(GRPOTrainer, GRPOConfig, tiny_model, tmp_path, named))


def test_rloo_is_that_of_trl(tiny_model: Path, tmp_path: Path) -> None:
    from trl import RLOOConfig, RLOOTrainer

    ours = _ours("rloo", tiny_model, tmp_path, kl_coef=0.05)
    _agree(ours, _theirs(RLOOTrainer, RLOOConfig, tiny_model, tmp_path, {"epsilon": 0.2, "beta": 0.05}))


def test_advantages_are_those_of_trl() -> None:
    """The lines of `_generate_and_score_completions`, which also samples."""
    from trl.trainer.utils import nanstd

    scores = torch.randn(5 * SIZE, generator=torch.Generator().manual_seed(0))
    groups = scores.view(-1, SIZE)
    centred = groups - groups.mean(1, keepdim=True)
    scaled = centred / (nanstd(groups, dim=1)[:, None] + 1e-4)
    torch.testing.assert_close(group_advantages(scores, SIZE, scale=True), scaled.flatten())
    torch.testing.assert_close(group_advantages(scores, SIZE, scale=False), centred.flatten())
    others = (groups.sum(1, keepdim=True) - groups) / (SIZE - 1)
    torch.testing.assert_close(leave_one_out(scores, SIZE), (groups - others).flatten())
