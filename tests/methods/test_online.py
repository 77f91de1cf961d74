"""GRPO, RLOO and online DPO: their arithmetic by hand, their gradients by the plainest means, and that they learn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import UserError
from harness.method import Inputs, Trained, find_method
from harness.models import load_model
from methods._online import OnlineMethod
from methods._online_math import clipped, group_advantages, leave_one_out, pair_loss, per_tokens
from methods._online_trainer import OnlineTrainer
from methods._ppo_trainer import Trainer
from methods.ppo import PPO
from tests.methods.helpers import Log, make_context, turn
from tests.methods.test_ppo import make_inputs, prompts, reward_folder  # noqa: F401  # a fixture

METHODS = ("grpo", "rloo", "online_dpo")
QUICK: dict[str, Any] = {
    "iterations": 2,
    "rollout_batch_size": 8,
    "minibatch_size": 4,
    "max_new_tokens": 6,
    "learning_rate": 1e-3,
}
VOWELS = f"{__name__}:vowels"


def vowels(prompt: Any, response: str, row: Any) -> float:
    """The share of vowels."""
    return sum(c in "aeiou" for c in response) / max(1, len(response))


def backwards(prompt: Any, response: str, row: Any) -> float:
    """The other way round."""
    return -vowels(prompt, response, row)


def alike(prompt: Any, response: str, row: Any) -> float:
    """Every answer is worth the same."""
    return 1.0


def _trainer(
    name: str, inputs: Inputs, tmp_path: Path, log: Log | None = None, precision: Any = "float32", **settings: Any
) -> OnlineTrainer:
    method = find_method(name)
    params: Any = method.params.model_validate({**QUICK, **settings})
    made: Any = method()
    assert isinstance(made, OnlineMethod)
    context = make_context(tmp_path, log or Log(), precision=precision)
    return OnlineTrainer(name, inputs, params, context, made.objective(params))


def test_advantages_of_groups_by_hand() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0])
    plain = [-2.0, -1.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0]
    assert group_advantages(scores, 4, scale=False).tolist() == plain
    deviation = (14 / 3) ** 0.5
    assert group_advantages(scores, 4, scale=True).tolist() == pytest.approx([p / (deviation + 1e-4) for p in plain])
    assert leave_one_out(scores, 4).tolist() == pytest.approx([1 - 11 / 3, 2 - 10 / 3, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0])


def test_the_clip_holds_only_what_would_gain_by_going_on() -> None:
    moved = torch.log(torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]))
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    losses, held = clipped(moved, advantages, 0.2, 0.4)
    assert losses.tolist() == pytest.approx([-1.4, 1.5, -0.5, 0.8, -1.1])
    assert held.tolist() == [True, False, False, True, False]


def test_what_a_loss_is_a_mean_over() -> None:
    losses = torch.tensor([[1.0, 3.0, float("nan")], [4.0, float("nan"), float("nan")]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert float(per_tokens(losses, mask, "sequence", 10)) == 3.0
    assert float(per_tokens(losses, mask, "token", 10)) == pytest.approx(8 / 3)
    assert float(per_tokens(losses, mask, "constant", 10)) == pytest.approx(8 / 20)


def test_losses_of_pairs_by_hand() -> None:
    margins = torch.tensor([0.0, 2.0])
    assert pair_loss(margins, 0.5, "sigmoid").tolist() == pytest.approx([0.6931472, 0.3132617])
    assert pair_loss(margins, 0.5, "ipo").tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("settings", [{}, {"lora_rank": 4}])
def test_before_any_step_nothing_has_moved(
    tiny_model: Path, tmp_path: Path, name: str, precision: Any, settings: dict[str, Any]
) -> None:
    inputs = make_inputs(tiny_model, tiny_model)
    trainer = _trainer(name, inputs, tmp_path, precision=precision, reward=VOWELS, **settings)
    sampled, _ = trainer.collect()
    with torch.no_grad():
        before = trainer.before.evaluate(sampled.batch(sampled.minibatches[0]))
    assert sampled.prompts[0] == sampled.prompts[trainer.params.group_size - 1]
    weights, _ = trainer.objective.weigh(sampled, trainer.rewarder)
    measured, stepped = trainer._step(sampled, weights, sampled.minibatches[0])
    assert stepped
    assert measured["ratio_max"] == pytest.approx(1.0, abs=1e-4)
    # Whether they were asked for before or came with the step, they are those of the policy that sampled.
    assert torch.equal(sampled.logprobs[sampled.minibatches[0]], before.logprobs)
    assert bool(sampled.known.all())
    assert sampled.figures()["kl"] == pytest.approx(0.0, abs=1e-4 if settings else 1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("grpo", {"loss_per": "sequence"}),
        ("grpo", {"loss_per": "token", "gradient_accumulation": 2, "minibatch_size": 8}),
        ("grpo", {"loss_per": "constant", "scale_rewards": "none", "beta": 0.0}),
        ("rloo", {"gradient_accumulation": 2, "minibatch_size": 8}),
        ("rloo", {"kl_coef": 0.0, "normalize_advantages": True}),
        ("online_dpo", {"gradient_accumulation": 2}),
        ("online_dpo", {"loss_type": "ipo", "beta": 0.3}),
    ],
)
def test_the_gradient_is_that_of_the_formula(
    tiny_model: Path, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    trainer = _trainer(
        name, make_inputs(tiny_model, tiny_model), tmp_path, reward=VOWELS, max_grad_norm=1e9, **settings
    )
    sampled, _ = trainer.collect()
    weights, _ = trainer.objective.weigh(sampled, trainer.rewarder)
    rows = sampled.minibatches[0]
    wanted = _plain_gradient(trainer, sampled, rows)
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign,assignment]  # the gradient stays to be looked at
    trainer._step(sampled, weights, rows)
    for key, parameter in trainer.model.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, wanted[key], atol=1e-5, rtol=1e-4, msg=key)


def _plain_gradient(trainer: OnlineTrainer, sampled: Any, rows: Any) -> dict[str, torch.Tensor]:
    """One response at a time, with logits at every position, by the papers' formulas at a ratio of 1."""
    params: Any = trainer.params
    model, size = trainer.model, params.group_size
    scores = [vowels(None, trainer.tokenizer.decode(t[m], skip_special_tokens=True).strip(), None)
              for t, m in zip(sampled.rollout.tokens, sampled.rollout.mask, strict=True)]  # fmt: skip

    def log_probs(row: int) -> torch.Tensor:
        said = sampled.rollout.tokens[row][sampled.rollout.mask[row]]
        ids = torch.tensor([[*sampled.prompts[row], *said.tolist()]])
        logits = model(input_ids=ids).logits[0, len(sampled.prompts[row]) - 1 : -1].float() / params.temperature
        return logits.log_softmax(-1).gather(1, said[:, None])[:, 0]

    total = torch.zeros(())
    chosen = rows.tolist()
    tokens = sum(int(sampled.rollout.mask[r].sum()) for r in chosen)
    pairs = [r for r in chosen if r % 2 == 0 and scores[r] != scores[r + 1]]
    every = torch.tensor(scores).view(-1, size)
    leave = (every - (every.sum(1, keepdim=True) - every) / (size - 1)).flatten()
    for row in chosen:
        logs = log_probs(row)
        group = torch.tensor(scores[row // size * size :][:size])
        if trainer.name == "grpo":
            advantage = float(group[row % size] - group.mean())
            if params.scale_rewards == "group":
                advantage /= float(group.std()) + 1e-4
            # At a ratio of 1 and the reference itself, k3 has no gradient.
            each = {"sequence": len(logs) * len(chosen), "token": tokens, "constant": 6 * len(chosen)}[params.loss_per]
            total = total - (advantage * (logs - logs.detach()).exp()).sum() / each
        elif trainer.name == "rloo":
            advantage = float(leave[row])
            if params.normalize_advantages:
                advantage = float((leave[row] - leave.mean()) / (leave.std() + 1e-8))
            total = total - advantage * logs.sum() / len(chosen)
        elif row in pairs:
            other = log_probs(row + 1)
            per = params.loss_type == "ipo"
            ratio = (logs - logs.detach()).sum() / (len(logs) if per else 1)
            ratio_other = (other - other.detach()).sum() / (len(other) if per else 1)
            margin = (ratio - ratio_other) * (1 if scores[row] > scores[row + 1] else -1)
            total = total + pair_loss(margin[None], params.beta, params.loss_type)[0] / len(pairs)
    model.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    found = {k: torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("reward", ["model", VOWELS])
def test_it_learns_what_is_rewarded(
    tiny_model: Path,
    reward_folder: Path,  # noqa: F811  # the fixture imported above
    tmp_path: Path,
    name: str,
    reward: str,
) -> None:
    log = Log()
    settings = {"iterations": 14, "rollout_batch_size": 32, "minibatch_size": 32, "learning_rate": 1e-2, "max_kl": None}
    weak = {"online_dpo": {"beta": 0.3}, "grpo": {"beta": 0.0}, "rloo": {"kl_coef": 0.0}}[name]
    trainer = _trainer(name, make_inputs(tiny_model, reward_folder), tmp_path, log, reward=reward, **settings, **weak)
    trained = trainer.train()
    assert isinstance(trained, Trained)
    rewards = log.values("reward")
    first, last = (sum(part) / 3 for part in (rewards[:3], rewards[-3:]))
    spread = log.values("reward_std")[0]
    assert last > first + 0.4 * spread
    assert trained.metrics["final_reward"] == rewards[-1]


@pytest.mark.parametrize("name", METHODS)
def test_equal_answers_teach_nothing(tiny_model: Path, tmp_path: Path, name: str) -> None:
    # The KL to the reference is 0 in the first iteration, so nothing is left to learn.
    settings = {"iterations": 1, "reward": f"{__name__}:alike", **({"kl_coef": 0.0} if name == "rloo" else {})}
    trainer = _trainer(name, make_inputs(tiny_model, tiny_model), tmp_path, **settings)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.train()
    for key, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, before[key], atol=1e-6, rtol=0, msg=key)


def test_a_reference_is_held_only_where_it_is_used(tiny_model: Path, tmp_path: Path) -> None:
    for name, settings in (("grpo", {"beta": 0.0}), ("rloo", {"kl_coef": 0.0})):
        log = Log()
        inputs = make_inputs(tiny_model, tiny_model)
        _trainer(name, inputs, tmp_path, log, reward=VOWELS, **settings).train()
        assert set(inputs._loaded) == {"policy"}
        assert "kl" not in log.steps[0][2]


def test_a_judge_prefers_one_of_two_and_gives_no_marks(tiny_model: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    class Judge:
        name = "by vowels"

        def rate(self, pairs: Any) -> list[float]:
            raise AssertionError("no marks are asked for")

        def prefer(self, pairs: Any, principles: Any = None) -> list[float]:
            asked.append(len(pairs))
            return [0.5 + (vowels(None, a, None) - vowels(None, b, None)) / 2 for _, a, b in pairs]

    inputs = make_inputs(tiny_model, tiny_model)
    inputs.judging = Judge
    log = Log()
    _trainer("online_dpo", inputs, tmp_path, log, reward="judge", judge="base").train()
    assert asked == [4, 4]
    assert "reward" not in log.steps[0][2]
    assert 0 < log.values("decided")[0] <= 1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("grpo", {"rollout_batch_size": 10}, "must be a multiple of group_size"),
        ("grpo", {"minibatch_size": 16}, "must not exceed rollout_batch_size"),
        ("grpo", {"gradient_accumulation": 2}, "must not exceed the groups of a minibatch"),
        ("grpo", {"clip_range_high": 0.1}, "must not be below clip_range"),
        ("rloo", {"lora_merge": False}, "set lora_rank"),
        ("online_dpo", {"group_size": 4}, "less than or equal to 2"),
        ("online_dpo", {"reward": "judge", "judge": "base", "missing_eos_penalty": 1.0}, "nothing to take"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_method(name).params.model_validate({**QUICK, **settings})


@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_trained_on_is_said(tiny_model: Path, tmp_path: Path, name: str) -> None:
    inputs = make_inputs(tiny_model, tiny_model)
    with pytest.raises(UserError, match="raise max_prompt_tokens"):
        _trainer(name, inputs, tmp_path, reward=VOWELS, max_prompt_tokens=2)
    with pytest.raises(UserError, match=r"may reach \d+ tokens"):
        _trainer(name, inputs, tmp_path, reward=VOWELS, max_new_tokens=2000)
    empty = Inputs(folders=inputs.folders, loader=lambda _role, path: load_model(path))
    with pytest.raises(UserError, match="needs a dataset of prompts"):
        _trainer(name, empty, tmp_path, reward=VOWELS)


def test_each_round_of_a_repeated_group_takes_other_prompts(tiny_model: Path, tmp_path: Path) -> None:
    method = find_method("grpo")
    params: Any = method.params.model_validate({**QUICK, "reward": VOWELS, "iterations": 1})
    seen = []
    for number in (0, 1):
        context = make_context(tmp_path, Log())
        context.round = number
        made: Any = method()
        trainer = OnlineTrainer("grpo", make_inputs(tiny_model, tiny_model), params, context, made.objective(params))
        seen.append({tuple(ids) for ids in trainer.collect()[0].prompts})
    assert not seen[0] & seen[1]


def test_a_response_is_scored_against_the_row_of_its_prompt(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": [turn("user", f"say {n}")], "answer": str(n)} for n in range(12)]
    import datasets

    inputs = make_inputs(tiny_model, tiny_model, datasets.Dataset.from_list(rows))
    trainer = _trainer("grpo", inputs, tmp_path, reward=f"{__name__}:own_row")
    sampled, _ = trainer.collect()
    assert sampled.scores.tolist() == [float(r["answer"]) for r in sampled.rows]
    assert len(prompts()) > 0


def own_row(prompt: Any, response: str, row: Any) -> float:
    """The number of the row, if the prompt is the row's."""
    return float(row["answer"]) if prompt[0]["content"] == f"say {row['answer']}" else -1.0


def test_the_second_matrix_of_lora_plus_learns_faster(tiny_model: Path, tmp_path: Path) -> None:
    settings = {"adapter": "lora_plus", "lora_rank": 4, "lora_plus_ratio": 8.0, "learning_rate": 1e-3, "warmup": 0.0}
    trainer = _trainer("grpo", make_inputs(tiny_model, tiny_model), tmp_path, reward=VOWELS, **settings)
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(trainer.weights)
    trainer.train()
    assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([1e-3, 8e-3])


def test_ppo_learns_by_a_verifier_and_holds_no_reward_model(tiny_model: Path, tmp_path: Path) -> None:
    inputs = make_inputs(tiny_model, tiny_model)
    settings = {"iterations": 14, "rollout_batch_size": 32, "minibatch_size": 32, "learning_rate": 1e-2, "max_kl": None}
    params: Any = PPO.params.model_validate({**QUICK, **settings, "reward": VOWELS, "kl_coef": 0.0})
    log = Log()
    Trainer(inputs, params, make_context(tmp_path, log)).train()
    rewards = log.values("reward")
    assert sum(rewards[-3:]) > sum(rewards[:3]) + 0.05
    assert set(inputs._loaded) == {"policy", "reference"}


def test_a_later_choice_of_reward_changes_no_key_of_ppo() -> None:
    assert not {"reward", "judge"} & PPO.params().model_dump(mode="json").keys()
    assert PPO.needs_with({}) == PPO.needs
    assert PPO.needs_with({"reward": "constraints"}) == {"policy", "reference"}
    with pytest.raises(ValueError, match="use head"):
        PPO.params.model_validate({"value": "model", "reward": "constraints"})
