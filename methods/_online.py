"""What methods share that answer prompts several times and learn from what each answer is worth."""

import operator
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from harness.method import Context, Inputs, Role, Trained, tunable
from methods._adapters import AdapterMethod, lora_merge_field
from methods._optimizer import OptimizerParams
from methods._peft import PeftParams
from methods._rewards import REWARD_FIXED, RewardParams, reward_needs, reward_reads

if TYPE_CHECKING:
    from methods._online_objective import Objective

__all__ = ["OnlineMethod", "OnlineParams"]


class OnlineParams(OptimizerParams, PeftParams, RewardParams):
    """Settings of every such method. An iteration samples one batch of responses, scores it and trains on it."""

    dataset: str = Field("prompts", description="prompts to answer: a bundled name or <org>/<dataset>[:config[:split]]")
    iterations: int = Field(30, ge=1, description="rollout batches")
    rollout_batch_size: int = Field(32, ge=2, description="responses per iteration, group_size of them to each prompt")
    group_size: int = Field(4, ge=2, description="responses to one prompt, which are compared with each other")
    minibatch_size: int = Field(16, ge=2, description="responses per optimizer step, in whole groups")
    epochs: int = Field(1, ge=1, description="passes over each rollout batch")
    learning_rate: float = Field(
        1e-5, gt=0, description="AdamW's peak rate", json_schema_extra=tunable(1e-6, 1e-4, log=True)
    )
    schedule: Literal["constant", "linear"] = Field("constant", description="course of the rate after the warmup")
    warmup: float = Field(0.1, ge=0, lt=1, description="fraction of the iterations in which the rate rises")
    max_grad_norm: float = Field(1.0, gt=0, description="the gradient's norm is clipped to this")
    max_new_tokens: int = Field(32, ge=1, description="length limit of a response, tokens")
    max_prompt_tokens: int = Field(512, ge=1, description="longer prompts are left out and counted, tokens")
    temperature: float = Field(1.0, gt=0, description="divides the logits in sampling and in every log-probability")
    max_kl: float | None = Field(
        0.1,
        gt=0,
        description="training on a batch stops when its policy is this far from the sampling one, nats per token",
    )
    missing_eos_penalty: float = Field(
        0.0, ge=0, description="taken from the reward of a response cut by the length limit"
    )
    gradient_accumulation: int = Field(
        1, ge=1, description="forward passes of one minibatch, in whole groups: less memory, the same step"
    )
    gradient_checkpointing: bool = Field(
        False,
        description="recompute activations in the backward pass: less memory, about a third slower",
        exclude_if=operator.not_,
    )
    lora_merge: bool = lora_merge_field()

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        size = self.group_size
        for name in ("rollout_batch_size", "minibatch_size"):
            if getattr(self, name) % size:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a multiple of group_size ({size})")
        if self.minibatch_size > self.rollout_batch_size:
            raise ValueError(
                f"minibatch_size ({self.minibatch_size}) must not exceed rollout_batch_size ({self.rollout_batch_size})"
            )
        if self.gradient_accumulation > self.minibatch_size // size:
            raise ValueError(
                f"gradient_accumulation ({self.gradient_accumulation}) must not exceed the groups of a minibatch "
                f"({self.minibatch_size // size})"
            )
        if not self.lora_merge and not self.adapts:
            raise ValueError("lora_merge: false needs adapters: set lora_rank")
        return self


P = TypeVar("P", bound=OnlineParams)


class OnlineMethod(AdapterMethod[P]):
    """A method that learns from groups of its own answers.

    Logged per iteration: `reward` (as it was given, mean over responses), `reward_std` (its standard deviation within a
    group, mean over groups), `entropy` (nats per token), `length` (tokens), `eos_fraction`, `sampler_gap` (mean
    absolute difference between the sampler's and the trained model's log-probabilities, nats per token), `loss`,
    `approximate_kl` (k3 to the policy that sampled, nats per token), `ratio_max`, `grad_norm`, `learning_rate`,
    `updates` (optimizer steps taken); and, where a reference is held, `kl` (k1 estimate of the KL to it, summed over a
    response's tokens, mean over responses, nats) and `kl_k3` (the same by k3).
    """

    needs: ClassVar[frozenset[Role]] = frozenset({"policy", "reference", "reward"})
    dataset_kind = "prompts"
    fixed: ClassVar[frozenset[str]] = AdapterMethod.fixed | REWARD_FIXED

    @classmethod
    def needs_with(cls, settings: Mapping[str, object]) -> frozenset[Role]:
        """The policy, its reference, and who scores."""
        return frozenset({"policy", "reference"}) | reward_needs(settings)

    @classmethod
    def reads(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """The verifier, where there is one."""
        return reward_reads(settings)

    @abstractmethod
    def objective(self, params: P) -> "Objective":
        """What it learns by, with these settings."""

    def run(self, inputs: Inputs, params: P, context: Context) -> Trained:
        """Train the policy.

        Raises:
            UserError: the models or the prompts do not fit together, or a verifier failed.
            InfeasibleError: a non-finite number appeared.
            PrunedError: the deadline has passed.
        """
        from methods._online_trainer import OnlineTrainer

        return OnlineTrainer(self.name, inputs, params, context, self.objective(params)).train()
