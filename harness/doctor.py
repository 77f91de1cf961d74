"""What this machine has, and what each missing thing would enable. Importing this imports no torch."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from packaging.requirements import Requirement

from harness._grid import grid
from harness.data import BUNDLED_FOLDER
from harness.measure._energy import nvml_problem, rapl_problem
from harness.models import BUNDLED_MODELS, cache_folder, model_problem
from harness.targets import fast_bf16, machine, target_problem

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Finding", "State", "diagnose", "print_doctor"]

State = Literal["ok", "missing", "warn"]

_PACKAGE = "posttrain-harness"
_HUB = "https://huggingface.co"
_REACH_S = 2.0
_LOW_MEMORY_GB = 8
_LOW_DISK_GB = 10

_EXTRAS: tuple[tuple[str, str, str], ...] = (
    ("torch-tensorrt", "torch_tensorrt", "TensorRT on NVIDIA GPUs: pip install 'posttrain-harness[tensorrt]'"),
    ("flash-attn", "flash_attn", "flash attention on NVIDIA GPUs: pip install flash-attn --no-build-isolation"),
    ("onnxruntime", "onnxruntime", "exported models on ONNX Runtime: pip install 'posttrain-harness[export]'"),
    ("openvino", "openvino", "exported models on OpenVINO: pip install 'posttrain-harness[export]'"),
    ("llama-cpp-python", "llama_cpp", "exported models on llama.cpp: pip install 'posttrain-harness[llamacpp]'"),
    ("nvidia-ml-py", "pynvml", "energy and clock of NVIDIA GPUs: pip install nvidia-ml-py"),
    ("bitsandbytes", "bitsandbytes", "paged optimizers on NVIDIA GPUs: pip install bitsandbytes"),
    ("torchao", "torchao", "quantize, qat, the 8-bit optimizer: pip install 'posttrain-harness[compression]'"),
    (
        "llmcompressor",
        "llmcompressor",
        "GPTQ, SmoothQuant, Wanda, SparseGPT: pip install 'posttrain-harness[compression]'",
    ),
    ("tensorboard", "tensorboard", "looking at results/tensorboard: pip install 'posttrain-harness[tensorboard]'"),
    ("mlflow-skinny", "mlflow", "harness sweep --track mlflow: pip install 'posttrain-harness[mlflow]'"),
    ("wandb", "wandb", "harness sweep --track wandb: pip install 'posttrain-harness[wandb]'"),
    ("trackio", "trackio", "harness sweep --track trackio: pip install 'posttrain-harness[trackio]'"),
)
"""Distribution, module, what it would enable."""

_SERVING = ("fastapi", "uvicorn", "openai")
"""Modules of the extra `transformers[serving]` that a server cannot start without."""


@dataclass(frozen=True)
class Finding:
    """One line: `missing` is not there, `warn` is there and not as it should be; `enables` says what it is for."""

    section: str
    name: str
    state: State
    detail: str
    enables: str = ""


def diagnose(network: bool) -> list[Finding]:
    """Look at this machine; a few seconds, most of them torch's import.

    Args:
        network: ask whether the hub answers (2 s to connect, 2 s to answer at most).
    """
    return [
        *_hardware(),
        *_packages(),
        *_models(),
        *_data(network),
        *_extras(),
        *_targets(),
    ]


def _hardware() -> Iterator[Finding]:
    found = machine()
    section = "hardware"
    yield Finding(section, "cpu", "ok", f"{found['cpu'] or 'unknown'}, {found['cores']} cores, {found['system']}")
    memory = psutil.virtual_memory()
    total, free = memory.total / 2**30, memory.available / 2**30
    low = total < _LOW_MEMORY_GB
    yield Finding(
        section,
        "memory",
        "warn" if low else "ok",
        f"{total:.1f} GB, {free:.1f} GB free",
        f"full fine-tuning of the bundled model wants {_LOW_MEMORY_GB} GB" if low else "",
    )
    if fast_bf16():
        yield Finding(section, "bfloat16", "ok", "multiplied in hardware")
    else:
        missing = "neither amx_bf16 nor avx512_bf16"
        yield Finding(section, "bfloat16", "missing", missing, "bfloat16 on the CPU faster than float32")
    load = psutil.getloadavg()[0]
    busy = load > 0.5 * (os.cpu_count() or 1)
    yield Finding(
        section,
        "load",
        "warn" if busy else "ok",
        f"{load:.1f}",
        "latency figures that others can repeat" if busy else "",
    )
    yield _gpu()
    yield from _energy()
    place = _existing(cache_folder())
    for name, folder in (("disk (here)", Path.cwd()), ("disk (cache)", place)):
        left = shutil.disk_usage(folder).free / 2**30
        low = left < _LOW_DISK_GB
        yield Finding(
            section, name, "warn" if low else "ok", f"{left:.0f} GB free", "room for artifacts" if low else ""
        )


def _existing(folder: Path) -> Path:
    return next(f for f in (folder, *folder.parents) if f.exists())


def _gpu() -> Finding:
    if problem := _torch_problem():
        return Finding("hardware", "gpu", "missing", problem, "CUDA targets")
    import torch

    if not torch.cuda.is_available():
        return Finding("hardware", "gpu", "missing", "torch sees no CUDA device", "CUDA targets, fp8, TensorRT")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("hardware", "gpu", "ok", ", ".join(names))


def _energy() -> Iterator[Finding]:
    # Without a GPU its counters are not missed.
    asked = {"cpu": (rapl_problem(), "RAPL"), **({"gpu": (nvml_problem(), "NVML")} if _gpu().state == "ok" else {})}
    for device, (problem, counter) in asked.items():
        if problem:
            yield Finding("hardware", f"energy ({device})", "missing", problem, "energy of a request in profiles")
        else:
            yield Finding("hardware", f"energy ({device})", "ok", f"counted by {counter}")


def _torch_problem() -> str | None:
    try:
        import torch  # noqa: F401  (whether it can be imported is the question)
    except (ImportError, OSError) as error:
        # A library that torch was linked against and that is not there is an OSError.
        return f"torch cannot be imported: {error}"
    return None


def _packages() -> Iterator[Finding]:
    section = "packages"
    yield Finding(section, "python", "ok", f"{platform.python_version()} ({sys.executable})")
    try:
        needed = importlib.metadata.requires(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding(section, _PACKAGE, "missing", "not installed", "checks of versions: pip install -e .")
        return
    for text in needed:
        requirement = Requirement(text)
        # Markers that hold without any extra: extras have a section of their own.
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _package(requirement)


def _package(requirement: Requirement) -> Finding:
    wanted = f"needs {requirement.specifier}" if requirement.specifier else ""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", requirement.name, "missing", wanted, f"pip install '{requirement}'")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("packages", requirement.name, "warn", f"{version}, {wanted}", f"pip install '{requirement}'")
    return Finding("packages", requirement.name, "ok", version)


def _models() -> Iterator[Finding]:
    for name in BUNDLED_MODELS:
        if problem := model_problem(name):
            yield Finding("models", name, "missing", problem, "the default suites, without a network")
        elif any((cache_folder() / "models").glob(f"{name}-v*/config.json")):
            yield Finding("models", name, "ok", f"converted, in {cache_folder() / 'models'}")
        else:
            yield Finding("models", name, "ok", "installed; converted on first use (about 20 s)")


def _data(network: bool) -> Iterator[Finding]:
    sets = sorted(str(p.parent.relative_to(BUNDLED_FOLDER)) for p in BUNDLED_FOLDER.glob("*/*/README.md"))
    yield Finding(
        "data", "bundled", "ok" if sets else "missing", ", ".join(sets) or "none", "" if sets else "--data bundled"
    )
    if not network:
        yield Finding("data", "hub", "warn", "not asked", "--data hub, hub models")
        return
    problem = _hub_problem(os.environ.get("HF_ENDPOINT") or _HUB)
    if problem is None:
        yield Finding("data", "hub", "ok", "answers")
    else:
        yield Finding(
            "data", "hub", "missing", problem, "--data hub, hub models; a mirror folder works without: --data DIR"
        )


def _hub_problem(address: str) -> str | None:
    if not address.startswith(("https://", "http://")):
        return f"HF_ENDPOINT is not a web address: {address}"
    request = urllib.request.Request(address, method="HEAD")  # noqa: S310 (the scheme is checked above)
    try:
        with urllib.request.urlopen(request, timeout=_REACH_S):  # noqa: S310 (as above)
            return None
    except urllib.error.HTTPError as error:
        return None if error.code < 500 else f"{address} answers {error.code}"
    except (urllib.error.URLError, OSError) as error:
        return f"{address} cannot be reached: {getattr(error, 'reason', error)}"


def _extras() -> Iterator[Finding]:
    for distribution, module, enables in _EXTRAS:
        if importlib.util.find_spec(module) is None:
            yield Finding("extras", distribution, "missing", "not installed", enables)
        else:
            yield Finding("extras", distribution, "ok", importlib.metadata.version(distribution))
    absent = [m for m in _SERVING if importlib.util.find_spec(m) is None]
    serving = "an OpenAI-compatible server: pip install 'transformers[serving]'"
    if absent:
        yield Finding("extras", "transformers serving", "missing", f"without {', '.join(absent)}", serving)
    else:
        yield Finding("extras", "transformers serving", "ok", "installed")
    browser = _chromium()
    if browser:
        yield Finding("extras", "chromium", "ok", browser)
    else:
        enables = "the tests that open a report in a browser: playwright install chromium"
        yield Finding("extras", "chromium", "missing", "not found", enables)


def _chromium() -> str | None:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    own = os.environ.get("PLAYWRIGHT_BROWSERS_PATH")
    folder = Path(own) if own and own != "0" else Path.home() / ".cache" / "ms-playwright"
    found = sorted(folder.glob("chromium*"))
    return str(found[-1]) if found else None


def _targets() -> Iterator[Finding]:
    broken = _torch_problem()
    for target in grid():
        problem = broken or target_problem(target)
        if problem:
            yield Finding("targets", target.name, "missing", f"no: {problem}")
        elif target.dtype == "bfloat16" and target.device == "cpu" and not fast_bf16():
            yield Finding("targets", target.name, "warn", "yes, slower than float32: no bfloat16 in hardware")
        else:
            yield Finding("targets", target.name, "ok", "yes")


def print_doctor(console: "Console", findings: Sequence[Finding]) -> None:
    """A table a section; what a finding says is printed as it is, never as markup."""
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "missing": "yellow", "warn": "red"}
    for section in dict.fromkeys(f.section for f in findings):
        table = Table(title=section, title_justify="left", box=None, show_header=False, pad_edge=False)
        for finding in (f for f in findings if f.section == section):
            told = finding.detail
            if finding.enables:
                told = (
                    f"{told}; would enable {finding.enables}"
                    if finding.state == "missing"
                    else f"{told}; {finding.enables}"
                )
            table.add_row(Text(finding.state, style=styles[finding.state]), Text(finding.name), Text(told))
        console.print(table)
        console.print()
