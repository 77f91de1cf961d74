"""ONNX models in 8 bits, by ONNX Runtime's quantizer; embeddings, which it leaves alone, by ourselves.

Only weights: of `quantize_dynamic`, which has one scale for all that is multiplied with a matrix, nothing is left of
a language model whose activations have outliers (SmolLM2-135M: two of five greedy choices change).
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

from harness.runtimes import FILES

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["quantise_onnx"]

_BLOCK = 32
"""Weights that share a scale, as in GGUF's q8_0."""

_INT8_PRODUCTS = 4
"""`accuracy_level` of the weight-only kernels: what is multiplied with 8-bit weights is put in 8 bits by blocks too. At
the levels of float32 these kernels are several times slower on a CPU than float32 weights."""

_MIDDLE = 128
"""The unsigned step that stands for 0 where a quantizer gives no zero point."""

_TURNED = ".turned"


def quantise_onnx(dense: Path, folder: Path) -> None:
    """Write the `model.onnx` of the folder `dense` in 8 bits, a scale for each block of 32 weights of a column.

    Embeddings that are also the output matrix are read from its 8 bits; others get a scale for each row.
    """
    with _logging_kept():
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    nbits.logger.setLevel(logging.WARNING)
    model = onnx.load(dense / FILES["onnxruntime"])
    _turn_heads(model.graph)
    quantizer = nbits.MatMulNBitsQuantizer(
        model, bits=8, block_size=_BLOCK, is_symmetric=True, accuracy_level=_INT8_PRODUCTS
    )
    quantizer.process()
    found: onnx.ModelProto = quantizer.model.model
    _embeddings(found.graph)
    file = folder / FILES["onnxruntime"]
    onnx.save_model(found, file, save_as_external_data=True, location=f"{file.name}.data")


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    # Importing the quantizer sets up logging for the whole process, and lets everybody's details through.
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _turn_heads(graph: "onnx.GraphProto") -> None:
    """Turn over matrices that are turned over at run time (embeddings that are the output matrix too): the quantizer
    sees constants only."""
    tensors = {t.name: t for t in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Transpose"]:
        tensor = tensors.get(node.input[0])
        if tensor is None or len(tensor.dims) != 2:
            continue
        turned = np.ascontiguousarray(numpy_helper.to_array(tensor).T)
        graph.initializer.append(numpy_helper.from_array(turned, tensor.name + _TURNED))
        for reader in graph.node:
            for i, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[i] = tensor.name + _TURNED
        graph.node.remove(node)


def _embeddings(graph: "onnx.GraphProto") -> None:
    """Put 8 bits in the place of float matrices of which only rows are gathered."""
    tensors = {t.name: t for t in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for name, nodes in readers.items():
        tensor = tensors.get(name)
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) != 2:
            continue
        if any(node.op_type != "Gather" or node.input[0] != name for node in nodes):
            continue
        shared = next(
            (n for n in graph.node if n.op_type == "MatMulNBits" and n.input[1].startswith(name + _TURNED)), None
        )
        for node in nodes:
            made = _by_rows(graph, tensor, node) if shared is None else _by_blocks(tensor, node, shared)
            _replace(graph, node, made)
        graph.initializer.remove(tensor)


def _by_rows(
    graph: "onnx.GraphProto", tensor: "onnx.TensorProto", node: "onnx.NodeProto"
) -> "Iterable[onnx.NodeProto]":
    steps, scale = _rounded_rows(numpy_helper.to_array(tensor))
    table, scales, out = f"{tensor.name}.steps", f"{tensor.name}.scales", node.output[0]
    if table not in {t.name for t in graph.initializer}:
        graph.initializer.append(numpy_helper.from_array(steps, table))
        graph.initializer.append(numpy_helper.from_array(scale, scales))
    yield helper.make_node("Gather", [table, node.input[1]], [f"{out}.steps"])
    yield helper.make_node("Cast", [f"{out}.steps"], [f"{out}.cast"], to=onnx.TensorProto.FLOAT)
    yield helper.make_node("Gather", [scales, node.input[1]], [f"{out}.scales"])
    yield helper.make_node("Mul", [f"{out}.cast", f"{out}.scales"], [out])


def _by_blocks(
    tensor: "onnx.TensorProto", node: "onnx.NodeProto", head: "onnx.NodeProto"
) -> "Iterable[onnx.NodeProto]":
    """Rows of the output matrix [vocabulary, blocks, 32] as `MatMulNBits` has it, its scales [vocabulary × blocks]."""
    rows, width = tensor.dims
    out, ids = node.output[0], node.input[1]

    def constant(name: str, value: "NDArray[np.generic]") -> "onnx.NodeProto":
        return helper.make_node("Constant", [], [f"{out}.{name}"], value=numpy_helper.from_array(value))

    yield constant("table_shape", np.array([rows, -1, 1], np.int64))
    yield constant("row_shape", np.array([0, 0, width], np.int64))
    yield constant("middle", np.array(_MIDDLE, np.float32))
    yield helper.make_node("Reshape", [head.input[2], f"{out}.table_shape"], [f"{out}.all_scales"])
    yield helper.make_node("Gather", [f"{out}.all_scales", ids], [f"{out}.scales"])
    yield helper.make_node("Gather", [head.input[1], ids], [f"{out}.steps"])
    yield helper.make_node("Cast", [f"{out}.steps"], [f"{out}.cast"], to=onnx.TensorProto.FLOAT)
    yield helper.make_node("Sub", [f"{out}.cast", f"{out}.middle"], [f"{out}.centred"])
    yield helper.make_node("Mul", [f"{out}.centred", f"{out}.scales"], [f"{out}.blocks"])
    yield helper.make_node("Reshape", [f"{out}.blocks", f"{out}.row_shape"], [out])


def _replace(graph: "onnx.GraphProto", node: "onnx.NodeProto", made: "Iterable[onnx.NodeProto]") -> None:
    at = list(graph.node).index(node)
    graph.node.remove(node)
    for offset, one in enumerate(made):
        graph.node.insert(at + offset, one)


def _rounded_rows(dense: "NDArray[np.float32]") -> "tuple[NDArray[np.int8], NDArray[np.float32]]":
    """Steps [rows, columns] and scales [rows, 1], symmetric, to the nearest step."""
    largest = np.abs(dense).max(axis=1, keepdims=True)
    scale = (np.maximum(largest, np.finfo(np.float32).tiny) / 127).astype(np.float32)
    return np.rint(dense / scale).astype(np.int8), scale
