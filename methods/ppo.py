"""PPO against a reward model, a verifier or a judge, with a KL penalty to the policy it starts from."""

import operator
from typing import Literal, Self

from pydantic import Field, model_validator

from harness.method import Context, Inputs, Trained, tunable
from methods._rewards import RewardParams
from methods._rollout_method import RolloutMethod, RolloutParams

__all__ = ["PPO", "PPOParams"]


def _is_model(reward: str) -> bool:
    # Later settings, as OptimizerParams says.
    return reward == "model"


class PPOParams(RolloutParams):
    """Settings of PPO."""

    reward: str = Field("model", description=RewardParams.model_fields["reward"].description, exclude_if=_is_model)
    judge: str | None = Field(
        None, description=RewardParams.model_fields["judge"].description, exclude_if=operator.not_
    )
    rollout_batch_size: int = Field(32, ge=1, description="prompts (one response each) per iteration")
    learning_rate: float = Field(
        1e-5, gt=0, description="AdamW's rate for the policy", json_schema_extra=tunable(1e-6, 1e-4, log=True)
    )
    value_learning_rate: float | None = Field(
        None, gt=0, description="rate for the value head (default 1e-3) or value model (default: learning_rate)"
    )
    gamma: float = Field(1.0, ge=0, le=1, description="discount per token")
    lam: float = Field(0.95, ge=0, le=1, description="GAE's lambda")
    clip_range: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped to 1 ± this")
    value_clip_range: float = Field(0.2, gt=0, description="the value is clipped to old value ± this")
    value: Literal["head", "model"] = Field(
        "head", description="head: linear, on the policy's trunk; model: a trained copy of the reward model"
    )
    value_coef: float = Field(0.1, ge=0, description="weight of the value loss")
    value_gradient: float = Field(1.0, ge=0, le=1, description="part of the value head's gradient let into the trunk")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    kl_coef: float = Field(
        0.05, ge=0, description="KL penalty, reward per nat", json_schema_extra=tunable(0.01, 0.3, log=True)
    )
    kl_controller: Literal["fixed", "adaptive"] = Field("fixed", description="whether kl_coef follows kl_target")
    kl_target: float = Field(6.0, gt=0, description="adaptive: the KL per response to hold, nats")
    missing_eos_penalty: float = Field(
        1.0, ge=0, description="taken from the score of a response cut by the length limit"
    )
    normalize_reward: bool = Field(
        True,
        description="shift and scale scores by mean and deviation of the first batch, i.e. of the untrained policy",
    )
    reward_clip: float | None = Field(None, gt=0, description="scores (normalized) are clipped to ± this")
    whiten_rewards: bool = Field(False, description="scale token rewards to unit variance, keeping their mean")
    whiten_advantages: bool = Field(True, description="advantages to zero mean and unit variance over the batch")
    gradient_accumulation: int = Field(
        1,
        ge=1,
        description="forward passes of one minibatch: less memory, the same step",
        exclude_if=lambda parts: bool(parts == 1),  # a later setting, as OptimizerParams says
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.value == "model" and self.reward != "model":
            raise ValueError(f"value: model is a copy of the reward model, and reward {self.reward} is none: use head")
        if self.gradient_accumulation > self.minibatch_size:
            raise ValueError(
                f"gradient_accumulation ({self.gradient_accumulation}) must not exceed minibatch_size "
                f"({self.minibatch_size})"
            )
        return self


class PPO(RolloutMethod[PPOParams]):
    """Proximal policy optimisation: sampled answers, a learned reward, clipped steps, a KL leash.

    Logged per iteration (training_steps): `reward` (the reward model's mean score, raw), `kl` (k1 estimate of the KL to
    the reference, summed over a response's tokens, mean over responses, nats; the penalty uses k1 per token), `kl_k3`
    (the same by k3), `kl_coef`, `entropy` (nats per token), `clip_fraction`, `approximate_kl` (k3 to the policy that
    sampled, nats per token), `policy_loss`, `value_loss`, `explained_variance` (before the update), `length` (tokens),
    `eos_fraction`, `ratio_max`, `grad_norm`, `learning_rate`, `updates` (optimizer steps taken), `sampler_gap` (mean
    absolute difference between the sampler's and the trained model's log-probabilities, nats per token).
    """

    name = "ppo"
    summary = "PPO by a reward model, a verifier or a judge, with a KL penalty"
    paper = "Schulman et al. 2017, arXiv:1707.06347; for language models Ziegler et al. 2019, Huang et al. 2024"
    version = 2
    params = PPOParams

    def run(self, inputs: Inputs, params: PPOParams, context: Context) -> Trained:
        """Train the policy.

        Raises:
            UserError: the models or the prompts do not fit together.
            InfeasibleError: a non-finite number appeared.
            PrunedError: the deadline has passed.
        """
        from methods._ppo_trainer import Trainer

        return Trainer(inputs, params, context).train()
