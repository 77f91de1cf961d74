"""What the pruning methods share: calibration, importance of units, smaller layers, loadable sizes.

A *reader* is the linear layer that reads the prunable units back into the residual stream: `o_proj` reads attention
heads, `down_proj` reads the channels of the feed-forward layer. Everything a unit does passes through its columns
there, so one definition of importance serves both.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.errors import InfeasibleError, UserError
from harness.method import Context, Inputs, Params
from methods._rows import instruction_rows, training_order
from methods._trl import need_dataset

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Row = dict[str, Tensor]

__all__ = [
    "PROJECTIONS",
    "Importance",
    "PruningParams",
    "activation_importance",
    "autocast",
    "calibration_rows",
    "count_parameters",
    "decoder_layers",
    "gradient_importance",
    "keep_inputs",
    "keep_outputs",
    "linear",
    "loadable",
    "nearest",
    "quiet_forward",
]

Importance = Literal["gradient", "activation", "weight"]

_KNOWN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types whose layers were checked to hold nothing sized by heads or channels but the projections handled here.

A list and not a look at the modules: others have the same names and, for one, a norm across all heads (OLMo 2).
"""

PROJECTIONS = (
    *(f"self_attn.{p}_proj" for p in "qkvo"),
    *(f"mlp.{p}_proj" for p in ("gate", "up", "down")),
)


class PruningParams(Params):
    """Settings of every pruning method."""

    dataset: str = Field(
        "instructions", description="calibration set of kind instructions (prompt, completion); nothing is trained"
    )
    calibration_rows: int = Field(
        64, ge=1, description="rows, drawn by the seed without repetition, on which importance is measured"
    )
    max_length: int = Field(512, ge=8, description="tokens of prompt and completion; longer rows are left out")


def decoder_layers(model: "PreTrainedModel") -> "list[nn.Module]":
    """The decoder layers of a Llama-like model.

    Raises:
        UserError: another architecture, or one whose projections are not plain linear layers (quantized, adapters).
    """
    import torch

    kind = model.config.model_type
    if kind not in _KNOWN:
        raise UserError(
            f"pruning does not know the architecture {type(model).__name__} (model type {kind!r}); "
            f"it knows {', '.join(_KNOWN)}"
        )
    layers = list(model.get_submodule("model.layers").children())
    for index, layer in enumerate(layers):
        for name in PROJECTIONS:
            # Exactly Linear: a quantized layer is a subclass whose weight cannot be cut by rows.
            if type(layer.get_submodule(name)) is not torch.nn.Linear:
                raise UserError(
                    f"{name} of layer {index} is a {type(layer.get_submodule(name)).__name__}, not an ordinary linear "
                    "layer; prune before quantizing, and merge adapters first"
                )
    return layers


def linear(module: "nn.Module", name: str) -> "nn.Linear":
    """The linear layer at this path below a module: what `decoder_layers` has seen to be one."""
    import torch

    found = module.get_submodule(name)
    if not isinstance(found, torch.nn.Linear):
        raise TypeError(f"{name} is a {type(found).__name__}")
    return found


def calibration_rows(
    inputs: Inputs,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    params: PruningParams,
    context: Context,
    method: str,
) -> "list[Row]":
    """Rows of `input_ids` and `labels` (1 × tokens each; labels of the prompt are -100) on the model's device.

    Raises:
        UserError: no dataset, no usable row, no chat template.
    """
    import torch

    rows = instruction_rows(need_dataset(inputs, method), tokenizer, params.max_length)
    order = training_order(len(rows), min(len(rows), params.calibration_rows), context.seed)
    return [{name: torch.tensor([ids], device=model.device) for name, ids in rows[i].items()} for i in order]


def count_parameters(model: "PreTrainedModel") -> float:
    """Parameters of the model, tied ones once."""
    return float(sum(p.numel() for p in model.parameters()))


def autocast(model: "PreTrainedModel", context: Context) -> "torch.autocast":
    """The stage's arithmetic for a forward pass; off for float32."""
    import torch

    return torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=context.precision == "bfloat16")


def quiet_forward(model: "PreTrainedModel", rows: "Sequence[Row]", context: Context) -> "Iterator[Row]":
    """Run the layers over each row alone, without gradient or logits, for what hooks see of it; yields the row after.

    One row at a time: there is no padding whose activations would have to be left out again.
    """
    import torch

    for step, row in enumerate(rows, 1):
        context.check()
        with torch.no_grad(), autocast(model, context):
            model.base_model(input_ids=row["input_ids"], use_cache=False)
        context.log(step, len(rows), {})
        yield row


def _finite(importance: "Tensor") -> "Tensor":
    if not bool(importance.isfinite().all()):
        raise InfeasibleError("an importance is not finite: the model's activations overflow on the calibration rows")
    return importance


