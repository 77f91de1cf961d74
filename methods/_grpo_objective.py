"""GRPO's loss."""

from typing import TYPE_CHECKING

from torch import Tensor

from methods._online_math import clipped, group_advantages, per_tokens
from methods._online_objective import Objective, Sampled
from methods._ppo_math import kl_k3, masked_mean
from methods._rewards import Rewarder

if TYPE_CHECKING:
    from methods.grpo import GRPOParams

__all__ = ["GroupRelative"]


class GroupRelative(Objective):
    """Clipped steps by group advantages, with the KL to the reference in the loss."""

    def __init__(self, params: "GRPOParams") -> None:
        self.params = params
        self.reference = params.beta > 0
        self.high = params.clip_range if params.clip_range_high is None else params.clip_range_high

    def weigh(self, sampled: Sampled, rewarder: Rewarder) -> tuple[Tensor, dict[str, float]]:
        """See `Objective`."""
        advantages = group_advantages(sampled.scores, sampled.size, scale=self.params.scale_rewards == "group")
        groups = sampled.scores.view(-1, sampled.size)
        # Of the scores: the mean of equal ones may differ from them by rounding.
        told = groups.amax(1) > groups.amin(1)
        return advantages, {"informative": float(told.float().mean())}

    def loss(self, now: Tensor, sampled: Sampled, weights: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """See `Objective`."""
        mask = sampled.rollout.mask[rows]
        # What stands in the padding is 0 on both sides.
        losses, held = clipped(now - sampled.logprobs[rows], weights[rows, None], self.params.clip_range, self.high)
        if sampled.reference is not None and self.params.beta > 0:
            losses = losses + self.params.beta * kl_k3(now, sampled.reference[rows])
        loss = per_tokens(losses, mask, self.params.loss_per, self.params.max_new_tokens)
        return loss, {"clip_fraction": float(masked_mean(held.float(), mask))}

    def share(self, sampled: Sampled, weights: Tensor, part: Tensor, rows: Tensor) -> float:
        """See `Objective`."""
        if self.params.loss_per != "token":
            return super().share(sampled, weights, part, rows)
        tokens = sampled.rollout.mask.sum(1)
        return float(tokens[part].sum() / tokens[rows].sum())
