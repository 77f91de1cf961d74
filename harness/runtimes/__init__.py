"""Running exported models outside torch: ONNX Runtime, OpenVINO and llama.cpp, on the CPU, behind one protocol."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.runtimes._protocol import (
    CONTROLS,
    FILES,
    Cache,
    Runtime,
    cache_inputs,
    cache_outputs,
)
from harness.targets import RUNTIMES, Target

if TYPE_CHECKING:
    from harness.method import LoadedModel
    from harness.runtimes._session import RuntimeSession

__all__ = [
    "CONTROLS",
    "FILES",
    "Cache",
    "Runtime",
    "cache_inputs",
    "cache_outputs",
    "holds_export",
    "import_runtime",
    "load_runtime",
    "open_runtime",
    "open_session",
]


def import_runtime(backend: str) -> None:
    """Import a runtime's library, what it would tell its maker switched off.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    module, distribution = RUNTIMES[backend]
    if backend == "openvino":
        # Importing OpenVINO sends an event to its maker unless this package is absent. None makes it so, here only.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # the import system's own mark
    try:
        library = importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"backend {backend} cannot be used: {error}; install it with: pip install {distribution}"
        ) from error
    if backend == "onnxruntime":
        library.disable_telemetry_events()


def holds_export(folder: Path, backend: str) -> bool:
    """Whether a model folder holds an export for this backend."""
    return (folder / FILES[backend]).is_file()


def open_runtime(folder: Path, backend: str, threads: int = 1) -> Runtime:
    """The exported model of a folder in its runtime, on this many CPU threads.

    Raises:
        UserError: the folder holds no export for this backend, or the runtime cannot load it.
    """
    file = folder / FILES[backend]
    if not holds_export(folder, backend):
        raise UserError(
            f"{folder} holds no model for backend {backend} ({file.name}): the recipe must end with an export for it"
        )
    import_runtime(backend)
    module = importlib.import_module(f"harness.runtimes._{backend}")
    runtime: Runtime = module.load(file, threads)
    return runtime


def open_session(folder: Path, target: Target, prompt_tokens: int, new_tokens: int) -> "RuntimeSession":
    """A `harness.measure._backends.Session` of an exported model, for requests of these lengths.

    Raises:
        UserError: see `open_runtime`.
    """
    from harness.runtimes._session import RuntimeSession

    return RuntimeSession(open_runtime(folder, target.backend, target.threads), folder)


def load_runtime(folder: Path, target: Target) -> "LoadedModel":
    """The exported model as a transformers model, to be scored as any other: its forward pass calls the runtime.

    Raises:
        UserError: see `open_runtime`; or the folder's configuration or tokenizer cannot be read.
    """
    from harness.runtimes._model import wrap

    return wrap(open_runtime(folder, target.backend, target.threads), folder, target.backend)
