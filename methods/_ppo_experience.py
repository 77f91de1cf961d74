"""From prompts to a batch to learn from: responses are sampled, scored by every model, and given advantages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from methods._ppo_math import (
    explained_variance,
    finite,
    generalized_advantages,
    kl_k1,
    kl_k3,
    masked_mean,
    masked_whiten,
    token_rewards,
)
from methods._ppo_models import Batch, pack
from methods._ppo_setup import Models, Texts
from methods._prompt_order import PromptOrder
from methods._rewards import Rewarder
from methods._rollout import Rollout, sample

if TYPE_CHECKING:
    from methods.ppo import PPOParams

__all__ = ["Collector", "Experience", "Responses", "shuffled"]


def shuffled(rows: int, size: int, generator: torch.Generator, device: torch.device) -> list[Tensor]:
    """Row numbers in a new random order, cut into minibatches (the last may be smaller)."""
    return list(torch.split(torch.randperm(rows, generator=generator).to(device), size))


@dataclass(frozen=True)
class Responses:
    """Prompts and what the policy answered."""

    prompts: list[list[int]]
    rows: list[Mapping[str, Any]]
    """The dataset's row of each."""
    rollout: Rollout
    pad: int

    def said(self) -> list[list[int]]:
        """The tokens of each response, its end token included."""
        return [tokens[mask].tolist() for tokens, mask in zip(self.rollout.tokens, self.rollout.mask, strict=True)]

    def batch(self, rows: Tensor) -> Batch:
        """The chosen rows, packed. The mask keeps the width of the longest response of all, chosen or not."""
        chosen = [self.prompts[i] for i in rows.tolist()]
        return pack(chosen, self.rollout.tokens[rows], self.rollout.mask[rows], self.pad)


@dataclass(frozen=True)
class Experience(Responses):
    """Scored responses. Tensors [rows, response length] but for `scores` [rows]; all without gradient."""

    minibatches: list[Tensor]
    """Row numbers of the first epoch's minibatches: the old log-probabilities come from these very batches."""
    scores: Tensor
    """As the reward gave them."""
    logprobs: Tensor
    """The sampling policy's, by the training path."""
    entropy: Tensor
    values: Tensor
    reference: Tensor
    advantages: Tensor
    returns: Tensor

    def figures(self) -> dict[str, float]:
        """What is logged of the batch, before the policy learns from it."""
        mask = self.rollout.mask
        k1, k3 = kl_k1(self.logprobs, self.reference), kl_k3(self.logprobs, self.reference)
        gap = (self.rollout.logprobs - self.logprobs).abs()
        return {
            "reward": float(self.scores.mean()),
            "kl": float(torch.where(mask, k1, 0.0).sum(1).mean()),
            "kl_k3": float(torch.where(mask, k3, 0.0).sum(1).mean()),
            "entropy": float(masked_mean(self.entropy, mask)),
            "explained_variance": explained_variance(self.values, self.returns, mask),
            "length": float(mask.sum(1).float().mean()),
            "eos_fraction": float(self.rollout.ended.float().mean()),
            "sampler_gap": float(masked_mean(gap, mask)),
        }


