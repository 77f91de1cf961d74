"""The arithmetic of learning from groups of answers: advantages within a group, and losses of log-probabilities.

Shapes: tokens [rows, tokens] with a mask (True on response tokens, the end token included); one value for each response
[rows]. Responses to one prompt stand side by side, `size` of them. Logarithms are natural, KL is in nats.
"""

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Per", "clipped", "group_advantages", "leave_one_out", "pair_loss", "per_tokens", "sequence_sums"]

Per = Literal["sequence", "token", "constant"]


def group_advantages(scores: Tensor, size: int, *, scale: bool) -> Tensor:
    """Scores [rows] less the mean of their group, over its standard deviation if `scale`: 0 where a group is equal.

    GRPO (arXiv:2402.03300), eq. 3 to 5; unscaled, Dr. GRPO (arXiv:2503.20783).
    """
    groups = scores.view(-1, size)
    centred = groups - groups.mean(1, keepdim=True)
    if scale:
        centred = centred / (groups.std(1, keepdim=True) + 1e-4)
    return centred.flatten()


def leave_one_out(rewards: Tensor, size: int) -> Tensor:
    """Rewards [rows] less the mean of the others in their group (arXiv:2402.14740, eq. 11)."""
    groups = rewards.view(-1, size)
    others = (groups.sum(1, keepdim=True) - groups) / (size - 1)
    return (groups - others).flatten()


def clipped(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate as a loss, by element, and where the clip decides; the ratio is held to [1-low, 1+high]."""
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    held = -advantages * ratio.clamp(1.0 - low, 1.0 + high)
    return torch.maximum(plain, held), held > plain


def per_tokens(losses: Tensor, mask: Tensor, per: Per, longest: int) -> Tensor:
    """A scalar of token losses [rows, tokens].

    Args:
        losses: one for each token.
        mask: of response tokens.
        per: sequence: the mean over rows of each row's mean; token: the mean over all tokens (DAPO, arXiv:2503.14476);
            constant: the sum over rows and the longest possible length, so that length decides nothing (Dr. GRPO).
        longest: tokens that a response may have.
    """
    kept = torch.where(mask, losses, 0.0)
    if per == "sequence":
        return (kept.sum(1) / mask.sum(1).clamp(min=1)).mean()
    if per == "token":
        return kept.sum() / mask.sum()
    return kept.sum() / (len(mask) * longest)


def sequence_sums(values: Tensor, mask: Tensor) -> Tensor:
    """The sum over each response's tokens, [rows]."""
    return torch.where(mask, values, 0.0).sum(1)


def pair_loss(margins: Tensor, beta: float, kind: Literal["sigmoid", "ipo"]) -> Tensor:
    """DPO's loss of the log-ratios' margins [pairs] (arXiv:2305.18290, eq. 7), or IPO's (arXiv:2310.12036, eq. 17)."""
    if kind == "sigmoid":
        return -torch.nn.functional.logsigmoid(beta * margins)
    return (margins - 1.0 / (2.0 * beta)) ** 2
