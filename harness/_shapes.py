"""What decides a model's latency and memory beside the machine: its architecture and its tensors, not their values."""

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

from harness.models import folder_fingerprint

__all__ = ["folder_shape"]

_NAMES = ("_name_or_path", "transformers_version", "bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of a configuration that say where a model is from or which tokens are special: they cost nothing."""


def folder_shape(folder: Path) -> str:
    """Digest of a model folder's configuration and of the names, types and shapes of its tensors (32 hex characters).

    Two models for which it is equal do the same arithmetic on the same amounts of memory, so one profile serves both.
    Zeros among the weights of a dense matrix change nothing, as no kernel here skips them. A folder without
    safetensors holds an exported model, whose files are taken whole.
    """
    tensors = sorted(_tensors(folder))
    if not tensors:
        return folder_fingerprint(folder)
    configs = {}
    for path in sorted(p for name in ("config.json", "adapter_config.json") for p in folder.rglob(name)):
        found = json.loads(path.read_text(encoding="utf-8"))
        configs[str(path.relative_to(folder))] = {k: v for k, v in found.items() if k not in _NAMES}
    text = json.dumps([configs, tensors], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _tensors(folder: Path) -> Iterator[tuple[str, str, str, list[int]]]:
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            # The format begins with the length of its header, 8 bytes little-endian.
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        where = str(path.parent.relative_to(folder))
        for name, told in header.items():
            if name != "__metadata__":
                yield where, name, told["dtype"], told["shape"]
