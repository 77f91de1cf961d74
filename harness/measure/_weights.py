"""What a model's weights take: in memory once loaded, and in files. Quantised tensors count what is inside them."""

from pathlib import Path

from harness._resident import resident_bytes
from harness.targets import Target

__all__ = ["resident_bytes", "stored_bytes"]

_STORED = {
    "onnxruntime": (".onnx", ".onnx.data", ".onnx_data"),
    "openvino": (".bin", ".xml"),
    "llamacpp": (".gguf",),
}
"""Backend of an exported model → how the names of the files that it reads end."""


def stored_bytes(folder: Path, target: Target) -> int:
    """Bytes of the weight files that this target reads: safetensors, or the exported model's; 0 for none."""
    endings = _STORED.get(target.backend, (".safetensors",))
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name.endswith(endings))
