"""What a training loop costs: the time of its steps, and the memory it needs beside what was there before."""

import contextlib
import ctypes
import gc
import statistics
import time
from pathlib import Path

__all__ = ["Meter"]

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Meter:
    """Made when training starts, told of the end of every step.

    Linux keeps a process's peak of resident memory, and lets it be reset; elsewhere, and where that is forbidden and
    the peak was higher before, the host's memory is not reported rather than reported wrong.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._ends: list[float] = []
        # What an earlier stage of this process freed would otherwise count as resident before, and be used unseen.
        gc.collect()
        _give_back()
        # 5 resets the peak to what is resident now (proc(5)).
        with contextlib.suppress(OSError):
            _RESET.write_text("5")
        self._before = _resident()
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()

    def tick(self) -> None:
        """A step has ended."""
        self._ends.append(time.perf_counter())

    def figures(self) -> dict[str, float]:
        """Those that are known here.

        Returns:
            `step_ms`, the median from the end of one step to the end of the next, so without the first, which compiles
            and allocates; `train_peak_mb`, the peak of resident memory over what was resident at the start;
            on CUDA `cuda_peak_mb` and `cuda_reserved_mb`, the peaks of allocated and reserved memory, weights included.
        """
        found: dict[str, float] = {}
        if len(self._ends) > 1:
            gaps = [1000 * (b - a) for a, b in zip(self._ends, self._ends[1:], strict=False)]
            found["step_ms"] = statistics.median(gaps)
        after = _resident()
        if self._before and after:
            (start, peak_before), (_, peak) = self._before, after
            if peak > peak_before or peak_before - start < 1.0:
                found["train_peak_mb"] = max(0.0, peak - start)
        if self.device == "cuda":
            import torch

            found["cuda_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
            found["cuda_reserved_mb"] = torch.cuda.max_memory_reserved() / 2**20
        return found


def _give_back() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)


def _resident() -> tuple[float, float] | None:
    """Resident memory now and at its peak, MB; None where the system does not say."""
    if not _STATUS.exists():
        return None
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
    if "VmRSS" not in lines or "VmHWM" not in lines:
        return None
    return int(lines["VmRSS"].split()[0]) / 1024, int(lines["VmHWM"].split()[0]) / 1024
