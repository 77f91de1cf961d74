"""Rounding to the nearest point of a grid, by torchao: after training (PTQ) and, straight through, during it (QAT).

Both go by one torchao configuration, so that at the same bits they differ in the weights alone.
"""

from typing import TYPE_CHECKING, Any

from harness.errors import InfeasibleError
from methods._quant_format import Grid, Matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["nearest", "nearest_float8", "prepare_training", "torchao_config", "unprepare"]


def torchao_config(grid: Grid) -> Any:  # noqa: ANN401  # torchao's configurations share no useful type
    """torchao's configuration of an integer grid."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quant_primitives import MappingType

    granularity = PerAxis(0) if grid.group_size is None else PerGroup(grid.group_size)
    mapping = MappingType.SYMMETRIC if grid.symmetric else MappingType.ASYMMETRIC
    kind = getattr(torch, f"int{grid.bits}")
    if grid.activations is None:
        return IntxWeightOnlyConfig(weight_dtype=kind, granularity=granularity, mapping_type=mapping)
    # torchao rounds inputs with a zero point only.
    return Int8DynamicActivationIntxWeightConfig(
        weight_dtype=kind, weight_granularity=granularity, weight_mapping_type=mapping
    )


def nearest(model: "PreTrainedModel", names: list[str], grid: Grid) -> dict[str, Matrix]:
    """Quantise these linear layers in place; the model then computes as torchao does, and the matrices are returned.

    Raises:
        InfeasibleError: a weight or a scale is not finite.
    """
    from torchao.quantization import quantize_

    wanted = set(names)
    quantize_(model, torchao_config(grid), filter_fn=lambda _module, name: name in wanted)
    found = {}
    for name in names:
        weight: Any = model.get_submodule(name).weight
        groups = (weight.shape[0], -1)
        zero = None if grid.symmetric else weight.zero_point.reshape(groups)
        found[name] = Matrix(weight.qdata, weight.scale.float().reshape(groups), zero)
        if not bool(found[name].scale.isfinite().all()):
            raise InfeasibleError(f"the weights of {name} are not finite")
    return found


def nearest_float8(model: "PreTrainedModel", names: list[str]) -> dict[str, Matrix]:
    """Round these layers to float8 (e4m3), one scale a row, in place: weights, and each token's inputs.

    Raises:
        InfeasibleError: a weight is not finite.
    """
    import torch

    from harness._packed import PackedLinear

    kind = torch.float8_e4m3fn
    found = {}
    for name in names:
        linear: Any = model.get_submodule(name)
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1, keepdim=True) / torch.finfo(kind).max).clamp_min(torch.finfo(torch.float32).tiny)
        if not bool(scale.isfinite().all()):
            raise InfeasibleError(f"the weights of {name} are not finite")
        found[name] = matrix = Matrix((weight / scale).to(kind), scale, None)
        packed = PackedLinear(
            matrix.values, scale, None, linear.bias, bits=8, in_features=weight.shape[1], activations="symmetric"
        )
        model.set_submodule(name, packed)
    return found


def prepare_training(model: "PreTrainedModel", names: list[str], grid: Grid) -> None:
    """Let these layers round their weights, and inputs where the grid says so, in every forward pass.

    The gradient passes the rounding as if it were not there (Bengio et al. 2013, arXiv:1308.3432).
    """
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    wanted = set(names)
    quantize_(model, QATConfig(torchao_config(grid), step="prepare"), filter_fn=lambda _module, name: name in wanted)


def unprepare(model: "PreTrainedModel", names: list[str]) -> None:
    """Ordinary linear layers again, with the weights as trained.

    Raises:
        RuntimeError: a layer did not round: what was trained is not what will be saved.
    """
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, FakeQuantizedLinear):
            raise RuntimeError(f"{name} was to be trained quantised and is a {type(module).__name__}")
        model.set_submodule(name, module.to_linear())
