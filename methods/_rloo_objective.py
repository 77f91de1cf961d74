"""RLOO's loss."""

from typing import TYPE_CHECKING

from torch import Tensor

from methods._online_math import clipped, leave_one_out, sequence_sums
from methods._online_objective import Objective, Sampled
from methods._ppo_math import kl_k1
from methods._rewards import Rewarder

if TYPE_CHECKING:
    from methods.rloo import RLOOParams

__all__ = ["LeaveOneOut"]


class LeaveOneOut(Objective):
    """Whole responses by their reward, less the KL, less the mean of the others."""

    def __init__(self, params: "RLOOParams") -> None:
        self.params = params
        self.reference = self.weighs_logprobs = params.kl_coef > 0

    def weigh(self, sampled: Sampled, rewarder: Rewarder) -> tuple[Tensor, dict[str, float]]:
        """See `Objective`."""
        rewards = sampled.scores
        if sampled.reference is not None:
            rewards = rewards - self.params.kl_coef * sequence_sums(
                kl_k1(sampled.logprobs, sampled.reference), sampled.rollout.mask
            )
        advantages = leave_one_out(rewards, sampled.size)
        if self.params.normalize_advantages:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        return advantages, {"advantage_std": float(advantages.std())}

    def loss(self, now: Tensor, sampled: Sampled, weights: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """See `Objective`."""
        moved = sequence_sums(now - sampled.logprobs[rows], sampled.rollout.mask[rows])
        losses, held = clipped(moved, weights[rows], self.params.clip_range, self.params.clip_range)
        return losses.mean(), {"clip_fraction": float(held.float().mean())}
