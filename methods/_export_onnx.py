"""ONNX files of a model, through torch's exporter."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.runtimes import CONTROLS, FILES, cache_inputs, cache_outputs, import_runtime
from methods._export_graph import capture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["write_onnx"]


def write_onnx(model: "PreTrainedModel", folder: Path) -> None:
    """Write `model.onnx` and `model.onnx.data`, float32.

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
    converted.save(folder / FILES["onnxruntime"], external_data=True)
