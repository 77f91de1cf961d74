"""What a method learns by from groups of answers, and the batch of them that it is given."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from methods._ppo_experience import Responses
from methods._ppo_math import kl_k1, kl_k3, masked_mean
from methods._rewards import Rewarder

__all__ = ["Objective", "Sampled"]


@dataclass(frozen=True)
class Sampled(Responses):
    """Scored responses, those to one prompt side by side. Tensors [rows, response length] but for `scores` [rows]."""

    size: int
    """Responses to one prompt."""
    scores: Tensor
    """As the reward gave them, less what a missing end costs."""
    logprobs: Tensor
    """The sampling policy's, by the training path."""
    entropy: Tensor
    known: Tensor
    """[rows], bool: whose `logprobs` and `entropy` are there. Unless the objective weighs them, those of the first
    minibatch come with the pass that learns from it."""
    reference: Tensor | None
    minibatches: list[Tensor]
    """Row numbers of the first epoch's minibatches: the old log-probabilities come from these very batches."""

    def figures(self) -> dict[str, float]:
        """What is logged of the batch, once the policy has learned from it."""
        mask = self.rollout.mask
        found = {
            "length": float(mask.sum(1).float().mean()),
            "eos_fraction": float(self.rollout.ended.float().mean()),
            "entropy": float(masked_mean(self.entropy, mask)),
            "sampler_gap": float(masked_mean((self.rollout.logprobs - self.logprobs).abs(), mask)),
        }
        if self.reference is not None:
            for name, kl in (("kl", kl_k1), ("kl_k3", kl_k3)):
                found[name] = float(torch.where(mask, kl(self.logprobs, self.reference), 0.0).sum(1).mean())
        return found


class Objective(ABC):
    """What a method learns by."""

    reference = True
    """Whether it needs the log-probabilities of the policy as it came in."""
    scored = True
    """Whether each response is scored by itself; if not, scores are 0, and the objective asks what it needs."""

    weighs_logprobs = False
    """Whether `weigh` reads the sampling policy's log-probabilities; if not, a pass of the model can be spared."""

    @abstractmethod
    def weigh(self, sampled: Sampled, rewarder: Rewarder) -> tuple[Tensor, dict[str, float]]:
        """What each response teaches [rows] (an advantage; 0: nothing), and figures of it to log."""

    @abstractmethod
    def loss(self, now: Tensor, sampled: Sampled, weights: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The loss of some responses, and figures of it.

        Args:
            now: log-probabilities of their tokens by the policy that learns, [len(rows), response length].
            sampled: the whole batch.
            weights: of `weigh`.
            rows: the numbers of the responses, whole groups of them.
        """

    def share(self, sampled: Sampled, weights: Tensor, part: Tensor, rows: Tensor) -> float:
        """The weight of a part's loss in that of a minibatch, both given by the numbers of their responses."""
        return len(part) / len(rows)
