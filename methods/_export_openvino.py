"""OpenVINO's files of a model, from torch's own graph: in float32, float16, or 8 bits with a scale for each row."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from harness.errors import UserError
from harness.runtimes import CONTROLS, FILES, cache_inputs, cache_outputs, import_runtime
from methods._export_graph import capture

if TYPE_CHECKING:
    import openvino
    from transformers import PreTrainedModel

__all__ = ["shrink_openvino", "write_openvino"]

_SMALL = 16
"""Matrices with fewer rows or columns stay as they are: there is nothing to save."""


def write_openvino(model: "PreTrainedModel", folder: Path) -> None:
    """Write `openvino_model.xml` and `.bin`, float32.

    Raises:
        UserError: torch cannot trace the model, or OpenVINO cannot convert it.
    """
    import_runtime("openvino")
    import openvino

    program, layers, heads = capture(model)
    try:
        graph = openvino.convert_model(program)
    except (RuntimeError, openvino.frontend.OpConversionFailure) as error:
        raise UserError(f"export: OpenVINO cannot convert {type(model).__name__}: {error}") from error
    for port, name in zip(graph.inputs, (*CONTROLS, *cache_inputs(layers)), strict=True):
        port.get_tensor().set_names({name})
    for port in graph.inputs[len(CONTROLS) :]:
        # The frontend leaves every axis but the last open.
        port.get_node().set_partial_shape(openvino.PartialShape([-1, heads, -1, port.partial_shape[3]]))
    graph.validate_nodes_and_infer_types()
    for port, name in zip(graph.outputs, ("logits", *cache_outputs(layers)), strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(graph, folder / FILES["openvino"], compress_to_fp16=False)


def shrink_openvino(dense: Path, weights: Literal["float16", "int8"], folder: Path) -> None:
    """Write the model of the folder `dense` with smaller weights.

    float16 halves the file, and OpenVINO makes float32 of it; int8 stays 8 bits wide in memory too.
    """
    import openvino

    graph = openvino.Core().read_model(dense / FILES["openvino"])
    if weights == "int8":
        _to_int8(graph)
    openvino.save_model(graph, folder / FILES["openvino"], compress_to_fp16=weights == "float16")


def _to_int8(graph: "openvino.Model") -> None:
    """Put int8 with a float32 scale for each row in the place of every matrix of products and embeddings.

    Symmetric, to the nearest step; the CPU plugin knows this form and multiplies from the 8 bits.
    """
    import openvino
    from openvino import opset13

    for constant in [op for op in graph.get_ops() if op.get_type_name() == "Constant"]:
        shape = constant.get_output_shape(0)
        if constant.get_element_type() != openvino.Type.f32 or len(shape) != 2 or min(shape) < _SMALL:
            continue
        readers = list(constant.output(0).get_target_inputs())
        if not {reader.get_node().get_type_name() for reader in readers} <= {"MatMul", "Gather"}:
            continue
        dense = constant.data
        scale = np.maximum(np.abs(dense).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / 127
        steps = np.rint(dense / scale).astype(np.int8)
        restored = opset13.multiply(opset13.convert(opset13.constant(steps), "f32"), opset13.constant(scale))
        for reader in readers:
            reader.replace_source_output(restored.output(0))
