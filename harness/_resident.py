"""What a loaded model's weights take in memory. Quantised tensors count what is inside them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["resident_bytes"]


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
