"""An optimizer whose state and step are on the host, for weights on a GPU (Ren et al. 2021, arXiv:2101.06840).

torchao's `CPUOffloadOptimizer` takes each gradient off the GPU while the backward pass still runs, before the norm of
all of them is clipped, so `max_grad_norm` would do nothing. Here gradients move once they are clipped.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

__all__ = ["HostOptimizer"]


class HostOptimizer(torch.optim.Optimizer):
    """Steps copies of the weights on the host by `inner`, and writes them back."""

    def __init__(self, params: Iterable[dict[str, Any]], inner: type[Any], **kwargs: object) -> None:
        groups = [{**group, "params": list(group["params"])} for group in params]
        groups = [group for group in groups if group["params"]]
        mirrored = [{**group, "params": [_on_host(p) for p in group["params"]]} for group in groups]
        self.inner: torch.optim.Optimizer = inner(mirrored, **kwargs)
        for group, made in zip(groups, self.inner.param_groups, strict=True):
            group.setdefault("lr", float(made["lr"]))
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch's own overloads differ by closure
        """Move the gradients to the host, step there, and bring the weights back."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        pairs = []
        for group, host in zip(self.param_groups, self.inner.param_groups, strict=True):
            _take_rate(host, group["lr"])
            pairs += list(zip(group["params"], host["params"], strict=True))
        for weight, copy in pairs:
            copy.grad = None if weight.grad is None else weight.grad.to("cpu", copy.dtype)
        self.inner.step()
        for weight, copy in pairs:
            if copy.grad is not None:
                weight.copy_(copy)
                copy.grad = None
        return loss

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer on the host."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with a state of `state_dict`, and with the weights as they are now."""
        self.inner.load_state_dict(state_dict)
        for group, host in zip(self.param_groups, self.inner.param_groups, strict=True):
            group["lr"] = float(host["lr"])
            for weight, copy in zip(group["params"], host["params"], strict=True):
                copy.data.copy_(weight)


def _on_host(weight: torch.Tensor) -> torch.nn.Parameter:
    host = weight.detach().to("cpu", copy=True)
    return torch.nn.Parameter(host.pin_memory() if weight.is_cuda else host)


def _take_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