class Collector:
    """Makes experience, batch after batch; it goes through the prompts in a new random order each time round."""

    def __init__(
        self,
        models: Models,
        texts: Texts,
        params: "PPOParams",
        generator: torch.Generator,
        rewarder: Rewarder | None = None,
    ) -> None:
        """`rewarder` scores in place of a reward model."""
        self.models, self.texts, self.params, self.generator = models, texts, params, generator
        self.score_shift: tuple[float, float] | None = None if params.normalize_reward else (0.0, 1.0)
        self._order = PromptOrder(len(texts.prompts), generator)
        self.rewarder = rewarder

    def state(self) -> dict[str, object]:
        """Where it is: what a checkpoint holds of it, beside the generator's state."""
        return {"left": list(self._order.left), "score_shift": self.score_shift}

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of `state`."""
        self._order.left, self.score_shift = list(state["left"]), state["score_shift"]

    def sample(self) -> Responses:
        """Responses of the present policy to the next prompts."""
        params, texts, sampler = self.params, self.texts, self.models.sampler
        chosen = self._order.take(params.rollout_batch_size)
        prompts = [texts.prompts[i] for i in chosen]
        sampler.refresh()
        with sampler.context():
            rollout = sample(
                sampler.model,
                prompts,
                max_new_tokens=params.max_new_tokens,
                temperature=params.temperature,
                eos=texts.eos,
                pad=texts.pad,
                generator=self.generator,
                share_prompts=True,
            )
        return Responses(prompts, [texts.rows[i] for i in chosen], rollout, texts.pad)

    @torch.no_grad()
    def score(self, responses: Responses, kl_coef: float) -> Experience:
        """What every model says of the responses, and the advantages that follow.

        Raises:
            InfeasibleError: a log-probability, value or score is not finite.
        """
        params, models, rollout = self.params, self.models, responses.rollout
        count, mask = len(responses.prompts), rollout.mask
        minibatches = shuffled(count, params.minibatch_size, self.generator, models.trained.device)
        old, values, entropy, reference = (torch.zeros_like(rollout.logprobs) for _ in range(4))
        scores = torch.zeros(count, device=mask.device)
        for rows in minibatches:
            batch = responses.batch(rows)
            part = models.sampling_policy.evaluate(batch, entropy="figure")
            old[rows] = part.logprobs
            if part.entropy is not None:
                entropy[rows] = part.entropy
            values[rows] = models.values(batch, part)
            with models.adapter_off():
                reference[rows] = models.reference.evaluate(batch).logprobs
            if models.reward is not None:
                scores[rows] = models.reward.last(*self._judged(responses, rows), self.texts.pad)
        if self.rewarder is not None:
            scores = torch.tensor(self.rewarder.score(responses.rows, responses.said())).to(scores)
        for name, tensor in (("a log-probability", old), ("a value", values), ("a reward score", scores)):
            finite(float(tensor.sum()), name)
        rewards = token_rewards(self.adjusted(scores, rollout.ended), kl_k1(old, reference), mask, kl_coef)
        if params.whiten_rewards:
            rewards = masked_whiten(rewards, mask, shift_mean=False)
        advantages, returns = generalized_advantages(rewards, values, mask, params.gamma, params.lam)
        if params.whiten_advantages:
            advantages = masked_whiten(advantages, mask)
        return Experience(
            **vars(responses),
            minibatches=minibatches,
            scores=scores,
            logprobs=old,
            entropy=entropy,
            values=values,
            reference=reference,
            advantages=advantages,
            returns=returns,
        )

    def _judged(self, responses: Responses, rows: Tensor) -> tuple[list[list[int]], list[int]]:
        # What the reward model reads, prompt and response as the chat template closes them, and the prompts' lengths. A
        # response cut by the length limit gets the end token it lacks, as in the texts the model was trained on;
        # `missing_eos_penalty` is what answers for the cut.
        rollout = responses.rollout
        sequences = []
        for i in rows.tolist():
            response: list[int] = rollout.tokens[i, rollout.mask[i]].tolist()
            end = [] if bool(rollout.ended[i]) else [self.texts.eos]
            sequences.append([*responses.prompts[i], *response, *end, *self.texts.closing])
        return sequences, [len(responses.prompts[i]) for i in rows.tolist()]

    def adjusted(self, scores: Tensor, ended: Tensor) -> Tensor:
        """Scores as rewards: normalized by the first batch's mean and deviation, clipped, less the end penalty."""
        params = self.params
        if self.score_shift is None:
            deviation = float(scores.std(unbiased=False))
            # One row, or equal scores: there is no scale to take.
            self.score_shift = (float(scores.mean()), deviation if deviation > 1e-6 else 1.0)
        mean, deviation = self.score_shift
        rewards = (scores - mean) / deviation
        if params.reward_clip is not None:
            rewards = rewards.clamp(-params.reward_clip, params.reward_clip)
        return rewards - params.missing_eos_penalty * (~ended).to(rewards.dtype)
