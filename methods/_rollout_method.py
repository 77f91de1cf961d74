"""What methods share that learn from their own answers: the settings of sampling and of steps, and who scores."""

import operator
from collections.abc import Mapping
from typing import ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from harness.method import Role
from methods._adapters import AdapterMethod, lora_merge_field
from methods._optimizer import OptimizerParams
from methods._peft import PeftParams
from methods._rewards import REWARD_FIXED, RewardParams, reward_needs, reward_reads

__all__ = ["RolloutMethod", "RolloutParams"]


class RolloutParams(OptimizerParams, PeftParams, RewardParams):
    """Settings of every such method. An iteration samples one batch of responses, scores it and trains on it."""

    dataset: str = Field("prompts", description="prompts to answer: a bundled name or <org>/<dataset>[:config[:split]]")
    iterations: int = Field(30, ge=1, description="rollout batches")
    rollout_batch_size: int = Field(32, ge=1, description="responses per iteration")
    minibatch_size: int = Field(16, ge=1, description="responses per optimizer step")
    epochs: int = Field(1, ge=1, description="passes over each rollout batch")
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
    gradient_checkpointing: bool = Field(
        False,
        description="recompute activations in the backward pass: less memory, about a third slower",
        exclude_if=operator.not_,
    )
    lora_merge: bool = lora_merge_field()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.minibatch_size > self.rollout_batch_size:
            raise ValueError(
                f"minibatch_size ({self.minibatch_size}) must not exceed rollout_batch_size ({self.rollout_batch_size})"
            )
        if not self.lora_merge and not self.adapts:
            raise ValueError("lora_merge: false needs adapters: set lora_rank")
        return self


P = TypeVar("P", bound=RolloutParams)


class RolloutMethod(AdapterMethod[P]):
    """A method that answers prompts and learns from what its answers are worth."""

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
