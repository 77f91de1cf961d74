"""Decoding for models that a tree of segments cannot express: one row at a time, with the model's own cache."""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TYPE_CHECKING

import torch

from harness.measure.scoring._generate import Generated
from harness.measure.scoring._sampling import Sampling, choose

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["generate_plain"]


def generate_plain(
    model: "PreTrainedModel",
    contexts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    ends: frozenset[int],
    stop: Callable[[list[int]], bool] | None,
    sampling: Sampling,
    seeds: Sequence[int] | None,
) -> Iterator[tuple[int, Generated]]:
    """As `generate_tree`, for any causal model with a cache. Not batched: padding is not exact for all of them."""
    for i, context in enumerate(contexts):
        random = Random(i if seeds is None else seeds[i])
        ids = torch.tensor([list(context)], device=model.device)
        cache = None
        new: list[int] = []
        ended = False
        while not ended and len(new) < limits[i]:
            with torch.inference_mode():
                output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            new += choose(output.logits[:, -1], sampling, lambda r=random: [r.random()])  # type: ignore[misc]  # bound now
            ended = new[-1] in ends or (stop is not None and stop(new))
            ids = torch.tensor([new[-1:]], device=model.device)
        yield i, Generated(new, ended)
