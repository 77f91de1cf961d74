"""ONNX Runtime: keys and values stay in its own tensors from step to step."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from harness.errors import UserError
from harness.runtimes._protocol import CONTROLS, Cache, cache_inputs, cache_outputs, layers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OnnxRuntime", "load"]

_ERRORS = (states.Fail, states.InvalidProtobuf, states.InvalidGraph, states.InvalidArgument, states.NotImplemented,
           states.NoSuchFile, states.RuntimeException)  # fmt: skip
_ERRORS_ONLY = 3


def load(file: Path, threads: int) -> "OnnxRuntime":
    """Open `model.onnx` on this many threads.

    Raises:
        UserError: ONNX Runtime cannot load it, or it is no graph of `methods/export.py`.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except _ERRORS as error:
        raise UserError(f"ONNX Runtime cannot load {file}: {error}") from error
    names = [i.name for i in session.get_inputs()]
    return OnnxRuntime(session, layers_of(names, file))


class OnnxRuntime:
    """A graph of `layers` layers: a `harness.runtimes.Runtime` whose cache are OrtValues."""

    def __init__(self, session: "onnxruntime.InferenceSession", layers: int) -> None:
        self._session = session
        self._past = cache_inputs(layers)
        self._outputs = ["logits", *cache_outputs(layers)]
        shapes = {i.name: i.shape for i in session.get_inputs()}
        self._shapes = [(int(shapes[n][1]), int(shapes[n][3])) for n in self._past]

    def empty(self, batch: int) -> Cache:
        """Keys and values of no token."""
        return [_value(np.zeros((batch, heads, 0, width), np.float32)) for heads, width in self._shapes]

    def forward(
        self,
        tokens: "NDArray[np.int64]",
        mask: "NDArray[np.int64]",
        positions: "NDArray[np.int64]",
        rows: "NDArray[np.int64]",
        cache: Cache,
    ) -> "tuple[NDArray[np.float32], Cache]":
        """See `Runtime.forward`."""
        given = dict(zip(CONTROLS, map(_value, (tokens, mask, positions, rows)), strict=True))
        logits, *present = self._session.run_with_ort_values(
            self._outputs, {**given, **dict(zip(self._past, cache, strict=True))}
        )
        found: NDArray[np.float32] = logits.numpy()
        return found, present

    def select(self, cache: Cache, rows: "NDArray[np.int64]") -> Cache:
        """See `Runtime.select`."""
        return [_value(part.numpy()[rows]) for part in cache]

    def weight_bytes(self) -> None:
        """ONNX Runtime does not tell."""
        return


def _value(array: "NDArray[Any]") -> "onnxruntime.OrtValue":
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
