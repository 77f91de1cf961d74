"""What a model's weights take: in memory once loaded, and in files. Quantised tensors count what is inside them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from harness.targets import Target

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["resident_bytes", "stored_bytes"]

_STORED = {
    "onnxruntime": (".onnx", ".onnx.data", ".onnx_data"),
    "openvino": (".bin", ".xml"),
    "llamacpp": (".gguf",),
}
"""Backend of an exported model → how the names of the files that it reads end."""


def resident_bytes(model: "PreTrainedModel") -> int:
    """Bytes of memory that the parameters and buffers hold; what is tied or shared counts once."""
    blocks: dict[tuple[str, int], int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        for part in _parts(tensor):
            storage = part.untyped_storage()
            # A meta tensor is a shape without memory.
            if part.device.type != "meta" and storage.nbytes():
                blocks[str(part.device), storage.data_ptr()] = storage.nbytes()
    return sum(blocks.values())


def _parts(tensor: "Tensor") -> Iterator["Tensor"]:
    """The plain tensors that a tensor is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        # A quantised tensor of torchao looks like the dense one it stands for, and its own storage is empty.
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
        return
    yield tensor
    # bitsandbytes keeps the scales of a 4-bit tensor beside it, not among the model's buffers.
    if (state := getattr(tensor, "quant_state", None)) is not None:
        yield from _tensors(state)


def _tensors(state: object) -> Iterator["Tensor"]:
    import torch

    for value in vars(state).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif type(value) is type(state):
            yield from _tensors(value)


def stored_bytes(folder: Path, target: Target) -> int:
    """Bytes of the weight files that this target reads: safetensors, or the exported model's; 0 for none."""
    endings = _STORED.get(target.backend, (".safetensors",))
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name.endswith(endings))
