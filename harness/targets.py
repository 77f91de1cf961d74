"""Describing hardware: what a suite may ask to measure on, and the machine at hand."""

import os
import platform
import re
import resource
import sys
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Target", "cpu_flags", "fast_bf16", "machine", "peak_rss_mb", "target_problem"]


class Target(BaseModel):
    """One hardware/runtime configuration to measure on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="the name in tables and reports")
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="the type of weights and activations"
    )
    backend: Literal["eager", "inductor"] = Field(default="eager", description="how the forward pass is executed")
    attention: Literal["eager", "sdpa"] = Field(default="sdpa", description="attention implementation of transformers")
    threads: int = Field(default=1, ge=1, description="CPU threads of torch")

    def numerics(self) -> dict[str, object]:
        """What decides the scores (not the name, not the threads): part of a measurement's key."""
        return {
            "device": self.device.split(":")[0],
            "dtype": self.dtype,
            "backend": self.backend,
            "attention": self.attention,
        }


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags; empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    match = re.search(r"^flags\s*:\s*(.*)$", info.read_text(), re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


def fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AMX): without it, bf16 autocast is slower than fp32."""
    return "amx_bf16" in cpu_flags()


def machine() -> dict[str, object]:
    """The machine at hand, as stored with every latency and memory figure. Imports no torch."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"^model name\s*:\s*(.*)$", info.read_text(), re.MULTILINE)):
        model = match.group(1)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "amx": fast_bf16(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def target_problem(target: Target) -> str | None:
    """Why this machine cannot run the target, or None. Imports torch only for CUDA targets."""
    if target.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            return "needs a CUDA device; torch sees none"
        index = int(target.device.partition(":")[2] or 0)
        if index >= torch.cuda.device_count():
            return f"needs CUDA device {index}; this machine has {torch.cuda.device_count()}"
    elif target.dtype == "float16":
        return "float16 on a CPU has no fast kernels; use bfloat16 or float32"
    return None


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far, in MB.

    From `VmHWM` where the system has it: `ru_maxrss` starts at the peak of the process that started this one (Linux
    carries it over fork and exec), so that under a large parent it would be the parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)
