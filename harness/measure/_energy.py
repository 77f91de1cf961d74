"""Counters of the machine: energy used and clock rates, read where there are any and absent where there are none.

Energy comes from counters only, never from a power rating times a time: NVML's total of a GPU since its driver was
loaded (Volta and later), and RAPL's of a CPU package (`/sys/class/powercap`, readable by root alone on most systems).
Both count all that the device does, whoever asked for it.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["POWERCAP", "Counter", "Meter", "clocks", "counters", "nvml_problem", "rapl_counters", "rapl_problem"]

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Counter:
    """One growing counter of energy. `wraps` is the value, in joules, at which it begins again at 0; None: never."""

    device: str
    """`cpu` or `gpu`."""
    read: Callable[[], float]
    """The count, J."""
    wraps: float | None = None


def rapl_counters(root: Path = POWERCAP) -> list[Counter]:
    """One counter for each CPU package that this user may read; the parts of a package are in its own count."""
    found = []
    for zone in sorted(root.glob("intel-rapl:*")):
        name, count, largest = zone / "name", zone / "energy_uj", zone / "max_energy_range_uj"
        try:
            if not name.read_text().startswith("package"):
                continue
            _joules(count)
            wraps = int(largest.read_text()) / 1e6
        except (OSError, ValueError):
            continue
        found.append(Counter("cpu", functools.partial(_joules, count), wraps))
    return found


def _joules(count: Path) -> float:
    return int(count.read_text()) / 1e6


def rapl_problem(root: Path = POWERCAP) -> str | None:
    """Why the CPU's energy cannot be read, or None."""
    if rapl_counters(root):
        return None
    if any(root.glob("intel-rapl:*/energy_uj")):
        return f"{root}/intel-rapl:*/energy_uj cannot be read by this user"
    return "no RAPL counter under /sys/class/powercap (virtual machines rarely have one)"


def nvml_problem() -> str | None:
    """Why GPU counters cannot be read, or None; asks only for the library, so that no GPU is needed to be told."""
    if importlib.util.find_spec("pynvml") is None:
        return "nvidia-ml-py is not installed: pip install nvidia-ml-py"
    return None


def _nvml_handles(indices: Sequence[int]) -> list[object]:
    if nvml_problem() is not None or not indices:
        return []
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        # By identity: NVML numbers all GPUs, torch those that CUDA_VISIBLE_DEVICES leaves.
        uuids = [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in indices]
        return [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    except pynvml.NVMLError:
        return []


def _nvml_counters(indices: Sequence[int]) -> Iterator[Counter]:
    for handle in _nvml_handles(indices):
        import pynvml

        def joules(handle: object = handle) -> float:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3

        try:
            joules()
        except pynvml.NVMLError:
            # A GPU before Volta has none.
            continue
        yield Counter("gpu", joules)


def counters(gpus: Sequence[int]) -> list[Counter]:
    """The energy counters of the CPU packages and of these CUDA devices (torch's numbers), of those that have one."""
    return [*rapl_counters(), *_nvml_counters(gpus)]


class Meter:
    """Adds up what the counters count, from its making on.

    `tick` it more often than a counter goes round (RAPL's does in the better part of an hour at full power): a counter
    that has gone round once between two ticks is put right, twice cannot be seen.
    """

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = list(counters)
        self._last = [c.read() for c in self._counters]
        self._joules: dict[str, float] = dict.fromkeys((c.device for c in self._counters), 0.0)

    def tick(self) -> None:
        """Read the counters and add what they have grown by."""
        for i, counter in enumerate(self._counters):
            now = counter.read()
            grown = now - self._last[i]
            if grown < 0:
                grown += counter.wraps or 0.0
            self._joules[counter.device] += max(grown, 0.0)
            self._last[i] = now

    @property
    def joules(self) -> Mapping[str, float]:
        """`cpu` or `gpu` → J counted until the last tick; a device without a counter is not in it."""
        return dict(self._joules)


def clocks(gpus: Sequence[int]) -> dict[str, float]:
    """`cpu_mhz` (mean over the cores) and `gpu_mhz` (mean over these devices) at this moment, where they are told."""
    found: dict[str, float] = {}
    rate = psutil.cpu_freq()
    if rate is not None and rate.current > 0:
        found["cpu_mhz"] = float(rate.current)
    if handles := _nvml_handles(gpus):
        import pynvml

        try:
            rates = [pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_SM) for h in handles]
        except pynvml.NVMLError:
            return found
        found["gpu_mhz"] = sum(rates) / len(rates)
    return found
