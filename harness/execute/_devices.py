"""This machine's GPUs, and which of them a spec works on. No library of NVIDIA's is loaded here."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from harness.execute._spec import MeasureSpec, StageSpec, resources_of

__all__ = ["NO_DEVICES", "Wanted", "devices_here", "visible_devices", "wanted_devices"]

_NVIDIA_SMI_S = 30.0


@dataclass(frozen=True)
class Wanted:
    """Devices that a spec must have to itself: any so many of them, or these."""

    any_of: int = 0
    these: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether it runs without."""
        return not self.any_of and not self.these


NO_DEVICES = Wanted()


def devices_here() -> tuple[str, ...]:
    """The CUDA devices of this process in torch's order, by the names that CUDA_VISIBLE_DEVICES has for them.

    Those of `CUDA_VISIBLE_DEVICES` where it is set, else those that `nvidia-smi -L` lists; where a GPU is divided
    (MIG), its parts.
    """
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in named.split(",")]
        # CUDA takes what stands before the first name that is none.
        end = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
        return tuple(dict.fromkeys(names[:end]))
    if (tool := shutil.which("nvidia-smi")) is None:
        return ()
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return _listed(listed.stdout) if listed.returncode == 0 else ()


def wanted_devices(spec: StageSpec | MeasureSpec, devices: Sequence[str]) -> Wanted:
    """The devices that the spec needs of these.

    A machine that lacks them is told of by the spec itself when it fails there.
    """
    if not devices:
        return NO_DEVICES
    if isinstance(spec, MeasureSpec):
        device = str(spec.target.get("device", "cpu"))
        if device == "auto":
            return Wanted(these=tuple(devices))
        _, _, index = device.partition(":")
        if index:
            return Wanted(these=tuple(devices[int(index) : int(index) + 1]))
    wanted = resources_of(spec)
    return Wanted(any_of=min(max(wanted.gpus, int(wanted.gpu_if_there)), len(devices)))


def visible_devices(spec: StageSpec | MeasureSpec, held: Sequence[str], devices: Sequence[str]) -> str | None:
    """CUDA_VISIBLE_DEVICES for the worker of a spec that holds these devices; None: as it is, the machine having none.

    A target `cuda:N` names the machine's device N: those before it are visible too, so that it keeps its number.
    """
    if not devices:
        return None
    if isinstance(spec, MeasureSpec) and ":" in str(spec.target.get("device", "")) and held:
        return ",".join(devices[: devices.index(held[0]) + 1])
    return ",".join(held)


def _listed(text: str) -> tuple[str, ...]:
    found: list[str] = []
    whole: dict[str, list[str]] = {}
    gpu = ""
    for line in text.splitlines():
        if number := re.match(r"GPU (\d+):", line):
            gpu = number.group(1)
            whole[gpu] = []
        elif gpu and (part := re.search(r"UUID: (MIG-[^)\s]+)", line)):
            whole[gpu].append(part.group(1))
    for number_, parts in whole.items():
        found += parts or [number_]
    return tuple(found)
