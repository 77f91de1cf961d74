"""Quantised matrices and the folder they are saved as: compressed-tensors' packed format, which vLLM reads too.

One format for every scheme: how a matrix was rounded (to nearest, by GPTQ, in training) does not show in it. A 4-bit
matrix takes 4 bits a weight on disk, where torchao's own safetensors hold one byte for each.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["Grid", "Matrix", "check_groups", "linear_names", "save_quantised", "tensor_bytes"]


@dataclass(frozen=True)
class Grid:
    """What weights, and the inputs of their layer, are rounded to.

    Attributes:
        bits: of a weight.
        group_size: columns of a row that share a scale; None where the whole row does.
        symmetric: no zero point: the grid is centred on 0.
        activations: how each token's input is rounded to 8 bits when the model runs; None leaves it as it is.
        kind: integers, or the floating-point format e4m3.
    """

    bits: Literal[4, 8]
    group_size: int | None
    symmetric: bool = True
    activations: Literal["symmetric", "asymmetric"] | None = None
    kind: Literal["int", "float"] = "int"

    def groups(self, columns: int) -> int:
        """Scales a row has."""
        return 1 if self.group_size is None else columns // self.group_size

    @property
    def packed(self) -> bool:
        """Whether weights are saved in 32-bit words, and not one byte each."""
        # As compressed-tensors itself would choose, but for 4-bit weights beside rounded activations: it gives those a
        # byte each.
        return self.kind == "int" and (self.bits == 4 or self.activations is None)


@dataclass(frozen=True)
class Matrix:
    """A quantised weight: int8 (or float8) values [N, K], fp32 scale [N, G], and int8 zero points [N, G] or None."""

    values: "Tensor"
    scale: "Tensor"
    zero: "Tensor | None"

    def dense(self) -> "Tensor":
        """The weight [N, K] it stands for, in fp32."""
        groups = self.values.float().view(*self.scale.shape, -1)
        if self.zero is not None:
            groups = groups - self.zero[..., None]
        return (groups * self.scale[..., None]).flatten(1)


def linear_names(model: "PreTrainedModel", *, head: bool) -> list[str]:
    """The linear layers to quantise: all of them, the output head only where `head` says so.

    Raises:
        UserError: the head shares its matrix with the input embedding; the model is quantised already, or has adapters.
    """
    import torch

    output = model.get_output_embeddings()
    if head and output is not None and output.weight is model.get_input_embeddings().weight:
        raise UserError(
            "quantize_head: the output head of this model is its input embedding, which stays as it is; quantising the "
            "head would add a matrix instead of making one smaller: leave quantize_head out"
        )
    found = []
    for name, module in model.named_modules():
        if "linear" not in type(module).__name__.lower() or (module is output and not head):
            continue
        # Exactly Linear: a subclass has a weight of another kind.
        if type(module) is not torch.nn.Linear or type(module.weight.data) is not torch.Tensor:
            raise UserError(
                f"{name} is a {type(module).__name__}, not an ordinary linear layer: quantise once, as the last step"
            )
        found.append(name)
    if not found:
        raise UserError(f"{type(model).__name__} has no linear layer to quantise")
    return found


def check_groups(model: "PreTrainedModel", names: list[str], grid: Grid) -> None:
    """Whether every row divides into groups.

    Raises:
        UserError: it does not, with the layers and the group sizes that would do.
    """
    if grid.group_size is None:
        return
    widths: dict[str, int] = {name: model.get_submodule(name).in_features for name in names}
    wrong: dict[tuple[str, object], int] = {}
    for name, width in widths.items():
        if width % grid.group_size:
            key = (name.rpartition(".")[2], width)
            wrong[key] = wrong.get(key, 0) + 1
    if wrong:
        listed = ", ".join(f"{name} ({width} columns, {count} layers)" for (name, width), count in wrong.items())
        shared = math.gcd(*widths.values())
        fits = [str(n) for n in (16, 32, 64, 96, 128, 192, 256) if shared % n == 0]
        raise UserError(
            f"group_size={grid.group_size} does not divide the rows of {listed}; expected a divisor of {shared}"
            + (f": {', '.join(fits)}" if fits else "")
        )


def tensor_bytes(matrix: Matrix, grid: Grid) -> tuple[int, int]:
    """What the scheme says a matrix takes, in bytes: saved, and in memory once loaded (weights kept packed)."""
    rows, columns = matrix.values.shape
    scales = rows * grid.groups(columns)
    values = rows * math.ceil(columns * grid.bits / 32) * 4 if grid.packed else rows * columns
    stored = resident = values + 4 * scales
    if not grid.symmetric:
        stored += 4 * math.ceil(rows * grid.bits / 32) * grid.groups(columns)
        resident += scales
    if grid.packed:
        # The shape, two int64.
        stored += 16
    if grid.activations == "asymmetric" and grid.bits == 8 and grid.symmetric and grid.groups(columns) == 1:
        # Sums of the rows, by which the product of integers is put right for the inputs' zero point.
        resident += 4 * rows
    return stored, resident


def _saved(matrix: Matrix, grid: Grid) -> dict[str, "Tensor"]:
    """The tensors of one layer under the format's names."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    found = {"weight_scale": matrix.scale.float().contiguous()}
    if grid.packed:
        found["weight_packed"] = pack_to_int32(matrix.values, grid.bits).contiguous()
        found["weight_shape"] = torch.tensor(matrix.values.shape)
    else:
        found["weight"] = matrix.values.contiguous()
    if matrix.zero is not None:
        zero = matrix.zero.to(torch.int8)
        found["weight_zero_point"] = pack_to_int32(zero, grid.bits, packed_dim=0).contiguous() if grid.packed else zero
    return found


def _configuration(grid: Grid, ignore: list[str]) -> dict[str, object]:
    from compressed_tensors import __version__
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    name = "pack-quantized" if grid.packed else "int-quantized" if grid.kind == "int" else "float-quantized"
    inputs = QuantizationArgs(
        num_bits=8, type=grid.kind, strategy="token", dynamic=True, symmetric=grid.activations != "asymmetric"
    )
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(
            num_bits=grid.bits,
            type=grid.kind,
            symmetric=grid.symmetric,
            strategy="channel" if grid.group_size is None else "group",
            group_size=grid.group_size,
        ),
        input_activations=None if grid.activations is None else inputs,
        format=name,
    )
    config = QuantizationConfig(
        config_groups={"group_0": scheme}, format=name, quantization_status="compressed", ignore=ignore
    )
    dumped: dict[str, object] = json.loads(config.model_dump_json(exclude={"quant_method"}))
    return {**dumped, "quant_method": "compressed-tensors", "version": __version__}


def save_quantised(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    matrices: Mapping[str, Matrix],
    grid: Grid,
    folder: Path,
) -> None:
    """Write a model folder with these linear layers quantised and everything else as it is in the model.

    `harness.models.load_model` keeps them packed in memory. transformers alone loads the folder too; there the first
    forward pass makes the weights dense.
    """
    from huggingface_hub import save_torch_state_dict

    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, part = name.rpartition(".")
        # What is tied is saved once, under its first name: transformers ties it again.
        if (owner in matrices and part != "bias") or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        state[name] = tensor.detach().contiguous()
    for name, matrix in matrices.items():
        state.update({f"{name}.{part}": tensor.detach() for part, tensor in _saved(matrix, grid).items()})
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(state, folder, metadata={"format": "pt"})
    output = model.get_output_embeddings()
    ignore = [n for n, m in model.named_modules() if output is not None and m is output and n not in matrices]
    model.config.save_pretrained(folder)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = _configuration(grid, ignore)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
