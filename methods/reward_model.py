"""Reward model: a scalar score of an answer, learned from preferences under the Bradley-Terry model."""

import random
from typing import TYPE_CHECKING

from pydantic import Field

from harness.errors import UserError
from harness.method import Context, Inputs, Method, Trained, tunable
from harness.models import load_model
from methods._head import drop_padding_mask
from methods._optimizer import make_optimizer, spread_rates
from methods._peft_model import with_adapters
from methods._rows import preference_rows, training_order
from methods._trl import TrainingParams, finish, need_dataset, rows_wanted, train, training_arguments

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer

__all__ = ["RewardModel", "RewardModelParams"]

_METRICS = {"accuracy": "accuracy", "margin": "margin", "mean_reward": "mean_reward"}

Pair = dict[str, list[int]]


class RewardModelParams(TrainingParams):
    """Settings of the reward model."""

    dataset: str = Field("preferences", description="training set of kind preferences (prompt, chosen, rejected)")
    learning_rate: float = Field(
        2e-5,
        gt=0,
        description="peak learning rate of AdamW; about ten times as much suits LoRA",
        json_schema_extra=tunable(1e-6, 1e-4, log=True),
    )
    head_learning_rate: float = Field(
        1e-3,
        gt=0,
        description="peak learning rate of the new head, which starts at zero; the body learns only once it has grown",
    )
    center_rewards: float = Field(
        0.01,
        ge=0,
        description="weight of the squared sum of a pair's rewards, which keeps rewards around 0 (arXiv:2312.09244)",
    )
    held_out_pairs: int = Field(
        64,
        ge=0,
        description="pairs, by whole prompts, kept from training to measure held_out_accuracy; at most a fifth of all",
    )


class RewardModel(Method[RewardModelParams]):
    """A one-label classifier initialised from the policy; it scores a dialogue at the answer's last token."""

    name = "reward_model"
    summary = "reward model: a scalar score learned from preference pairs (Bradley-Terry)"
    paper = "Stiennon et al. 2020, arXiv:2009.01325"
    version = 2
    params = RewardModelParams
    needs = frozenset({"policy"})
    dataset_kind = "preferences"
    produces = "reward"

    def run(self, inputs: Inputs, params: RewardModelParams, context: Context) -> Trained:
        """Train a classifier with a zero head on the policy's body; the policy itself is not touched.

        Raises:
            UserError: no policy, no dataset, no usable pair, no chat template.
            InfeasibleError: diverged, or out of memory.
            PrunedError: past the deadline.
        """
        from methods._ppo_attention import quick_attention

        if "policy" not in inputs.folders:
            raise UserError("reward_model needs a policy to start from")
        start = load_model(inputs.folders["policy"], head="reward")
        dataset = need_dataset(inputs, self.name)
        rows = preference_rows(dataset, start.tokenizer, params.max_length)
        training, held_out = _split(rows, params.held_out_pairs, context.seed)
        head = _use_float_head(start.model)
        trainer = _make_trainer(start.model, start.tokenizer, training, params, context)
        with quick_attention(start.model):
            metrics = train(trainer, context, _METRICS)
            if held_out:
                metrics["held_out_pairs"] = float(len(held_out))
                metrics["held_out_accuracy"] = _accuracy(trainer, held_out, params.batch_size, context)
        metrics["rows_left_out"] = float(len(dataset) - len(rows))
        model = finish(trainer)
        model.get_submodule("score").__class__ = head
        return Trained(model=model, tokenizer=start.tokenizer, metrics=metrics)


def _split(rows: list[Pair], wanted: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    # By whole prompts: two pairs of one prompt on both sides would measure memory.
    prompts = sorted({tuple(row["prompt_ids"]) for row in rows})
    random.Random(seed).shuffle(prompts)
    limit = min(wanted, len(rows) // 5)
    apart: set[tuple[int, ...]] = set()
    count = 0
    for prompt in prompts:
        size = sum(tuple(row["prompt_ids"]) == prompt for row in rows)
        if count + size <= limit:
            apart.add(prompt)
            count += size
    held_out = [row for row in rows if tuple(row["prompt_ids"]) in apart]
    return [row for row in rows if tuple(row["prompt_ids"]) not in apart], held_out


def _use_float_head(model: "PreTrainedModel") -> type:
    """Keep the score out of autocast; returns the class to give back to the head afterwards.

    bf16 has 8 bits of mantissa: rewards around 4 would come in steps of 1/32, and close pairs would tie.
    """
    import torch

    class FloatLinear(torch.nn.Linear):
        def forward(self, hidden: "torch.Tensor") -> "torch.Tensor":
            with torch.autocast(hidden.device.type, enabled=False):
                return super().forward(hidden.to(self.weight.dtype))

    head = model.get_submodule("score")
    before = type(head)
    if before is torch.nn.Linear:
        # The class and not the module: names of weights stay, and peft's copy of the head keeps it.
        head.__class__ = FloatLinear
    return before


def _whole(row: Pair) -> Pair:
    return {
        "chosen_ids": row["prompt_ids"] + row["chosen_ids"],
        "rejected_ids": row["prompt_ids"] + row["rejected_ids"],
    }


def _make_trainer(
    model: "PreTrainedModel", tokenizer: object, rows: list[Pair], params: RewardModelParams, context: Context
) -> "Trainer":
    import datasets
    from trl import RewardConfig, RewardTrainer

    order = training_order(len(rows), rows_wanted(params), context.seed)
    arguments = training_arguments(
        RewardConfig,
        params,
        params.learning_rate,
        context,
        model.device.type,
        max_length=None,
        center_rewards_coefficient=params.center_rewards or None,
        disable_dropout=True,
    )
    trainer = RewardTrainer(
        **with_adapters(model, params, context.seed, "SEQ_CLS"),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([_whole(rows[i]) for i in order]),
        processing_class=tokenizer,
    )
    drop_padding_mask(model)
    trainer.optimizer = _optimizer(trainer.model, params)
    return trainer


def _optimizer(model: "PreTrainedModel", params: RewardModelParams) -> "torch.optim.Optimizer":
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in trained if "score" in name.split(".")]
    body = [p for name, p in trained if "score" not in name.split(".")]
    groups = [{"params": body, "lr": params.learning_rate}, {"params": head, "lr": params.head_learning_rate}]
    groups = spread_rates(groups, model, params.ratio)
    return make_optimizer(groups, params, model.device.type, weight_decay=params.weight_decay, fused=None)


def _accuracy(trainer: "Trainer", rows: list[Pair], batch_size: int, context: Context) -> float:
    import torch

    model = trainer.model.eval()
    # Pairs of like length together: less padding to compute.
    pairs = sorted((_whole(row) for row in rows), key=lambda row: len(row["chosen_ids"]) + len(row["rejected_ids"]))
    right = 0
    for start in range(0, len(pairs), batch_size):
        context.check()
        batch = trainer.data_collator(pairs[start : start + batch_size])
        with torch.no_grad():
            logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, use_cache=False).logits
        chosen, rejected = logits.squeeze(-1).chunk(2)
        right += int((chosen > rejected).sum())
    return right / len(pairs)
