"""Loading a model where a target wants it: on one device, spread over all GPUs, or kept in the CPU's memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.errors import InfeasibleError
from harness.method import LoadedModel
from harness.targets import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["device_map", "gpus", "input_device", "load_host", "load_on", "place"]


def gpus(target: Target) -> list[int]:
    """The CUDA devices that the target uses, by torch's numbers; none for a CPU."""
    if not target.on_gpu:
        return []
    if target.device == "auto":
        import torch

        return list(range(torch.cuda.device_count()))
    return [int(target.device.partition(":")[2] or 0)]


def input_device(target: Target) -> str:
    """The device that takes a batch's tokens."""
    return f"cuda:{gpus(target)[0]}" if target.on_gpu else "cpu"


def load_host(folder: Path, target: Target, head: Literal["causal", "reward"] = "causal") -> LoadedModel:
    """The model in the target's type and attention: on its device, or for `auto` and `offload` in the CPU's memory.

    Raises:
        UserError: transformers cannot load it.
    """
    from harness.models import load_model

    device = "cpu" if target.device in ("auto", "offload") else target.device
    return load_model(folder, dtype=target.dtype, head=head, device=device, attention=target.implementation)


def place(model: "PreTrainedModel", target: Target) -> None:
    """Bring what `load_host` loaded to where the target wants it; nothing is left to do but for `auto` and `offload`.

    Raises:
        InfeasibleError: all GPUs and the CPU's memory together are too small.
    """
    if target.device == "auto":
        from accelerate import dispatch_model
        from accelerate.utils import get_max_memory

        dispatch_model(model, device_map(model, get_max_memory()))
    elif target.device == "offload":
        import torch
        from accelerate import cpu_offload

        cpu_offload(model, execution_device=torch.device(input_device(target)))


def device_map(model: "PreTrainedModel", memory: Mapping[int | str, int]) -> dict[str, int | str]:
    """Which part of the model goes to which device: balanced over the GPUs, what is left over in the CPU's memory.

    Args:
        memory: bytes free by device: a CUDA device's number, or `cpu`.

    Returns:
        Module → device. No decoder layer is split.

    Raises:
        InfeasibleError: it fits in no way.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = sorted(model._no_split_modules or [])
    balanced = get_balanced_memory(model, max_memory=dict(memory), no_split_module_classes=whole)
    found: dict[str, int | str] = dict(infer_auto_device_map(model, max_memory=balanced, no_split_module_classes=whole))
    if "disk" in found.values():
        raise InfeasibleError("the model does not fit in the memory of all GPUs and the CPU together")
    return found


def load_on(folder: Path, target: Target, head: Literal["causal", "reward"] = "causal") -> LoadedModel:
    """The model, loaded and placed as the target wants it.

    Raises:
        UserError: transformers cannot load it.
        InfeasibleError: it fits in no way.
    """
    loaded = load_host(folder, target, head)
    place(loaded.model, target)
    return loaded
