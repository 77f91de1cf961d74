"""Depth pruning: whole decoder layers leave, those that change the hidden states least."""

import math
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.errors import InfeasibleError, UserError
from harness.method import Context, Inputs, Method, Trained, tunable
from methods._pruning import PruningParams, calibration_rows, count_parameters, decoder_layers, nearest, quiet_forward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["PruneLayers", "PruneLayersParams"]

_PER_LAYER = ("layer_types", "no_rope_layers")
"""Lists of a configuration with one entry for each layer."""


class PruneLayersParams(PruningParams):
    """Settings of depth pruning."""

    fraction: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="fraction of the layers to remove, rounded to whole layers",
        json_schema_extra=tunable(0.1, 0.5),
    )
    importance: Literal["block_influence", "angular"] = Field(
        "block_influence",
        description="block_influence: 1 - cosine between a layer's input and output, mean over all tokens; the lowest "
        "go, wherever they are (arXiv:2403.03853). angular: the run of neighbouring layers goes whose input and output "
        "are at the smallest angle, mean over the completion's tokens (arXiv:2403.17887)",
    )


class PruneLayers(Method[PruneLayersParams]):
    """One-shot removal of layers by the similarity of hidden states; to recover, let `sft` follow in the recipe."""

    name = "prune_layers"
    summary = "depth pruning: remove the layers that change the hidden states least"
    paper = "Men et al. 2024 (ShortGPT), arXiv:2403.03853; Gromov et al. 2024, arXiv:2403.17887"
    version = 1
    params = PruneLayersParams
    needs = frozenset({"policy"})
    dataset_kind = "instructions"
    compresses = True

    def run(self, inputs: Inputs, params: PruneLayersParams, context: Context) -> Trained:
        """Prune the policy in place.

        Each layer is logged as a step, counted from 1: its score (`block_influence`, or under `angular` the distance
        over the run that begins with it, in units of pi) and whether it was `removed`.

        Raises:
            UserError: unknown architecture, a fraction that removes nothing or everything, no usable calibration row.
            InfeasibleError: a hidden state is not finite.
            PrunedError: the stage is past its deadline.
        """
        policy = inputs.load("policy")
        model = policy.model
        layers = decoder_layers(model)
        wanted = _layers_to_remove(len(layers), params.fraction)
        rows = calibration_rows(inputs, model, policy.tokenizer, params, context, self.name)
        if params.importance == "angular":
            score = _similarity(model, layers, rows, context, span=wanted, angular=True)
            first = score.index(min(score))
            removed = set(range(first, first + wanted))
        else:
            score = _similarity(model, layers, rows, context, span=1, angular=False)
            removed = set(sorted(range(len(layers)), key=lambda i: score[i])[:wanted])
        for index in range(len(layers)):
            known: dict[str, float] = {params.importance: score[index]} if index < len(score) else {}
            context.log(index + 1, len(layers), {**known, "removed": float(index in removed)})
        before = count_parameters(model)
        _drop(model, layers, removed)
        return Trained(
            model=model,
            tokenizer=policy.tokenizer,
            metrics={
                "layers_removed": float(wanted),
                "fraction_removed": wanted / len(layers),
                "parameters": count_parameters(model),
                "parameters_before": before,
            },
        )


def _layers_to_remove(layers: int, fraction: float) -> int:
    wanted = nearest(fraction, layers)
    if 0 < wanted < layers:
        return wanted
    if layers == 1:
        raise UserError("the model has one layer, which must stay")
    raise UserError(
        f"fraction {fraction:g} would remove {wanted} of {layers} layers; at least one must go and one must stay: "
        f"take {1 / layers:.3f} to {(layers - 1) / layers:.3f}"
    )


def _similarity(
    model: "PreTrainedModel",
    layers: "list[nn.Module]",
    rows: "Sequence[dict[str, Tensor]]",
    context: Context,
    *,
    span: int,
    angular: bool,
) -> list[float]:
    """Mean distance between the hidden states before layer i and after layer i + span - 1, for every such i.

    Angular distance is arccos(cosine) / pi, and counts the completion's tokens: the paper takes a row's last token, but
    chat rows all end with the same one. Otherwise the distance is 1 - cosine, and every token counts.

    Returns:
        len(layers) - span + 1 values.

    Raises:
        InfeasibleError: a hidden state is not finite.
    """
    import torch

    # Hooks and not output_hidden_states: the last of those is behind the final norm.
    states: list[Tensor] = []

    def before(_module: object, args: "tuple[Tensor, ...]", kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])

    def after(_module: object, _args: object, output: Any) -> None:  # noqa: ANN401  # a tensor, in some models in a tuple
        states.append(output if isinstance(output, torch.Tensor) else output[0])

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(after))
    total = torch.zeros(len(layers) - span + 1, dtype=torch.float64)
    tokens = 0
    try:
        for row in quiet_forward(model, rows, context):
            mask = row["labels"][0] != -100 if angular else torch.ones_like(row["labels"][0], dtype=torch.bool)
            stack = torch.nn.functional.normalize(torch.stack([s[0][mask] for s in states]).double(), dim=-1)
            cosine = (stack[:-span] * stack[span:]).sum(-1).clamp(-1, 1)
            distance = cosine.arccos() / math.pi if angular else 1 - cosine
            total += distance.sum(-1).cpu()
            tokens += int(mask.sum())
            states.clear()
    finally:
        for hook in hooks:
            hook.remove()
    if not bool(total.isfinite().all()):
        raise InfeasibleError("a hidden state is not finite on the calibration rows")
    return [float(value) for value in total / tokens]


def _drop(model: "PreTrainedModel", layers: "list[nn.Module]", removed: set[int]) -> None:
    import torch

    config = model.config
    kept = [i for i in range(len(layers)) if i not in removed]
    lists = {name: [values[i] for i in kept] for name in _PER_LAYER if (values := getattr(config, name, None))}
    base = model.get_submodule("model")
    base.layers = torch.nn.ModuleList([layers[i] for i in kept])
    for index, i in enumerate(kept):
        for module in layers[i].modules():
            # The cache is indexed by it.
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", index)  # noqa: B010  # a plain attribute, which mypy takes for a module
    config.num_hidden_layers = len(kept)
    for name, values in lists.items():
        setattr(config, name, values)
    if hasattr(base, "has_sliding_layers"):
        base.has_sliding_layers = "sliding_attention" in config.layer_types
