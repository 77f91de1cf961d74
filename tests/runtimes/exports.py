"""Exports of the tiny model, each made once for all tests."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from methods.export import Export, ExportParams
from tests.methods.helpers import Log, make_context, make_inputs

MODULES = {
    "onnx": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino",),
    "gguf": ("gguf", "llama_cpp"),
}
"""Format → what must be there to write it and run it."""

BACKENDS = {"onnxruntime": "onnx", "openvino": "openvino", "llamacpp": "gguf"}


@dataclass(frozen=True)
class Exported:
    folder: Path
    metrics: dict[str, float]


_done: dict[tuple[Path, str, str], Exported] = {}


def needs(format_: str) -> None:
    """Skip the test where this format's libraries are not installed."""
    missing = [m for m in MODULES[format_] if importlib.util.find_spec(m) is None]
    if missing:
        # Not pytest.importorskip: importing OpenVINO is left to `import_runtime`, which keeps it quiet.
        pytest.skip(f"{', '.join(missing)} not installed")


def export_of(model: Path, tmp: pytest.TempPathFactory, format_: str, weights: str = "float32") -> Exported:
    """The export of a model folder; skips where the runtime is not installed."""
    needs(format_)
    if (model, format_, weights) not in _done:
        scratch, folder = tmp.mktemp("scratch"), tmp.mktemp(f"{format_}-{weights}")
        params = ExportParams.model_validate({"format": format_, "weights": weights})
        trained = Export().run(make_inputs(model, None), params, make_context(scratch, Log()))
        assert trained.write is not None
        trained.write(folder)
        _done[model, format_, weights] = Exported(folder, dict(trained.metrics))
    return _done[model, format_, weights]
