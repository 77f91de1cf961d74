"""What methods share that answer prompts several times and learn from what each answer is worth."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Self, TypeVar

from pydantic import Field, model_validator

from harness.method import Context, Inputs, Trained, tunable
from methods._rollout_method import RolloutMethod, RolloutParams

if TYPE_CHECKING:
    from methods._online_objective import Objective

__all__ = ["OnlineMethod", "OnlineParams"]


class OnlineParams(RolloutParams):
    """Settings of every such method."""

    rollout_batch_size: int = Field(32, ge=2, description="responses per iteration, group_size of them to each prompt")
    group_size: int = Field(4, ge=2, description="responses to one prompt, which are compared with each other")
    minibatch_size: int = Field(16, ge=2, description="responses per optimizer step, in whole groups")
    learning_rate: float = Field(
        1e-5, gt=0, description="AdamW's peak rate", json_schema_extra=tunable(1e-6, 1e-4, log=True)
    )
    missing_eos_penalty: float = Field(
        0.0, ge=0, description="taken from the reward of a response cut by the length limit"
    )
    gradient_accumulation: int = Field(
        1, ge=1, description="forward passes of one minibatch, in whole groups: less memory, the same step"
    )

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        size = self.group_size
        for name in ("rollout_batch_size", "minibatch_size"):
            if getattr(self, name) % size:
                raise ValueError(f"{name} ({getattr(self, name)}) must be a multiple of group_size ({size})")
        if self.gradient_accumulation > self.minibatch_size // size:
            raise ValueError(
                f"gradient_accumulation ({self.gradient_accumulation}) must not exceed the groups of a minibatch "
                f"({self.minibatch_size // size})"
            )
        return self


P = TypeVar("P", bound=OnlineParams)


class OnlineMethod(RolloutMethod[P]):
    """A method that learns from groups of its own answers.

    Logged per iteration: `reward` (as it was given, mean over responses), `reward_std` (its standard deviation within a
    group, mean over groups), `entropy` (nats per token), `length` (tokens), `eos_fraction`, `sampler_gap` (mean
    absolute difference between the sampler's and the trained model's log-probabilities, nats per token), `loss`,
    `approximate_kl` (k3 to the policy that sampled, nats per token), `ratio_max`, `grad_norm`, `learning_rate`,
    `updates` (optimizer steps taken); and, where a reference is held, `kl` (k1 estimate of the KL to it, summed over a
    response's tokens, mean over responses, nats) and `kl_k3` (the same by k3).
    """

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
