"""Post-training quantisation: weights, and for some schemes activations, in 8 or 4 bits.

Rounding to nearest by torchao; GPTQ (Frantar et al. 2022, arXiv:2210.17323) and SmoothQuant (Xiao et al. 2022,
arXiv:2211.10438) by llmcompressor. Whatever the scheme, the matrices stay packed on disk and in memory; in memory a
matrix is made dense, where its scheme needs that, for the length of one product. AWQ is left out: llmcompressor runs it
on accelerators only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.errors import UserError
from harness.method import Context, Inputs, Method, Params, Trained, tunable
from methods._quant_calibrated import gptq
from methods._quant_format import Grid, check_groups, linear_names
from methods._quant_round import nearest, nearest_float8
from methods._quant_verify import Before, finish_quantised, need_libraries
from methods._rows import instruction_rows, training_order
from methods._trl import need_dataset

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

__all__ = ["Quantize", "QuantizeParams", "Scheme", "grid_of"]

Scheme = Literal[
    "int8_weight_only",
    "int8_dynamic",
    "int4_weight_only",
    "int4_dynamic",
    "gptq_w4",
    "smoothquant_w8a8",
    "fp8",
]


@dataclass(frozen=True)
class _Kind:
    bits: Literal[4, 8]
    activations: Literal["symmetric", "asymmetric"] | None = None
    calibrated: bool = False
    row_wise: bool = False
    """Whether the scheme is defined with one symmetric scale a row only."""


_KINDS: Mapping[Scheme, _Kind] = {
    "int8_weight_only": _Kind(8),
    "int8_dynamic": _Kind(8, "asymmetric"),
    "int4_weight_only": _Kind(4),
    "int4_dynamic": _Kind(4, "asymmetric"),
    "gptq_w4": _Kind(4, calibrated=True),
    "smoothquant_w8a8": _Kind(8, "symmetric", calibrated=True, row_wise=True),
    "fp8": _Kind(8, "symmetric", row_wise=True),
}


class QuantizeParams(Params):
    """Settings of post-training quantisation."""

    scheme: Scheme = Field(
        "int8_weight_only",
        description="int8_weight_only and int4_weight_only round weights to nearest; int8_dynamic and int4_dynamic "
        "round each token's activations to 8 bits too; gptq_w4 is 4-bit GPTQ; smoothquant_w8a8 is SmoothQuant, then "
        "8-bit GPTQ, with 8-bit activations; fp8 is e4m3 weights and activations, on a GPU that has it",
    )
    granularity: Literal["channel", "group"] | None = Field(
        None, description="what shares a scale: a row of a matrix, or group_size columns of it; null: rows for 8 bits, "
        "groups for 4"
    )  # fmt: skip
    group_size: int = Field(64, ge=8, description="columns of a group; must divide every row of every matrix")
    symmetric: bool = Field(True, description="a grid centred on 0; false adds a zero point to each scale")
    quantize_head: bool = Field(
        False, description="also the output head; refused where the head is the input embedding"
    )
    dataset: str | None = Field(
        "instructions",
        description="calibration set of kind instructions (prompt, completion), which gptq_w4 and smoothquant_w8a8 "
        "read; the other schemes look at no data",
    )
    calibration_rows: int = Field(
        128, ge=1, description="rows, drawn by the seed without repetition, on which layers' inputs are seen"
    )
    max_length: int = Field(512, ge=8, description="tokens of a calibration row; longer rows are left out")
    dampening: float = Field(
        0.01, gt=0, le=1, description="GPTQ: added to the Hessian's diagonal, as a fraction of its mean"
    )
    smoothing: float = Field(
        0.5, ge=0, le=1,
        description="SmoothQuant: how much of the activations' outliers is moved into the weights (0 none, 1 all)",
        json_schema_extra=tunable(0.3, 0.9),
    )  # fmt: skip


def grid_of(
    scheme: Scheme, granularity: Literal["channel", "group"] | None, group_size: int, *, symmetric: bool
) -> Grid:
    """The grid of a scheme.

    Raises:
        UserError: the scheme is not defined in this form.
    """
    kind = _KINDS[scheme]
    if kind.row_wise and (granularity == "group" or not symmetric):
        raise UserError(
            f"{scheme} has one symmetric scale a row: expected granularity channel (or null), symmetric true"
        )
    grouped = granularity == "group" or (granularity is None and kind.bits == 4)
    return Grid(
        kind.bits,
        group_size if grouped else None,
        symmetric,
        kind.activations,
        "float" if scheme == "fp8" else "int",
    )


class Quantize(Method[QuantizeParams]):
    """The policy with its matrices in 8 or 4 bits."""

    name = "quantize"
    summary = "post-training quantisation: weights (and activations) in 8 or 4 bits, without training"
    paper = "Frantar et al. 2022, arXiv:2210.17323; Xiao et al. 2022, arXiv:2211.10438"
    version = 1
    params = QuantizeParams
    needs = frozenset({"policy"})
    dataset_kind = "instructions"
    compresses = True
    libraries = ("torchao", "llmcompressor", "compressed-tensors")

    @classmethod
    def imports(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """What rounds, what packs, and for the calibrated schemes llmcompressor."""
        calibrated = settings.get("scheme") in {name for name, kind in _KINDS.items() if kind.calibrated}
        return dict.fromkeys(
            ("torchao", "compressed_tensors", *(["llmcompressor"] if calibrated else [])), "compression"
        )

    @classmethod
    def deploys(cls, settings: Mapping[str, object]) -> bool:
        """True: no gradient reaches weights that are integers."""
        return True

    @classmethod
    def runs_on(cls, settings: Mapping[str, object]) -> frozenset[str]:
        """torch, as it is or compiled by inductor; TensorRT knows none of the kernels."""
        return frozenset({"eager", "inductor"})

    def run(self, inputs: Inputs, params: QuantizeParams, context: Context) -> Trained:
        """Quantise, write, load again and check.

        Raises:
            UserError: a package, a GPU, the dataset or a usable row is missing; a group size does not fit; the scheme
                is not defined in this form; the policy cannot be quantised.
            InfeasibleError: the calibration or the quantised model is not finite.
            PrunedError: the stage is past its deadline.
        """
        kind = _KINDS[params.scheme]
        need_libraries("torchao", "compressed_tensors", *(["llmcompressor"] if kind.calibrated else []))
        grid = grid_of(params.scheme, params.granularity, params.group_size, symmetric=params.symmetric)
        if params.scheme == "fp8":
            _need_fp8()
        policy = inputs.load("policy")
        names = linear_names(policy.model, head=params.quantize_head)
        check_groups(policy.model, names, grid)
        before = Before.of(policy)
        metrics: dict[str, float] = {}
        context.check()
        if kind.calibrated:
            rows = _calibration(inputs, policy.tokenizer, params, context)
            metrics = {"calibration_rows": len(rows), "calibration_tokens": sum(r["input_ids"].numel() for r in rows)}
            smoothing = params.smoothing if params.scheme == "smoothquant_w8a8" else None
            matrices = gptq(
                policy.model, policy.tokenizer, names, grid, rows, dampening=params.dampening, smoothing=smoothing
            )
        elif params.scheme == "fp8":
            matrices = nearest_float8(policy.model, names)
        else:
            matrices = nearest(policy.model, names, grid)
        context.check()
        return finish_quantised(policy.model, policy.tokenizer, matrices, grid, context.scratch, before, metrics)


def _need_fp8() -> None:
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        raise UserError(
            "scheme fp8 needs a GPU with fp8 units (compute capability 8.9 or higher) and torch sees none; "
            "int8_dynamic and smoothquant_w8a8 take as many bits and run on a CPU"
        )


def _calibration(
    inputs: Inputs, tokenizer: "PreTrainedTokenizerBase", params: QuantizeParams, context: Context
) -> "list[dict[str, Tensor]]":
    import torch

    rows = instruction_rows(need_dataset(inputs, "quantize"), tokenizer, params.max_length)
    order = training_order(len(rows), min(len(rows), params.calibration_rows), context.seed)
    ids = [torch.tensor([rows[i]["input_ids"]]) for i in order]
    return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
