"""Structured pruning of attention heads, in whole key-value groups, into a smaller model of the same architecture."""

from typing import TYPE_CHECKING, Literal

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
    loadable,
    nearest,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["PruneHeads", "PruneHeadsParams"]


class PruneHeadsParams(PruningParams):
    """Settings of head pruning."""

    fraction: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="fraction of the key-value groups (each with all its query heads) to remove, rounded to whole "
        "groups",
        json_schema_extra=tunable(0.1, 0.5),
    )
    importance: Importance = Field(
        "gradient",
        description="gradient: |dL/dgate| of each head (arXiv:1905.10650); activation: norm of what a group adds to "
        "the residual stream (after arXiv:2407.14679); weight: norm of its value-output map, which needs no data and "
        "says little (benchmarks/compression_effects.py)",
    )
    scope: Literal["uniform", "global"] = Field(
        "uniform",
        description="uniform: the same number of groups leaves every layer; global: groups of all layers are ranked "
        "together. A configuration has one head count for all layers, so after global pruning each layer is stored as "
        "wide as the widest one, with zeros for what is pruned: exact, but smaller and faster only as far as "
        "every layer lost groups (metrics heads_removed, heads_zeroed, parameters)",
    )


class PruneHeads(Method[PruneHeadsParams]):
    """One-shot removal of the least important key-value groups; to recover, let `sft` follow in the recipe."""

    name = "prune_heads"
    summary = "structured pruning of attention heads (whole key-value groups) by importance"
    paper = "Michel et al. 2019, arXiv:1905.10650"
    version = 2
    params = PruneHeadsParams
    needs = frozenset({"policy"})
    dataset_kind = "instructions"
    compresses = True

    def run(self, inputs: Inputs, params: PruneHeadsParams, context: Context) -> Trained:
        """Prune the policy in place.

        The metrics count heads over all layers: `heads_removed` are gone from the weights, `heads_zeroed` (global
        scope only) are still stored, as zeros; `fraction_removed` is the share of both.

        Raises:
            UserError: unknown architecture; a fraction that removes nothing or everything, or leaves a head count
                that the configuration refuses; no usable calibration row.
            InfeasibleError: an importance is not finite.
            PrunedError: the stage is past its deadline.
        """
        policy = inputs.load("policy")
        model = policy.model
        layers = decoder_layers(model)
        heads, groups = model.config.num_attention_heads, model.config.num_key_value_heads
        # Before the calibration: a fraction that cannot be had should not cost minutes.
        wanted = _groups_to_remove(model, params)
        score = _importance(self.name, inputs, params, context)
        kept = _uniform(score, wanted) if params.scope == "uniform" else _global(score, wanted)
        width = max(len(k) for k in kept)
        while not loadable(model, num_attention_heads=width * (heads // groups), num_key_value_heads=width):
            width += 1
        before = count_parameters(model)
        for index, layer in enumerate(layers):
            # The best of the pruned fill the layer up, for the order's sake; they become zeros.
            ranking = _descending(score[index])
            filled = [*kept[index], *(g for g in ranking if g not in kept[index])][:width]
            _cut(layer.get_submodule("self_attn"), sorted(filled), set(kept[index]), groups)
            context.log(index + 1, len(layers), {"groups_kept": float(len(kept[index]))})
        _configure(model, layers, width)
        per_group = heads // groups
        removed = (groups - width) * len(layers) * per_group
        zeroed = sum(width - len(k) for k in kept) * per_group
        return Trained(
            model=model,
            tokenizer=policy.tokenizer,
            metrics={
                "heads_removed": float(removed),
                "heads_zeroed": float(zeroed),
                "fraction_removed": (removed + zeroed) / (heads * len(layers)),
                "parameters": count_parameters(model),
                "parameters_before": before,
            },
        )


def _groups_to_remove(model: "PreTrainedModel", params: PruneHeadsParams) -> int:
    """Groups to remove: of each layer (uniform), or of all layers together (global)."""
    config = model.config
    groups, layers = config.num_key_value_heads, config.num_hidden_layers
    if groups == 1:
        raise UserError("the model has one key-value group in each layer, and one must stay: no head can be removed")
    if params.scope == "global":
        total, most = groups * layers, (groups - 1) * layers
        wanted = nearest(params.fraction, total)
        if 1 <= wanted <= most:
            return wanted
        raise UserError(
            f"fraction {params.fraction:g} would remove {wanted} of {total} key-value groups ({groups} in each of "
            f"{layers} layers); at least 1 must go and one in each layer must stay: take {1 / total:.4f} to "
            f"{most / total:.4f}"
        )
    per_group = config.num_attention_heads // groups
    possible = [
        count
        for count in range(1, groups)
        if loadable(model, num_attention_heads=(groups - count) * per_group, num_key_value_heads=groups - count)
    ]
    wanted = nearest(params.fraction, groups)
    if wanted in possible:
        return wanted
    choices = ", ".join(f"{count / groups:.3f} ({count})" for count in possible)
    why = (
        f"{config.model_type} models cannot have {(groups - wanted) * per_group} heads at a width of "
        f"{config.hidden_size}"
        if 0 < wanted < groups
        else "at least one must go and one must stay"
    )
    raise UserError(
        f"fraction {params.fraction:g} would remove {wanted} of the {groups} key-value groups of each layer, but "
        f"{why}; fractions that work (groups removed): {choices}"
    )


def _importance(method: str, inputs: Inputs, params: PruneHeadsParams, context: Context) -> "Tensor":
    """Importance of every group: layers × groups, float64."""
    import torch

    policy = inputs.load("policy")
    model, config = policy.model, policy.model.config
    groups = config.num_key_value_heads
    layers = decoder_layers(model)
    if params.importance == "weight":
        return torch.stack([_value_output_norm(layer, groups) for layer in layers])
    readers = [linear(layer, "self_attn.o_proj") for layer in layers]
    rows = calibration_rows(inputs, model, policy.tokenizer, params, context, method)
    if params.importance == "activation":
        return activation_importance(model, readers, groups, rows, context)
    by_head = gradient_importance(model, readers, config.num_attention_heads, rows, context)
    return by_head.reshape(len(readers), groups, -1).sum(-1)


def _value_output_norm(layer: "nn.Module", groups: int) -> "Tensor":
    """Frobenius norm of each group's map from the normed stream through its values and back: groups, float64.

    The product and not its factors, the norm's gain among them: a scale moved from one to another changes nothing the
    model computes.
    """
    import torch

    value = linear(layer, "self_attn.v_proj").weight.detach().double()
    value = value * layer.get_parameter("input_layernorm.weight").detach().double()
    if (bias := linear(layer, "self_attn.v_proj").bias) is not None:
        value = torch.cat([value, bias.detach().double()[:, None]], dim=1)
    value = value.reshape(groups, -1, value.shape[1])
    output = linear(layer, "self_attn.o_proj").weight.detach().double()
    # hidden × groups × heads of the group × head size; |O V|² = tr(OᵀO VVᵀ).
    output = output.reshape(len(output), groups, -1, value.shape[1])
    outer = torch.einsum("ogha,oghb->gab", output, output)
    return torch.einsum("gab,gac,gbc->g", outer, value, value).clamp_min(0).sqrt().cpu()


def _descending(score: "Tensor") -> list[int]:
    return [int(i) for i in score.argsort(descending=True, stable=True)]


def _uniform(score: "Tensor", wanted: int) -> list[list[int]]:
    return [_descending(layer)[: score.shape[1] - wanted] for layer in score]


def _global(score: "Tensor", wanted: int) -> list[list[int]]:
    """Remove the groups that rank lowest over all layers, always leaving one in each.

    Scores are divided by their layer's L2 norm first, as Michel et al. do: gradients and norms grow and shrink with
    depth for reasons that say nothing about a head.
    """
    normed = score / score.norm(dim=1, keepdim=True).clamp_min(1e-30)
    groups = score.shape[1]
    kept = [_descending(layer) for layer in normed]
    for place in reversed(_descending(normed.flatten())):
        layer, group = divmod(place, groups)
        if wanted and len(kept[layer]) > 1:
            kept[layer].remove(group)
            wanted -= 1
    return kept


def _cut(attention: "nn.Module", stored: list[int], alive: set[int], groups: int) -> None:
    """Keep the rows and columns of the stored groups, and zero those of them that are not alive.

    All four projections become zero, biases too: then values and their gradients vanish, and training that follows
    cannot bring a pruned head back.
    """
    import torch

    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        projection = linear(attention, name)
        columns = name == "o_proj"
        size = projection.weight.shape[1 if columns else 0] // groups
        index = torch.cat([torch.arange(g * size, (g + 1) * size) for g in stored]).to(projection.weight.device)
        dead = torch.cat([torch.full((size,), g not in alive) for g in stored]).to(projection.weight.device)
        (keep_inputs if columns else keep_outputs)(projection, index)
        with torch.no_grad():
            (projection.weight.T if columns else projection.weight)[dead] = 0
            if projection.bias is not None and not columns:
                projection.bias[dead] = 0


def _configure(model: "PreTrainedModel", layers: "list[nn.Module]", width: int) -> None:
    config = model.config
    per_group = config.num_attention_heads // config.num_key_value_heads
    # Without it a reloaded model would divide the width by the smaller number of heads.
    config.head_dim = layers[0].get_submodule("self_attn").head_dim
    config.num_attention_heads, config.num_key_value_heads = width * per_group, width
    for layer in layers:
        attention = layer.get_submodule("self_attn")
        sizes = {"num_heads": width * per_group, "num_key_value_heads": width, "num_key_value_groups": per_group}
        for name, value in sizes.items():
            if hasattr(attention, name):
                setattr(attention, name, value)
