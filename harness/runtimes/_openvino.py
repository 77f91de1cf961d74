"""OpenVINO on the CPU, in float32 whatever the machine could do faster."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino

from harness.errors import UserError
from harness.runtimes._protocol import CONTROLS, Cache, cache_inputs, cache_outputs, layers_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OpenvinoRuntime", "load"]

_EXACT = {
    # Left alone, it computes in bfloat16 where the CPU can, keeps keys and values in 8 bits, and quantises what goes
    # into a product with 8-bit weights: the target would not be what it says.
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "NUM_STREAMS": "1",
    # Pinned threads of two processes can share one core while another is idle.
    "ENABLE_CPU_PINNING": "NO",
}


def load(file: Path, threads: int) -> "OpenvinoRuntime":
    """Open `openvino_model.xml` on this many threads.

    Raises:
        UserError: OpenVINO cannot load it, or it is no graph of `methods/export.py`.
    """
    try:
        compiled = openvino.Core().compile_model(file, "CPU", {**_EXACT, "INFERENCE_NUM_THREADS": str(threads)})
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot load {file}: {error}") from error
    names = [i.get_any_name() for i in compiled.inputs]
    return OpenvinoRuntime(compiled, layers_of(names, file))


class OpenvinoRuntime:
    """A compiled graph of `layers` layers: a `harness.runtimes.Runtime` whose cache are NumPy arrays."""

    def __init__(self, compiled: "openvino.CompiledModel", layers: int) -> None:
        self._request = compiled.create_infer_request()
        self._past = cache_inputs(layers)
        self._outputs = [compiled.output(name) for name in ("logits", *cache_outputs(layers))]
        shapes = [compiled.input(name).partial_shape for name in self._past]
        self._shapes = [(shape[1].get_length(), shape[3].get_length()) for shape in shapes]

    def empty(self, batch: int) -> Cache:
        """Keys and values of no token."""
        return [np.zeros((batch, heads, 0, width), np.float32) for heads, width in self._shapes]

    def forward(
        self,
        tokens: "NDArray[np.int64]",
        mask: "NDArray[np.int64]",
        positions: "NDArray[np.int64]",
        rows: "NDArray[np.int64]",
        cache: Cache,
    ) -> "tuple[NDArray[np.float32], Cache]":
        """See `Runtime.forward`."""
        given: dict[str, Any] = dict(zip(CONTROLS, (tokens, mask, positions, rows), strict=True))
        given.update(zip(self._past, cache, strict=True))
        # Outputs are copied: the request's own memory is written over by its next pass, of which they are the past.
        found = self._request.infer(given, share_inputs=True, share_outputs=False)
        logits, *present = (found[output] for output in self._outputs)
        return logits, present

    def select(self, cache: Cache, rows: "NDArray[np.int64]") -> Cache:
        """See `Runtime.select`."""
        return [np.ascontiguousarray(part[rows]) for part in cache]

    def weight_bytes(self) -> None:
        """OpenVINO does not tell."""
        return
