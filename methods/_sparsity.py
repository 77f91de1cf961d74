"""Zeros that stay zero: a model pruned weight by weight keeps its zeros through the training that follows."""

from types import TracebackType
from typing import TYPE_CHECKING, Any

from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MARK", "KeptZeros"]

MARK = "sparse_weights"
"""The entry of a model's configuration that says its zeros are meant."""


class KeptZeros:
    """Freezes the zeros of a marked model's linear layers, output layers excepted; of any other model, nothing.

    Inside the context the gradient of a zero is zero: so the norm that clips all gradients, and whatever an optimizer
    keeps, are those of the weights that are there. `restore` after each step makes sure of it for an optimizer that
    moves a weight without a gradient.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401  # transformers and peft are untyped
        """Take the zeros as they are now: a byte for each weight of these layers.

        Raises:
            UserError: the model is marked and has adapters.
        """
        self._masks: list[tuple[Tensor, Tensor]] = []
        self._hooks: list[Any] = []
        if not getattr(model.config, MARK, False):
            return
        import torch

        if any(hasattr(module, "base_layer") for module in model.modules()):
            raise UserError(
                "this model's weights were pruned (prune_weights), and LoRA adapters would fill its zeros again: train "
                "all weights (lora_rank: 0), or prune after the adapters are merged"
            )
        # Below the head: a new head of a reward model begins with zeros that are there to be learned.
        for module in model.base_model.modules():
            # What is frozen keeps its zeros by itself.
            if isinstance(module, torch.nn.Linear) and module.weight.requires_grad:
                self._masks.append((module.weight, module.weight.detach() == 0))

    def restore(self) -> None:
        """Set to zero what was zero."""
        for weight, mask in self._masks:
            weight.detach().masked_fill_(mask, 0)

    def __enter__(self) -> "KeptZeros":
        """Keep gradients off the zeros, until the context is left."""
        for weight, mask in self._masks:
            self._hooks.append(weight.register_post_accumulate_grad_hook(_mask_gradient(mask)))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let gradients be."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _mask_gradient(mask: "Tensor") -> Any:  # noqa: ANN401  # a hook
    def hook(weight: "Tensor") -> None:
        if weight.grad is not None:
            weight.grad.masked_fill_(mask, 0)

    return hook
