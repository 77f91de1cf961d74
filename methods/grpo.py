"""Group relative policy optimisation: several answers to each prompt, each measured against the others of its group."""

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from harness.method import tunable
from methods._online import OnlineMethod, OnlineParams

if TYPE_CHECKING:
    from methods._online_objective import Objective

__all__ = ["GRPO", "GRPOParams"]


class GRPOParams(OnlineParams):
    """Settings of GRPO; with `scale_rewards: none`, `loss_per: constant` and `beta: 0` it is Dr. GRPO."""

    beta: float = Field(
        0.04,
        ge=0,
        description="weight of the KL to the policy as it came in (k3, nats per token); 0: no reference is held",
        json_schema_extra=tunable(0.001, 0.1, log=True),
    )
    clip_range: float = Field(0.2, gt=0, lt=1, description="the ratio is not followed below 1 - this")
    clip_range_high: float | None = Field(
        None, gt=0, description="nor above 1 + this; default: clip_range. Higher, as in DAPO, leaves room to explore"
    )
    scale_rewards: Literal["group", "none"] = Field(
        "group",
        description="group: advantages are divided by the standard deviation within the group; none: they are not, so "
        "that prompts on which all answers are nearly equal teach little (Dr. GRPO, arXiv:2503.20783)",
    )
    loss_per: Literal["sequence", "token", "constant"] = Field(
        "sequence",
        description="what the loss is a mean over. sequence: every response counts alike; token: every token (DAPO, "
        "arXiv:2503.14476); constant: max_new_tokens, so that length decides nothing (Dr. GRPO)",
    )

    @model_validator(mode="after")
    def _clips_in_order(self) -> Self:
        if self.clip_range_high is not None and self.clip_range_high < self.clip_range:
            raise ValueError(
                f"clip_range_high ({self.clip_range_high}) must not be below clip_range ({self.clip_range})"
            )
        return self


class GRPO(OnlineMethod[GRPOParams]):
    """PPO's clipped steps without a value: an answer's advantage is its reward less its group's mean.

    Logged beside what every such method logs: `clip_fraction` (of tokens), `informative` (the fraction of groups whose
    answers are not all worth the same: the others teach nothing).
    """

    name = "grpo"
    summary = "policy optimisation by rewards relative to the group of answers to a prompt"
    paper = "Shao et al. 2024, arXiv:2402.03300"
    version = 2
    params = GRPOParams

    def objective(self, params: GRPOParams) -> "Objective":
        """See `OnlineMethod`."""
        from methods._grpo_objective import GroupRelative

        return GroupRelative(params)
