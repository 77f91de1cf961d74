"""ONNX files of a model: weights as they are, or in 8 bits, in blocks."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.errors import UserError
from harness.runtimes import CONTROLS, FILES, cache_inputs, cache_outputs, import_runtime
from methods._export_graph import capture

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedModel

__all__ = ["write_onnx"]


def write_onnx(model: "PreTrainedModel", weights: Literal["float32", "int8"], folder: Path, scratch: Path) -> None:
    """Write `model.onnx` and `model.onnx.data`.

    Args:
        model: the model, float32.
        weights: int8 has a scale for each block of 32 weights, and puts what is multiplied with them in 8 bits too.
        folder: where to.
        scratch: for files in between.

    Raises:
        UserError: torch cannot trace or convert the model.
    """
    import_runtime("onnxruntime")
    import torch

    program, layers, _ = capture(model)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[*CONTROLS, *cache_inputs(layers)],
            output_names=["logits", *cache_outputs(layers)],
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"export: torch cannot convert {type(model).__name__} to ONNX: {error}") from error
    if converted is None:
        raise UserError(f"export: torch converted {type(model).__name__} to nothing")
    dense = (folder if weights == "float32" else scratch) / FILES["onnxruntime"]
    converted.save(dense, external_data=True)
    if weights != "float32":
        from methods._export_onnx_int8 import quantise_blocks

        _save(quantise_blocks(dense), folder / FILES["onnxruntime"])


def _save(model: "onnx.ModelProto", file: Path) -> None:
    import onnx

    onnx.save_model(model, file, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{file.name}.data")
