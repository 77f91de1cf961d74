"""Structured pruning of feed-forward channels into a smaller model of the same architecture."""

from typing import TYPE_CHECKING

from pydantic import Field

from harness.errors import UserError
from harness.method import Context, Inputs, Method, Trained, tunable
from methods._pruning import (
    Importance,
    PruningParams,
    activation_importance,
    calibration_rows,
    count_parameters,
    decoder_layers,
    gradient_importance,
    keep_inputs,
    keep_outputs,
    linear,
    nearest,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["PruneMLP", "PruneMLPParams"]


class PruneMLPParams(PruningParams):
    """Settings of channel pruning."""

    fraction: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="fraction of the intermediate channels to remove from each layer, rounded to `multiple_of`",
        json_schema_extra=tunable(0.1, 0.5),
    )
    importance: Importance = Field(
        "activation",
        description="activation: mean norm of what a channel adds to the residual stream (after arXiv:2407.14679); "
        "gradient: |dL/dgate| of each channel (first-order Taylor, arXiv:2305.11627); weight: product of its norms in "
        "the three matrices, which needs no data and says little (benchmarks/compression_effects.py)",
    )
    multiple_of: int = Field(
        32,
        ge=1,
        description="channels are removed in steps of this many: matrix kernels are slow on odd sizes, and group-wise "
        "quantization after pruning wants whole groups",
    )


class PruneMLP(Method[PruneMLPParams]):
    """One-shot removal of the least important channels, equally many in every layer; to recover, let `sft` follow."""

    name = "prune_mlp"
    summary = "structured pruning of feed-forward channels by importance"
    paper = "Muralidharan et al. 2024, arXiv:2407.14679"
    version = 2
    params = PruneMLPParams
    needs = frozenset({"policy"})
    dataset_kind = "instructions"
    compresses = True

    def run(self, inputs: Inputs, params: PruneMLPParams, context: Context) -> Trained:
        """Prune the policy in place. The metrics count channels over all layers.

        Raises:
            UserError: unknown architecture, a fraction that removes nothing or everything, no usable calibration row.
            InfeasibleError: an importance is not finite.
            PrunedError: the stage is past its deadline.
        """
        policy = inputs.load("policy")
        model = policy.model
        layers = decoder_layers(model)
        channels = model.config.intermediate_size
        wanted = _channels_to_remove(channels, params)
        score = _importance(self.name, inputs, params, context)
        before = count_parameters(model)
        for layer, layer_score in zip(layers, score, strict=True):
            kept = layer_score.argsort(descending=True, stable=True)[: channels - wanted].sort().values
            _cut(layer.get_submodule("mlp"), kept)
        model.config.intermediate_size = channels - wanted
        return Trained(
            model=model,
            tokenizer=policy.tokenizer,
            metrics={
                "channels_removed": float(wanted * len(layers)),
                "fraction_removed": wanted / channels,
                "parameters": count_parameters(model),
                "parameters_before": before,
            },
        )


def _channels_to_remove(channels: int, params: PruneMLPParams) -> int:
    wanted = nearest(params.fraction, channels / params.multiple_of) * params.multiple_of
    if 0 < wanted < channels:
        return wanted
    most = (channels - 1) // params.multiple_of * params.multiple_of
    advice = (
        f"take {params.multiple_of / channels:.4f} to {most / channels:.4f}, or a smaller multiple_of"
        if most
        else "take a smaller multiple_of"
    )
    raise UserError(
        f"fraction {params.fraction:g} in steps of {params.multiple_of} would remove {wanted} of the {channels} "
        f"channels of each layer; at least one step must go and one channel must stay: {advice}"
    )


def _importance(method: str, inputs: Inputs, params: PruneMLPParams, context: Context) -> "Tensor":
    """Importance of every channel: layers × channels, float64."""
    import torch

    policy = inputs.load("policy")
    layers = decoder_layers(policy.model)
    if params.importance == "weight":
        return torch.stack([_weight_norm(layer) for layer in layers])
    measure = activation_importance if params.importance == "activation" else gradient_importance
    rows = calibration_rows(inputs, policy.model, policy.tokenizer, params, context, method)
    readers = [linear(layer, "mlp.down_proj") for layer in layers]
    return measure(policy.model, readers, policy.model.config.intermediate_size, rows, context)


def _weight_norm(layer: "nn.Module") -> "Tensor":
    """Product of each channel's L2 norms in gate, up and down: channels, float64.

    The product and not the sum, and with the gain of the norm before: a scale moved from `up` to `down`, or from the
    norm to both that read it, changes nothing the model computes.
    """
    import torch

    gain = layer.get_parameter("post_attention_layernorm.weight").detach().double()
    norm: Tensor = torch.linalg.vector_norm(linear(layer, "mlp.down_proj").weight.detach().double(), dim=0)
    for name in ("mlp.gate_proj", "mlp.up_proj"):
        rows = linear(layer, name).weight.detach().double() * gain
        if (bias := linear(layer, name).bias) is not None:
            rows = torch.cat([rows, bias.detach().double()[:, None]], dim=1)
        norm = norm * torch.linalg.vector_norm(rows, dim=1)
    return norm.cpu()


def _cut(mlp: "nn.Module", kept: "Tensor") -> None:
    index = kept.to(linear(mlp, "down_proj").weight.device)
    for name in ("gate_proj", "up_proj"):
        keep_outputs(linear(mlp, name), index)
    keep_inputs(linear(mlp, "down_proj"), index)
    if hasattr(mlp, "intermediate_size"):
        setattr(mlp, "intermediate_size", len(kept))  # noqa: B010  # a plain attribute, which mypy takes for a module
