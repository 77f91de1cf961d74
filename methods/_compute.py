"""What a training run computed, so that training in full and by adapters can be compared at equal compute."""

from collections.abc import Mapping
from functools import partial
from typing import Any

__all__ = ["Compute"]

_FROZEN_COPIES = frozenset({"start", "ref"})
"""Adapters that are kept for the policy as it came in, and do not run in training."""


class Compute:
    """Made of a model when its training starts, with the adapters in it.

    The operations are an estimate by the usual rule (Kaplan et al. 2020, arXiv:2001.08361): a multiplication and an
    addition for each entry of a layer's matrices and each token, forward; as many backward to the layers below; and as
    many again for the gradient of each entry that is trained. Embeddings, the output layer and attention scores are
    left out; they are the same whatever is trained. A prompt that rows share counts for each of them, even where it is
    computed once.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401  # transformers and peft are untyped
        import torch

        head = model.get_output_embeddings()
        apart = {
            id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) or m is head for p in m.parameters()
        }
        matrices = [
            (name, p)
            for name, p in model.named_parameters()
            if p.dim() > 1 and id(p) not in apart and not _FROZEN_COPIES & set(name.split("."))
        ]
        self.trained_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._entries = sum(p.numel() for _, p in matrices)
        self._trained = sum(p.numel() for _, p in matrices if p.requires_grad)
        self._before = 0
        if getattr(model, "prompt_encoder", None) is not None:
            size = model.active_peft_config.num_virtual_tokens
            model.get_base_model().register_forward_pre_hook(partial(self._count, size), with_kwargs=True)

    def _count(self, size: int, _module: object, _args: object, inputs: Mapping[str, Any]) -> None:
        # Vectors before the input are computed like its tokens, for every row.
        vectors = inputs.get("inputs_embeds")
        if vectors is not None and vectors.requires_grad:
            self._before += size * len(vectors)

    def figures(self, tokens: float, *, recomputed: bool) -> dict[str, float]:
        """`trained_parameters`, and `train_flops` of that many tokens of training.

        Args:
            tokens: without padding, prompts included.
            recomputed: whether activations were computed again in the backward pass.
        """
        passes = (6 if recomputed else 4) * self._entries + 2 * self._trained
        return {
            "trained_parameters": float(self.trained_parameters),
            "train_flops": float(passes) * (tokens + self._before),
        }
