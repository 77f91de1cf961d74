"""Online DPO's loss."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from methods._online_math import pair_loss, sequence_sums
from methods._online_objective import Objective, Sampled
from methods._rewards import Rewarder

if TYPE_CHECKING:
    from methods.online_dpo import OnlineDPOParams

__all__ = ["OnlinePairs"]


class OnlinePairs(Objective):
    """DPO of the two answers to each prompt: 1 for the chosen one, -1 for the other, 0 for both of a tie."""

    def __init__(self, params: "OnlineDPOParams") -> None:
        self.params = params
        self.scored = params.reward != "judge"

    def weigh(self, sampled: Sampled, rewarder: Rewarder) -> tuple[Tensor, dict[str, float]]:
        """See `Objective`."""
        if self.params.reward == "judge":
            said = sampled.said()
            better = torch.tensor(rewarder.prefer(sampled.rows[::2], said[::2], said[1::2])).to(sampled.scores) - 0.5
        else:
            pairs = sampled.scores.view(-1, 2)
            better = pairs[:, 0] - pairs[:, 1]
        sign = torch.sign(better)
        return torch.stack([sign, -sign], 1).flatten(), {"decided": float((sign != 0).float().mean())}

    def loss(self, now: Tensor, sampled: Sampled, weights: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """See `Objective`."""
        if sampled.reference is None:
            raise ValueError("online DPO holds a reference")
        mask, signs = sampled.rollout.mask[rows], weights[rows].view(-1, 2)
        ratios = sequence_sums(now - sampled.reference[rows], mask)
        if self.params.loss_type == "ipo":
            ratios = ratios / mask.sum(1)
        margins = (ratios.view(-1, 2) * signs).sum(1)
        decided = (signs[:, 0] != 0).to(margins.dtype)
        count = decided.sum().clamp(min=1)
        loss = (pair_loss(margins, self.params.beta, self.params.loss_type) * decided).sum() / count
        implicit = self.params.beta * margins.detach()
        return loss, {
            "rewards_margin": float((implicit * decided).sum() / count),
            "rewards_accuracy": float(((implicit > 0) * decided).sum() / count),
        }

    def share(self, sampled: Sampled, weights: Tensor, part: Tensor, rows: Tensor) -> float:
        """See `Objective`: by the pairs that are no tie."""
        decided = weights != 0
        return float(decided[part].sum() / decided[rows].sum().clamp(min=1))