def _units(values: "Tensor", units: int) -> "Tensor":
    """Split the last dimension into `units` runs of equally many: … × units × size."""
    return values.reshape(*values.shape[:-1], units, values.shape[-1] // units)


@contextlib.contextmanager
def _gates(readers: "Sequence[nn.Linear]", gates: int) -> "Iterator[list[Tensor]]":
    """Multiply each reader's input by `gates` factors of 1, one for each run of equally many columns."""
    import torch

    values = [torch.ones(gates, device=reader.weight.device, requires_grad=True) for reader in readers]

    def gate(value: "Tensor") -> Any:  # noqa: ANN401  # a hook
        return lambda _module, args: ((_units(args[0], gates) * value[:, None]).flatten(-2),)

    hooks = [reader.register_forward_pre_hook(gate(v)) for reader, v in zip(readers, values, strict=True)]
    try:
        yield values
    finally:
        for hook in hooks:
            hook.remove()


def gradient_importance(
    model: "PreTrainedModel", readers: "Sequence[nn.Linear]", gates: int, rows: "Sequence[Row]", context: Context
) -> "Tensor":
    """Mean over rows of |dL/dg|, for a gate g = 1 on each unit and L the row's mean loss on its completion (nats).

    To first order the change of the loss when the unit is removed (Michel et al. 2019, arXiv:1905.10650; for weights,
    Molchanov et al. 2019, arXiv:1906.10771, and LLM-Pruner, arXiv:2305.11627).

    Returns:
        readers × gates, float64, on the CPU.

    Raises:
        InfeasibleError: a gradient is not finite.
        PrunedError: the stage is past its deadline.
    """
    import torch

    total = torch.zeros(len(readers), gates, dtype=torch.float64)
    # Only the gates need gradients: this halves the work of the backward pass, and its memory.
    model.requires_grad_(False)
    try:
        with _gates(readers, gates) as values:
            for step, row in enumerate(rows, 1):
                context.check()
                with autocast(model, context):
                    loss = model(**row, use_cache=False).loss
                total += torch.stack(torch.autograd.grad(loss, values)).abs().double().cpu()
                context.log(step, len(rows), {"loss": float(loss.detach())})
    finally:
        model.requires_grad_(True)
    return _finite(total / len(rows))


def activation_importance(
    model: "PreTrainedModel", readers: "Sequence[nn.Linear]", units: int, rows: "Sequence[Row]", context: Context
) -> "Tensor":
    """Mean over tokens of the L2 norm of what each unit adds to the residual stream.

    Minitron (Muralidharan et al. 2024, arXiv:2407.14679) takes the norm of the unit's output before the reader. Behind
    the reader's columns it does not depend on how a scale is shared between the two, and sees a unit nobody reads.

    Returns:
        readers × units, float64, on the CPU.

    Raises:
        InfeasibleError: an activation is not finite.
        PrunedError: the stage is past its deadline.
    """
    import torch

    sums = torch.zeros(len(readers), units, dtype=torch.float64)
    tokens = 0

    def watch(index: int, reader: "nn.Linear") -> Any:  # noqa: ANN401  # a hook
        # |W x|² = xᵀ (WᵀW) x: a unit's contribution is never written out at the width of the model.
        columns = _units(reader.weight.detach().float(), units)
        gram = torch.einsum("ouv,ouw->uvw", columns, columns)

        def hook(_module: object, args: "tuple[Tensor, ...]") -> None:
            x = _units(args[0].detach().float().flatten(0, -2), units)
            # Out of autocast, which would take the products in bfloat16.
            with torch.autocast(x.device.type, enabled=False):
                squared = (torch.einsum("tuv,uvw->tuw", x, gram) * x).sum(-1)
            sums[index] += squared.clamp_min(0).sqrt().sum(0).double().cpu()

        return reader.register_forward_pre_hook(hook)

    hooks = [watch(index, reader) for index, reader in enumerate(readers)]
    try:
        for row in quiet_forward(model, rows, context):
            tokens += row["input_ids"].numel()
    finally:
        for hook in hooks:
            hook.remove()
    return _finite(sums / tokens)


def keep_outputs(linear: "nn.Linear", index: "Tensor") -> None:
    """Keep these rows (and biases) of a linear layer, in this order; the layer is changed in place."""
    import torch

    linear.weight = torch.nn.Parameter(linear.weight.detach()[index].clone())
    if linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.detach()[index].clone())
    linear.out_features = len(index)


def keep_inputs(linear: "nn.Linear", index: "Tensor") -> None:
    """Keep these columns of a linear layer, in this order; the layer is changed in place."""
    import torch

    linear.weight = torch.nn.Parameter(linear.weight.detach()[:, index].clone())
    linear.in_features = len(index)


def loadable(model: "PreTrainedModel", **changes: object) -> bool:
    """Whether the model's configuration accepts these values; `save_pretrained` refuses a model where it does not.

    Llama's wants the width to be a multiple of the number of heads, although its layers no longer need that.
    """
    config = copy.deepcopy(model.config)
    for name, value in changes.items():
        setattr(config, name, value)
    try:
        config.validate_architecture()
    except ValueError:
        return False
    return True


def nearest(fraction: float, units: float) -> int:
    """The whole number of units nearest to `fraction` of them; half a unit is not removed."""
    # The small term forgives 0.1 + 0.2: half a unit stays half a unit however the fraction was computed.
    return math.ceil(fraction * units - 0.5 - 1e-9)
