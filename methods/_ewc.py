"""Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796): weights that earlier data needs move less.

The penalty is λ/2 Σ F (θ - θ*)², where θ* is the policy that came in and F the diagonal of its Fisher information on
the earlier data. F is that of one token: the mean over completion tokens of the squared gradient of a token's
log-probability, the token drawn from the policy itself at each place of the data's answers. With the data's own tokens
it would be another matrix, the "empirical" Fisher, which is large where the policy fits badly and not where it is
sure (Kunstner et al. 2019, arXiv:1905.12558). So the sum is in nats a token: to second order, and but for what is off
the diagonal, the divergence of the policy from what it was on the earlier data.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.errors import UserError
from methods._distill_models import Trunk

if TYPE_CHECKING:
    from harness.method import Context

__all__ = ["Anchor", "fisher"]

Row = dict[str, list[int]]


def fisher(model: Any, rows: Sequence[Row], context: "Context") -> dict[str, Tensor]:  # noqa: ANN401  # transformers is untyped
    """The diagonal Fisher information of a causal model's weights, per completion token, on these rows.

    Tokens are drawn independently at each place, so the gradients of a row's tokens have mean 0 and are uncorrelated:
    the square of their sum has the expectation of the sum of their squares, and one backward pass serves a whole row.

    Args:
        rows: `input_ids` and `labels`, -100 where no token counts.

    Returns:
        Name of each trainable weight → its Fisher information, float32, of the weight's shape.

    Raises:
        PrunedError: past the deadline.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in trained.items()}
    generator = torch.Generator().manual_seed(context.seed)
    trunk, tokens, training = Trunk.of(model), 0, model.training
    model.eval()
    for row in rows:
        context.check()
        ids = torch.tensor([row["input_ids"]], device=model.device)
        mask = torch.tensor([row["labels"]], device=model.device)[:, 1:] != -100
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=context.precision == "bfloat16"):
            log_probs = trunk.head(trunk.at(ids, mask)).float().log_softmax(-1)
        drawn = torch.multinomial(log_probs.detach().exp().cpu(), 1, generator=generator).to(ids.device)
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(log_probs.gather(-1, drawn).sum())
        tokens += int(mask.sum())
        for name, weight in trained.items():
            if weight.grad is not None:
                found[name].addcmul_(weight.grad, weight.grad)
    model.zero_grad(set_to_none=True)
    model.train(training)
    return {name: value / max(tokens, 1) for name, value in found.items()}


class Anchor:
    """The penalty's gradient on a model in training, in full or by LoRA, whose adapters move weights by s·B·A."""

    def __init__(self, model: Any, importance: dict[str, Tensor], weight: float) -> None:  # noqa: ANN401  # transformers and peft are untyped
        """`model`: as it is trained, before its first step. Full training keeps a copy of its weights.

        Raises:
            UserError: adapters that move weights otherwise than LoRA does.
        """
        from accelerate.utils import is_peft_model

        self._weight = weight
        self._full: list[tuple[Tensor, Tensor, Tensor]] = []
        self._adapters: list[tuple[Any, Tensor]] = []
        if not is_peft_model(model):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    self._full.append((parameter, parameter.detach().clone(), importance[name]))
            return
        for name, module in model.named_modules():
            own = importance.get(f"{name.removeprefix('base_model.model.')}.weight")
            if own is not None and hasattr(module, "get_delta_weight"):
                self._adapters.append((module, own))
        (config,) = model.peft_config.values()
        plain = getattr(config, "init_lora_weights", None) is True and not getattr(config, "use_dora", False)
        if not self._adapters or not plain:
            raise UserError(
                "ewc_weight holds weights by how far they have moved, which is known of full training and of the "
                "adapters lora, rslora and lora_plus; choose one of these, or leave ewc_weight out"
            )

    def add_gradient(self, share: float) -> float:
        """Add `share` of the penalty's gradient to the weights' gradients.

        Returns:
            The whole penalty, nats a token.
        """
        total = 0.0
        with torch.no_grad():
            for parameter, before, importance in self._full:
                moved = parameter - before
                pull = importance * moved
                total += float((pull * moved).sum())
                if parameter.grad is not None:
                    parameter.grad.add_(pull, alpha=self._weight * share)
        for module, importance in self._adapters:
            (name,) = module.active_adapters
            delta = module.get_delta_weight(name).float()
            moved_by = (importance * delta * delta).sum()
            torch.autograd.backward(0.5 * self._weight * share * moved_by)
            total += float(moved_by.detach())
        return 0.5 * self._weight * total
