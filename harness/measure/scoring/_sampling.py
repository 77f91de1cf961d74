"""How the next token is chosen from logits: greedy, or drawn from each row's own random numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GREEDY", "Sampling", "choose"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 is greedy. `top_k` 0 and `top_p` 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Sampling()


def choose(logits: Tensor, sampling: Sampling, uniforms: Callable[[], list[float]]) -> list[int]:
    """The next token of every row of logits [B, V]. A row draws from its own random numbers, one a token."""
    if sampling.temperature == 0:
        chosen: list[int] = logits.argmax(-1).tolist()
        return chosen
    scores = logits.float() / sampling.temperature
    if sampling.top_k:
        lowest = scores.topk(min(sampling.top_k, scores.shape[-1]), dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < lowest, -math.inf)
    if sampling.top_p < 1:
        ranked, order = scores.sort(descending=True)
        before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= sampling.top_p)
        scores = scores.masked_fill(dropped, -math.inf)
    # Inverse transform in fp64: an fp32 running sum over 50,000 tokens would lose the tail.
    sums = scores.softmax(-1).double().cumsum(-1)
    at = torch.tensor(uniforms(), dtype=torch.float64, device=sums.device)[:, None] * sums[:, -1:]
    sampled: list[int] = torch.searchsorted(sums, at, right=True).clamp(max=sums.shape[-1] - 1)[:, 0].tolist()
    return sampled
