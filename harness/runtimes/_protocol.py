"""What a runtime does with an exported model, and the names that exporter and runtime agree on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CONTROLS", "FILES", "Cache", "Runtime", "cache_inputs", "cache_outputs", "layers_of"]

FILES: Mapping[str, str] = {
    "onnxruntime": "model.onnx",
    "openvino": "openvino_model.xml",
    "llamacpp": "model.gguf",
}
"""Backend → the file of the export that it opens; others may lie beside it."""

CONTROLS = ("input_ids", "attention_mask", "position_ids", "logit_rows")
"""Inputs of an exported graph before those of the cache: tokens [B, T]; which of the past and present tokens are none
[B, P + T] (0: padding); positions [B, T]; the places among the T of which logits are wanted [K]. All int64."""

Cache = list[Any]
"""Keys and values, or whatever else a runtime holds of the past, in its own type."""


def cache_inputs(layers: int) -> list[str]:
    """Names of a graph's inputs of the past, key and value of each layer: [B, key-value heads, P, head width]."""
    return [f"past_key_values.{i}.{part}" for i in range(layers) for part in ("key", "value")]


def cache_outputs(layers: int) -> list[str]:
    """Names of a graph's outputs after `logits` [B, K, vocabulary]: the past with the present behind it."""
    return [f"present.{i}.{part}" for i in range(layers) for part in ("key", "value")]


def layers_of(inputs: Sequence[str], file: Path) -> int:
    """How many layers a graph with these inputs has.

    Raises:
        UserError: it is no graph of `methods/export.py`.
    """
    layers = (len(inputs) - len(CONTROLS)) // 2
    if list(inputs) != [*CONTROLS, *cache_inputs(layers)]:
        raise UserError(f"{file} is no export of this harness: expected inputs {', '.join(CONTROLS)} and the cache's")
    return layers


class Runtime(Protocol):
    """An exported model that is loaded. It remembers nothing that the caller relies on: the past is in the cache."""

    def empty(self, batch: int) -> Cache:
        """The cache before the first token."""

    def forward(
        self,
        tokens: "NDArray[np.int64]",
        mask: "NDArray[np.int64]",
        positions: "NDArray[np.int64]",
        rows: "NDArray[np.int64]",
        cache: Cache,
    ) -> "tuple[NDArray[np.float32], Cache]":
        """One forward pass; shapes as in `CONTROLS`.

        Returns:
            Logits [B, K, vocabulary], and the cache with these tokens; the one given stays as it is.
        """

    def select(self, cache: Cache, rows: "NDArray[np.int64]") -> Cache:
        """The cache of these rows of the batch, in this order."""

    def weight_bytes(self) -> int | None:
        """Bytes of memory that the weights hold; None where the runtime does not tell."""
