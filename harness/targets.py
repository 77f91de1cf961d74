"""Describing hardware: what a suite may ask to measure on, and the machine at hand."""

import contextlib
import importlib
import importlib.util
import os
import platform
import re
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

import psutil
from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "RUNTIMES",
    "Target",
    "compiler",
    "cpu_flags",
    "fast_bf16",
    "forget_peak",
    "machine",
    "peak_rss_mb",
    "target_problem",
]


RUNTIMES: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "openvino": ("openvino", "openvino"),
    "llamacpp": ("llama_cpp", "llama-cpp-python"),
}
"""Backend that runs an exported model outside torch → its module, its distribution."""


class Target(BaseModel):
    """One hardware/runtime configuration to measure on. What no machine could run is refused here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, description="the name in tables and reports")
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda(:\d+)?|auto|offload)$",
        description="cpu, cuda, cuda:N, auto (layers spread over all GPUs), offload (weights in the CPU's memory, each "
        "layer sent to the GPU for its turn)",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="the type of weights and activations"
    )
    backend: Literal["eager", "inductor", "tensorrt", "onnxruntime", "openvino", "llamacpp"] = Field(
        default="eager",
        description="how the forward pass is executed: eager, inductor (torch.compile, static KV cache), tensorrt "
        "(torch-tensorrt), or the runtime of an exported model",
    )
    attention: Literal["eager", "sdpa", "flash", "flex"] = Field(
        default="sdpa",
        description="attention implementation of transformers; an exported model brings its own: leave it out",
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of torch, or of the runtime")
    resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={},
        description="what else it occupies on a cluster, by the names the cluster has for its hardware; on one "
        "machine nothing",
    )

    @model_validator(mode="after")
    def _possible(self) -> "Target":
        if problem := _contradiction(self):
            raise ValueError(problem)
        return self

    @property
    def on_gpu(self) -> bool:
        """Whether the forward pass runs on one or more CUDA devices, wherever the weights are kept."""
        return self.device != "cpu"

    @property
    def implementation(self) -> str:
        """The attention under the name that transformers has for it."""
        return {"flash": "flash_attention_2", "flex": "flex_attention"}.get(self.attention, self.attention)

    def numerics(self) -> dict[str, object]:
        """What decides the scores (not the name, not the threads): part of a measurement's key.

        `auto` and `offload` are told apart from `cuda`, although they should score the same: a profile's key is made
        of this too, and their latency is another.
        """
        found: dict[str, object] = {
            "device": self.device.split(":")[0],
            "dtype": self.dtype,
            "backend": self.backend,
        }
        # An exported graph was made with an attention of its own, which the target does not choose.
        return found if self.backend in RUNTIMES else {**found, "attention": self.attention}


def _contradiction(target: Target) -> str | None:
    """Why no machine can run this, or None."""
    if target.device in ("auto", "offload") and target.backend != "eager":
        return f"device {target.device} moves layers by hooks, which only the eager backend runs; got {target.backend}"
    if target.backend == "tensorrt" and not target.on_gpu:
        return "backend tensorrt runs on NVIDIA GPUs only: expected device cuda or cuda:N"
    if target.backend in RUNTIMES:
        if target.device != "cpu":
            return f"backend {target.backend} is run on the CPU here: expected device cpu"
        if target.attention != "sdpa":
            return f"backend {target.backend} runs the attention its model was exported with: leave attention out"
        if target.dtype != "float32":
            return (
                f"backend {target.backend} computes in float32, from weights of whatever type the export has: leave "
                "dtype out, and export in another type to compare types"
            )
    if target.backend == "tensorrt" and target.attention in ("flash", "flex"):
        return f"TensorRT compiles no {target.attention} attention: expected sdpa or eager"
    if target.attention == "flash":
        if not target.on_gpu:
            return "flash attention runs on GPUs only; on a CPU, sdpa is the fused one"
        if target.dtype == "float32":
            return "flash attention has no float32: expected dtype bfloat16 or float16"
    return None


_BF16_FLAGS = frozenset({"amx_bf16", "avx512_bf16"})


def cpu_flags() -> frozenset[str]:
    """The CPU's feature flags; empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return frozenset()
    match = re.search(r"^flags\s*:\s*(.*)$", info.read_text(), re.MULTILINE)
    return frozenset(match.group(1).split()) if match else frozenset()


def fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware (AMX or AVX-512 BF16): without, autocast is slower than fp32."""
    return not _BF16_FLAGS.isdisjoint(cpu_flags())


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
        "bf16": fast_bf16(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def target_problem(target: Target) -> str | None:
    """Everything this machine lacks for the target, or None. Imports torch only for targets on a GPU."""
    problems = [*_device_problems(target), *_backend_problems(target), *_attention_problems(target)]
    return "; ".join(dict.fromkeys(problems)) or None


def _device_problems(target: Target) -> Iterator[str]:
    if not target.on_gpu:
        if target.dtype == "float16":
            yield "float16 on a CPU has no fast kernels; use bfloat16 or float32"
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(target.device.partition(":")[2] or 0)
    if not count:
        yield "needs a CUDA device; torch sees none"
    elif index >= count:
        yield f"needs CUDA device {index}; this machine has {count}"
    elif target.device == "auto" and count < 2:
        yield "spreads layers over several CUDA devices; this machine has 1: use cuda, or offload for a larger model"
    elif target.dtype == "bfloat16" and torch.cuda.get_device_capability(index) < (8, 0):
        # torch would emulate it, and the figure would be that of the emulation.
        yield f"bfloat16 needs a GPU of compute capability 8.0; {torch.cuda.get_device_name(index)} is older"


def _backend_problems(target: Target) -> Iterator[str]:
    if target.backend == "inductor":
        yield from _inductor_problems(target, "backend inductor")
    elif target.backend == "tensorrt":
        yield from _tensorrt_problems()
    elif target.backend in RUNTIMES:
        module, distribution = RUNTIMES[target.backend]
        if importlib.util.find_spec(module) is None:
            yield f"{distribution} is not installed: pip install {distribution}"


def _tensorrt_problems() -> Iterator[str]:
    if importlib.util.find_spec("torch_tensorrt") is None:
        yield "torch-tensorrt is not installed: pip install 'posttrain-harness[tensorrt]'"
        return
    import torch

    if torch.cuda.is_available():
        try:
            importlib.import_module("torch_tensorrt")
        except Exception as error:  # noqa: BLE001  # what it raises where it finds no TensorRT is a plain Exception
            yield f"torch-tensorrt is installed and cannot be imported: {error}"


def _attention_problems(target: Target) -> Iterator[str]:
    if target.attention == "flash" and importlib.util.find_spec("flash_attn") is None:
        yield "flash-attn is not installed: pip install flash-attn --no-build-isolation"
    if target.attention == "flex":
        # transformers compiles flex attention whatever the backend.
        yield from _inductor_problems(target, "flex attention")
        if not target.on_gpu and not {"avx2", "avx512f"} & cpu_flags():
            yield "flex attention on a CPU needs AVX2"


def _inductor_problems(target: Target, who: str) -> Iterator[str]:
    if not target.on_gpu and compiler() is None:
        yield f"{who} compiles C++ and finds no compiler: install g++"
    if target.on_gpu and importlib.util.find_spec("triton") is None:
        yield f"{who} compiles for GPUs with triton, which is not installed: pip install triton"


def compiler() -> str | None:
    """The C++ compiler that inductor would use for the CPU, or None."""
    own = os.environ.get("CXX")
    return next((path for name in (own, "g++", "clang++") if name and (path := shutil.which(name))), None)


def forget_peak() -> None:
    """Have `peak_rss_mb` count from now on, where the system can: a warm process remembers its earlier work's peak."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_mb() -> float:
    """The largest resident memory of this process so far (or since `forget_peak`), in MB.

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
