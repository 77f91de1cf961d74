"""Log-likelihoods of continuations: every distinct position once, whoever asks for it."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.errors import MeasurementError
from harness.measure.scoring._forward import Budget, run_passes
from harness.measure.scoring._tree import build_tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Pair", "score_plain", "score_tree"]

Pair = tuple[Sequence[int], int]
"""A sequence of token ids and how many of its last tokens are scored."""

Progress = Callable[[int, int], None]

_BLOCK_BYTES = 1 << 26
_CPU_BLOCK_BYTES = 1 << 21


def score_tree(
    model: "PreTrainedModel", pairs: Sequence[Pair], budget: Budget, progress: Progress | None = None
) -> list[tuple[float, bool]]:
    """(log-likelihood in nats, whether every scored token is the most likely one) of each pair, in order.

    Raises:
        MeasurementError: a log-likelihood is NaN or infinite.
    """
    inputs = [list(tokens[:-1]) for tokens, _ in pairs]
    tree = build_tree(inputs, max_segment=min(budget.tokens, _row_limit(model, budget)))
    wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}
    left = np.array([count for _, count in pairs])
    for i, (tokens, count) in enumerate(pairs):
        places = tree.locate(i, range(len(inputs[i]) - count, len(inputs[i])))
        for place, token in zip(places, tokens[-count:], strict=True):
            wanted.setdefault(place, []).append((i, token))
    sums = np.zeros(len(pairs))
    greedy = np.ones(len(pairs), dtype=bool)
    for rows, logits in run_passes(model, tree, list(wanted), budget):
        asked = [(r, i, token) for r, row in enumerate(rows) for i, token in wanted[row]]
        for owner, value, best in _gather(logits, asked):
            sums[owner] += value
            greedy[owner] &= best
            left[owner] -= 1
        if progress is not None:
            progress(int((left == 0).sum()), len(pairs))
    return _checked(sums, greedy)


def _row_limit(model: "PreTrainedModel", budget: Budget) -> int:
    vocabulary = model.config.get_text_config().vocab_size
    return max(1, budget.logit_bytes * 8 // (int(vocabulary) * torch.finfo(model.dtype).bits))


def _gather(logits: Tensor, asked: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, float, bool]]:
    # In blocks: a fp32 copy of all logits would be the largest tensor of the whole measurement, and on a CPU a block
    # that stays in its cache takes a quarter of the time.
    block = max(1, (_CPU_BLOCK_BYTES if logits.device.type == "cpu" else _BLOCK_BYTES) // (4 * logits.shape[-1]))
    at = 0
    for low in range(0, len(logits), block):
        part = logits[low : low + block].float()
        mine = at
        while mine < len(asked) and asked[mine][0] < low + len(part):
            mine += 1
        if mine == at:
            continue
        rows = torch.tensor([r - low for r, _, _ in asked[at:mine]], device=logits.device)
        tokens = torch.tensor([t for _, _, t in asked[at:mine]], device=logits.device)
        values = torch.log_softmax(part, -1)[rows, tokens].tolist()
        best = _first_largest(part)[rows] == tokens
        yield from zip((i for _, i, _ in asked[at:mine]), values, best.tolist(), strict=True)
        at = mine


def _first_largest(rows: Tensor) -> Tensor:
    # NumPy finds the place five times faster than torch does on a CPU; of equal values both take the first.
    return torch.from_numpy(rows.numpy().argmax(-1)) if rows.device.type == "cpu" else rows.argmax(-1)


def _checked(sums: npt.NDArray[np.float64], greedy: npt.NDArray[np.bool_]) -> list[tuple[float, bool]]:
    if not np.isfinite(sums).all():
        bad = int((~np.isfinite(sums)).sum())
        raise MeasurementError(
            f"{bad} of {len(sums)} log-likelihoods are NaN or infinite: the model's weights are broken"
        )
    return [(float(v), bool(g)) for v, g in zip(sums, greedy, strict=True)]


def score_plain(
    model: "PreTrainedModel", pairs: Sequence[Pair], budget: Budget, progress: Progress | None = None
) -> list[tuple[float, bool]]:
    """As `score_tree`, for any causal model: equal inputs once, in right-padded batches.

    Logits are computed from the first scored place of a batch on.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    slices = "logits_to_keep" in inspect.signature(getattr(inner, "_orig_mod", inner).forward).parameters
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (tokens, _) in enumerate(pairs):
        groups.setdefault(tuple(tokens[:-1]), []).append(i)
    order = sorted(groups, key=lambda s: (-len(s), s))
    limit = _row_limit(model, budget)
    sums = np.zeros(len(pairs))
    greedy = np.ones(len(pairs), dtype=bool)
    done = at = 0
    while at < len(order):
        width = len(order[at])
        batch = order[at : at + max(1, min(budget.tokens, limit) // width)]
        at += len(batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence)] = torch.tensor(sequence)
        first = min(len(s) - pairs[i][1] for s in batch for i in groups[s])
        # Padding stands on the right, where a causal model's earlier places cannot see it.
        keep = {"logits_to_keep": torch.arange(first, width, device=model.device)} if slices else {}
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), use_cache=False, **keep).logits
        logits = logits if slices else logits[:, first:]
        asked = []
        for row, sequence in enumerate(batch):
            for i in groups[sequence]:
                tokens, count = pairs[i]
                base = row * logits.shape[1] + len(sequence) - count - first
                asked += [(base + n, i, token) for n, token in enumerate(tokens[-count:])]
            done += len(groups[sequence])
        for owner, value, best in _gather(logits.flatten(0, 1), sorted(asked)):
            sums[owner] += value
            greedy[owner] &= best
        if progress is not None:
            progress(done, len(pairs))
    return _checked(sums, greedy)
