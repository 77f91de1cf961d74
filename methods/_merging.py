"""The arithmetic of model merging: one tensor of several models, and of the base that they all started from, to one."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.errors import UserError
from harness.method import LoadedModel

__all__ = ["How", "check_alike", "consensus", "dropped", "parameters", "slerp", "task_mean", "trim_level", "trimmed"]

How = Literal["linear", "slerp", "ties", "dare_linear", "dare_ties"]

_PARALLEL = 1e-4
"""Below this sine of the angle two tensors point the same way, and the arc is the chord."""


def check_alike(models: Sequence[LoadedModel]) -> None:
    """Refuse models whose weights do not correspond.

    Raises:
        UserError: other weights than the first's, another vocabulary, or weights that are packed or beside an adapter.
    """
    first = models[0]
    shapes = {name: tuple(p.shape) for name, p in first.model.named_parameters()}
    words = first.tokenizer.get_vocab()
    for one in models:
        where = f"merge: the model in {one.folder.name}"
        if hasattr(one.model.config, "quantization_config") or (one.folder / "adapter").is_dir():
            raise UserError(
                f"{where} is packed for running, or has an adapter beside it; merge it before that step, or with "
                "lora_merge: true"
            )
        own = {name: tuple(p.shape) for name, p in one.model.named_parameters()}
        if own != shapes:
            odd = sorted(name for name in own.keys() | shapes.keys() if own.get(name) != shapes.get(name))
            raise UserError(
                f"{where} has another architecture than that in {first.folder.name}: {odd[0]} is "
                f"{own.get(odd[0], 'not there')} against {shapes.get(odd[0], 'not there')}; models are merged weight "
                "by weight, so all must be trained from one base model"
            )
        if one.tokenizer.get_vocab() != words:
            raise UserError(
                f"{where} numbers its tokens otherwise than that in {first.folder.name}; merge models of one tokenizer"
            )


def task_mean(base: Tensor, vectors: Sequence[Tensor], weights: Sequence[float], scale: float) -> Tensor:
    """base + scale · Σ w τ / Σ w: at scale 1 without a change of the vectors the weighted mean of the models."""
    total = sum(weights)
    mean = sum((w / total) * v for w, v in zip(weights, vectors, strict=True))
    return base + scale * mean


def slerp(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Along the great circle between two tensors taken as vectors (Shoemake 1985), to the second's share of the weight.

    Each further tensor is met from where the ones before it have led, at its share of the weight so far: for small
    angles all of them together are the weighted mean.
    """
    found, total = tensors[0], weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total += weight
        found = _arc(found, tensor, weight / total if total else 0.0)
    return found


def _arc(a: Tensor, b: Tensor, share: float) -> Tensor:
    # The angle in float64: near 0, where fine-tuned weights lie, its cosine has no digits left in float32.
    first, second = a.double().flatten(), b.double().flatten()
    sizes = first.norm() * second.norm()
    cosine = float((first @ second) / sizes) if float(sizes) > 0 else 1.0
    angle = torch.tensor(min(1.0, max(-1.0, cosine)), dtype=torch.float64).acos()
    sine = float(angle.sin())
    if sine < _PARALLEL:
        return a + share * (b - a)
    of_a, of_b = float(((1 - share) * angle).sin()) / sine, float((share * angle).sin()) / sine
    return of_a * a + of_b * b


def trim_level(vectors: Iterable[Tensor], entries: int, density: float) -> float:
    """The magnitude that the largest `density` of all entries of a task vector reach (its tensors together).

    Args:
        vectors: its tensors, one after the other, so that it need not be in memory whole.
        entries: how many they have together.
    """
    sizes = np.empty(entries, dtype=np.float32)
    at = 0
    for vector in vectors:
        sizes[at : at + vector.numel()] = vector.detach().abs().flatten().cpu().numpy()
        at += vector.numel()
    place = entries - max(1, round(density * entries))
    # In place: torch's kthvalue would make a copy, and indices of 8 bytes each.
    sizes.partition(place)
    return float(sizes[place])


def trimmed(vector: Tensor, level: float) -> Tensor:
    """The entries of at least this magnitude; the others are 0."""
    return vector * (vector.abs() >= level)


def dropped(vector: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each entry kept with probability `density` and divided by it, so that its expectation stays (DARE)."""
    kept = torch.rand(vector.shape, generator=generator) < density
    return vector * kept / density


def consensus(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """TIES: for each entry the sign that has more weight, and the weighted mean of the entries that have it."""
    stacked = torch.stack(list(vectors))
    shares = torch.tensor(list(weights), dtype=stacked.dtype).view(-1, *[1] * (stacked.dim() - 1))
    elected = (shares * stacked).sum(0).sign()
    agree = shares * ((stacked.sign() == elected) & (elected != 0))
    found: Tensor = (agree * stacked).sum(0) / agree.sum(0).clamp(min=torch.finfo(stacked.dtype).tiny)
    return found


def parameters(model: Any) -> dict[str, Tensor]:  # noqa: ANN401  # transformers is untyped
    """Name → weight; tied weights once."""
    return {name: p.detach() for name, p in model.named_parameters()}
