"""Pruning of single weights, unstructured or two of every four: the same model with zeros in its matrices."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from harness.errors import InfeasibleError, UserError
from harness.method import Context, Inputs, Method, Trained, tunable
from methods._pruning import (
    PROJECTIONS,
    PruningParams,
    autocast,
    calibration_rows,
    count_parameters,
    decoder_layers,
    linear,
    quiet_forward,
)
from methods._sparsity import MARK
from methods._sparsity_criteria import Criterion, Observer, Pattern, magnitude, observers, zero_fraction

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["PruneWeights", "PruneWeightsParams"]


class PruneWeightsParams(PruningParams):
    """Settings of weight pruning."""

    criterion: Criterion = Field(
        "wanda",
        description="magnitude: the smallest of each matrix go, which needs no data; wanda: the smallest |weight| "
        "times norm of its input, in each row (arXiv:2306.11695); sparsegpt: those whose loss the others can best make "
        "up for, and they do (arXiv:2301.00774). wanda and sparsegpt need posttrain-harness[compression]",
    )
    sparsity: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="fraction of the weights of each linear layer that becomes zero; embeddings and output layer stay",
        json_schema_extra=tunable(0.1, 0.7),
    )
    pattern: Pattern = Field(
        "unstructured",
        description="unstructured: zeros anywhere; 2:4: two of every four neighbours along the inputs, which sparse "
        "tensor cores can skip (sparsity must be 0.5)",
    )

    @model_validator(mode="after")
    def _half(self) -> Self:
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError(f"pattern 2:4 is a sparsity of 0.5, not {self.sparsity:g}; leave sparsity out")
        return self


class PruneWeights(Method[PruneWeightsParams]):
    """One-shot pruning, layer by layer, each on the outputs of those pruned before it.

    What comes out is as large and as fast as before wherever dense kernels run it; training that follows in the
    recipe keeps the zeros.
    """

    name = "prune_weights"
    summary = "unstructured or 2:4 pruning of single weights (magnitude, Wanda, SparseGPT)"
    paper = "Sun et al. 2023 (Wanda), arXiv:2306.11695; Frantar & Alistarh 2023 (SparseGPT), arXiv:2301.00774"
    version = 1
    params = PruneWeightsParams
    needs = frozenset({"policy"})
    dataset_kind = "instructions"
    compresses = True
    libraries = ("llmcompressor",)

    @classmethod
    def imports(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """llmcompressor, but for magnitudes."""
        return {} if settings.get("criterion") == "magnitude" else {"llmcompressor": "compression"}

    def run(self, inputs: Inputs, params: PruneWeightsParams, context: Context) -> Trained:
        """Prune the policy in place.

        Each decoder layer is logged as a step, with the `zero_fraction` of its matrices. Of the metrics,
        `zero_fraction` is over all pruned matrices, `nonzero_parameters` over the whole model.

        Raises:
            UserError: unknown architecture, a width that is no multiple of four under 2:4, no usable calibration
                row, llmcompressor missing.
            InfeasibleError: activations or weights are not finite, or a Hessian cannot be inverted.
            PrunedError: the stage is past its deadline.
        """
        policy = inputs.load("policy")
        model = policy.model
        layers = decoder_layers(model)
        matrices = [matrix for layer in layers for matrix in _matrices(layer)]
        widths = sorted({m.in_features for m in matrices if m.in_features % 4})
        if params.pattern == "2:4" and widths:
            raise UserError(f"pattern 2:4 needs widths that are multiples of 4; this model has {widths}")
        if params.criterion == "magnitude":
            _by_magnitude(layers, params, context)
        else:
            with observers(params.criterion, params.sparsity, params.pattern) as observe:
                rows = calibration_rows(inputs, model, policy.tokenizer, params, context, self.name)
                _in_order(model, layers, rows, observe, context)
        setattr(model.config, MARK, True)
        return Trained(
            model=model,
            tokenizer=policy.tokenizer,
            metrics={
                "zero_fraction": zero_fraction(matrices),
                "nonzero_parameters": float(sum(int(p.count_nonzero()) for p in model.parameters())),
                "parameters": count_parameters(model),
            },
        )


def _matrices(layer: "nn.Module") -> "list[nn.Linear]":
    return [linear(layer, name) for name in PROJECTIONS]


def _replace(matrix: "nn.Linear", weight: "Tensor") -> None:
    import torch

    if not bool(weight.isfinite().all()):
        raise InfeasibleError("a pruned weight is not finite")
    with torch.no_grad():
        matrix.weight.copy_(weight)


def _by_magnitude(layers: "list[nn.Module]", params: PruneWeightsParams, context: Context) -> None:
    for index, layer in enumerate(layers):
        context.check()
        for matrix in _matrices(layer):
            _replace(matrix, magnitude(matrix.weight, params.sparsity, params.pattern))
        context.log(index + 1, len(layers), {"zero_fraction": zero_fraction(_matrices(layer))})


def _in_order(
    model: "PreTrainedModel",
    layers: "list[nn.Module]",
    rows: "list[dict[str, Tensor]]",
    observe: "Callable[[nn.Linear], Observer]",
    context: Context,
) -> None:
    """Prune the layers from the first to the last; the rows are kept in memory, at the width of the model."""
    states, arguments = _first_states(model, layers, rows, context)
    for index, layer in enumerate(layers):
        seen = {matrix: observe(matrix) for matrix in _matrices(layer)}
        hooks = [matrix.register_forward_pre_hook(_watch(observer)) for matrix, observer in seen.items()]
        calls = [(state, row[index]) for state, row in zip(states, arguments, strict=True)]
        try:
            _outputs(model, layer, calls, context)
        finally:
            for hook in hooks:
                hook.remove()
        for matrix, observer in seen.items():
            _replace(matrix, observer.pruned())
        states = _outputs(model, layer, calls, context)
        context.log(index + 1, len(layers), {"zero_fraction": zero_fraction(_matrices(layer))})


def _outputs(
    model: "PreTrainedModel", layer: "nn.Module", calls: "list[tuple[Tensor, dict[str, Any]]]", context: Context
) -> "list[Tensor]":
    import torch

    found = []
    for state, arguments in calls:
        context.check()
        with torch.no_grad(), autocast(model, context):
            output = layer(state, **arguments)
        # Some models' layers give tuples.
        found.append(output if isinstance(output, torch.Tensor) else output[0])
    return found


def _watch(observer: Observer) -> Any:  # noqa: ANN401  # a hook
    import torch

    def hook(_module: object, args: "tuple[Tensor, ...]") -> None:
        # Out of autocast, which would take sums of squares in bfloat16.
        with torch.autocast(args[0].device.type, enabled=False):
            observer.see(args[0].float())

    return hook


def _first_states(
    model: "PreTrainedModel", layers: "list[nn.Module]", rows: "list[dict[str, Tensor]]", context: Context
) -> "tuple[list[Tensor], list[list[dict[str, Any]]]]":
    """What the model gives its layers for each row: hidden states before the first; other arguments, layer by layer.

    By layer, as attention masks differ with the kind of attention.
    """
    states: list[Tensor] = []
    # The last list is that of the row under way.
    arguments: list[list[dict[str, Any]]] = [[]]

    def before(_module: object, args: "tuple[Tensor, ...]", kwargs: dict[str, Any]) -> None:
        others = dict(kwargs)
        hidden = args[0] if args else others.pop("hidden_states")
        if len(arguments[-1]) == 0:
            states.append(hidden)
        arguments[-1].append(others)

    hooks = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    try:
        for _ in quiet_forward(model, rows, context):
            arguments.append([])
    finally:
        for hook in hooks:
            hook.remove()
    return states, arguments[:-1]
