"""The arithmetic of PPO on padded token tensors: every function takes a mask and never lets padding in.

Shapes throughout: [batch, tokens], mask True on response tokens (the end token included). Logarithms are natural, KL is
in nats.

Schulman et al. 2016 (GAE, arXiv:1506.02438) and 2017 (PPO, arXiv:1707.06347); Ziegler et al. 2019 (adaptive KL
coefficient, arXiv:1909.08593); Huang et al. 2024 ("The N+ Implementation Details of RLHF with PPO", arXiv:2403.17031).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import InfeasibleError

__all__ = [
    "AdaptiveKl",
    "FixedKl",
    "PolicyLoss",
    "explained_variance",
    "finite",
    "generalized_advantages",
    "kl_k1",
    "kl_k3",
    "learning_rate_factor",
    "masked_mean",
    "masked_whiten",
    "policy_loss",
    "token_rewards",
    "value_loss",
]


def finite(value: float, what: str) -> float:
    """The value itself.

    Raises:
        InfeasibleError: it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise InfeasibleError(f"{what} is {value}: training diverged; a lower learning_rate may hold")
    return value


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the True entries of the mask, as a scalar; whatever stands in the padding (NaN too) has no effect."""
    return torch.where(mask, values, 0.0).sum() / mask.sum()


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over the mask, and to zero mean unless `shift_mean` is False. Padding becomes 0."""
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0.0)


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Per-token log-ratio `log p - log q`: unbiased for KL(p‖q) under samples of p, may be negative."""
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Per-token `q/p - 1 - log(q/p)`: unbiased for KL(p‖q) under samples of p, never negative (Schulman 2020)."""
    gap = reference - logprobs
    return torch.expm1(gap) - gap


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """`-kl_coef * kl` at each token, plus the sequence's score [batch] at its last token. Padding is 0."""
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores.unsqueeze(1).to(rewards.dtype))


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """GAE and the value targets (advantage + value), both 0 in the padding.

    `values[:, t]` is the value of the state before token t. The state after the last response token is terminal, value
    0, also where the length limit cut the response.
    """
    advantages = torch.zeros_like(rewards)
    carried = torch.zeros_like(rewards[:, 0])
    following = torch.zeros_like(carried)
    for t in reversed(range(rewards.shape[1])):
        inside = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = torch.where(inside, delta + gamma * lam * carried, 0.0)
        following = torch.where(inside, values[:, t], 0.0)
        advantages[:, t] = carried
    return advantages, torch.where(mask, advantages + values, 0.0)


@dataclass(frozen=True)
class PolicyLoss:
    """Scalars. `loss` carries the gradient, the rest are detached."""

    loss: Tensor
    approximate_kl: Tensor
    """Mean k3 estimate per token of KL(old‖new)."""
    clip_fraction: Tensor
    ratio_max: Tensor
    """The largest of ratio and 1/ratio over the tokens: 1 means that nothing moved."""


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> PolicyLoss:
    """The clipped surrogate (Schulman et al. 2017, eq. 7), a mean over the tokens of the mask."""
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    plain_term, clipped_term = -advantages * ratio, -advantages * clipped
    loss = masked_mean(torch.maximum(plain_term, clipped_term), mask)
    with torch.no_grad():
        return PolicyLoss(
            loss=loss,
            approximate_kl=masked_mean(ratio - 1.0 - log_ratio, mask),
            clip_fraction=masked_mean((clipped_term > plain_term).float(), mask),
            ratio_max=log_ratio.abs().max().exp(),
        )


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float) -> Tensor:
    """Half the squared error; the worse of the value and the value held within `clip_range` of the old one."""
    held = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (held - returns) ** 2), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 is perfect, 0 no better than a constant.

    Returns that do not vary give 0.
    """
    target = returns[mask]
    variance = target.var(unbiased=False)
    if variance == 0:
        return 0.0
    return float(1.0 - (target - values[mask]).var(unbiased=False) / variance)


@dataclass(frozen=True)
class FixedKl:
    """A KL coefficient that stays."""

    coefficient: float

    def after(self, kl: float) -> "FixedKl":
        """The controller for the next iteration, given this one's mean KL per sequence."""
        return self


@dataclass(frozen=True)
class AdaptiveKl:
    """Ziegler et al. 2019, section 2.2: a proportional controller in log space.

    Above the target the coefficient rises, below it falls, by at most `step * 0.2` of itself an iteration.
    """

    coefficient: float
    target: float
    """Wanted KL per sequence, nats."""
    step: float = 0.1

    def after(self, kl: float) -> "AdaptiveKl":
        """The controller for the next iteration, given this one's mean KL per sequence."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        return AdaptiveKl(self.coefficient * (1.0 + self.step * error), self.target, self.step)


def learning_rate_factor(done: int, total: int, warmup: float, *, decay: bool) -> float:
    """The part of the full learning rate for iteration `done` (from 0) of `total`.

    Rises linearly over the first `warmup` of them (never starting at 0); then constant, or falling linearly to a last
    step above 0.
    """
    rising = round(warmup * total)
    if done < rising:
        return (done + 1) / (rising + 1)
    return (total - done) / (total - rising) if decay else 1.0
