"""Whether the files of a model folder are what they should be, found out before anything runs and without torch."""

import ast
import functools
import importlib.util
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["folder_problem", "has_chat_template", "nan_problem"]

_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Type of a tensor, as safetensors names it → bytes of one value."""

_NAN = {"F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80), "F32": ("<u4", 0x7F800000), "F64": ("<u8", 0x7FF << 52)}
"""Type → the unsigned integer of its size and the bits of infinity: without its sign a NaN is above that."""

_CHUNK = 2**24
_LONGEST_HEADER = 100_000_000
"""Bytes, as the safetensors library has it."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".npz")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json", "tekken.json")
_MENDED = "copy it again from where it came from"


class _Problem(Exception):  # noqa: N818  # carries what is wrong from where it is found to the one place that returns it
    pass


def folder_problem(folder: Path, *, remote_code: bool = False) -> str | None:
    """Why this model folder cannot be loaded, naming the file, or None. Reads headers and configuration only.

    Args:
        folder: an existing path.
        remote_code: whether a model may bring Python code of its own.
    """
    try:
        config = _config(folder, remote_code=remote_code)
        tensors = _weights(folder)
        _check_fit(folder, config, tensors)
        _check_tokenizer(folder)
        _check_adapter(folder)
    except _Problem as problem:
        return str(problem)
    except OSError as error:
        return f"{folder} cannot be read: {error}"
    return None


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a model folder says how a conversation is written."""
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(_json(path).get("chat_template"))


def nan_problem(folder: Path) -> str | None:
    """The first tensor of the folder's safetensors with a value that is no number, or None. Reads every weight once."""
    import numpy as np

    for path in sorted(folder.glob("*.safetensors")):
        header, start = _header(path)
        with path.open("rb") as file:
            for name, told in header.items():
                if told["dtype"] not in _NAN:
                    continue
                kind, infinity = _NAN[told["dtype"]]
                begin, end = told["data_offsets"]
                file.seek(start + begin)
                for at in range(begin, end, _CHUNK):
                    bits = np.frombuffer(file.read(min(_CHUNK, end - at)), dtype=kind)
                    # Shifted left, the sign is gone.
                    if ((bits << 1) > infinity << 1).any():
                        return (
                            f"{path}: the tensor {name} has values that are no numbers (NaN): these weights are broken"
                        )
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise _Problem(f"{where}: not JSON ({error.msg}); {_MENDED}") from error
    except UnicodeDecodeError as error:
        raise _Problem(f"{path}: not UTF-8 text; {_MENDED}") from error
    except RecursionError as error:
        raise _Problem(f"{path}: nested too deeply to be what it should be; {_MENDED}") from error
    if not isinstance(found, dict):
        raise _Problem(f"{path}: expected a JSON object, got a {type(found).__name__}; {_MENDED}")
    return found


def _config(folder: Path, *, remote_code: bool) -> dict[str, Any]:
    if not folder.is_dir():
        raise _Problem(f"{folder} is a file; expected the folder that holds config.json and *.safetensors")
    path = folder / "config.json"
    if not path.is_file():
        if not any(folder.iterdir()):
            raise _Problem(f"the folder {folder} is empty; expected config.json, *.safetensors and a tokenizer")
        adapter = (
            " (an adapter alone: merge it into its base model)" if (folder / "adapter_config.json").exists() else ""
        )
        raise _Problem(f"the folder {folder} has no config.json{adapter}")
    config = _json(path)
    known = _causal_types()
    kind = config.get("model_type")
    own = [p for p in (path, folder / "tokenizer_config.json") if p.is_file() and _json(p).get("auto_map")]
    for file in own:
        if not remote_code:
            native = "; transformers knows its type: without auto_map it loads as it is" if kind in known else ""
            raise _Problem(
                f"{file}: it names Python code of its own (auto_map), which would run here; read that code, and "
                f"allow it with --trust-remote-code{native}"
            )
        for target in _texts(_json(file)["auto_map"]):
            if "--" in target:
                raise _Problem(
                    f"{file}: its code lies in another repository ({target}), where it can change unseen; copy it "
                    "beside the weights and drop what stands before --"
                )
    if not isinstance(kind, str):
        raise _Problem(f"{path}: no model_type; expected the name of an architecture of transformers, such as llama")
    if own or not known:
        return config
    if kind not in known:
        raise _Problem(f"{path}: model_type {kind!r} is no causal language model that transformers knows")
    named = config.get("architectures") or []
    if named and not any(n in known.values() or str(n).endswith(("ForCausalLM", "LMHeadModel")) for n in _texts(named)):
        raise _Problem(
            f"{path}: architectures {', '.join(_texts(named))}: no causal language model; expected {known[kind]}"
        )
    return config


def _texts(value: object) -> list[str]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return [text for item in items for text in (_texts(item) if isinstance(item, list | dict) else [str(item)])]


@functools.cache
def _causal_types() -> dict[str, str]:
    """Type of model → class, as transformers lists them; read from its source, since importing it imports torch."""
    spec = importlib.util.find_spec("transformers")
    for place in (spec.submodule_search_locations or []) if spec else []:
        tree = ast.parse((Path(place) / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8"))
        for node in tree.body:
            names = [t.id for t in getattr(node, "targets", ()) if isinstance(t, ast.Name)]
            if isinstance(node, ast.Assign) and names == ["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"]:
                pairs = ast.literal_eval(node.value.args[0]) if isinstance(node.value, ast.Call) else []
                return {str(k): str(v) for k, v in pairs}
    return {}


def _weights(folder: Path) -> dict[str, list[int]]:
    """Tensor → shape, of all safetensors of the folder."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if not files:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLED)
        have = f"; {', '.join(pickled[:3])} can run code when loaded, so it never is" if pickled else ""
        raise _Problem(f"the folder {folder} has no *.safetensors{have}: convert the weights to safetensors")
    if not (folder / "model.safetensors").is_file() and not index.is_file():
        named = ", ".join(path.name for path in files[:3])
        raise _Problem(f"the folder {folder} has {named}; expected model.safetensors, or parts with {index.name}")
    tensors = {name: told["shape"] for path in files for name, told in _header(path)[0].items()}
    if index.is_file():
        listed = _json(index).get("weight_map")
        if not isinstance(listed, dict):
            raise _Problem(f"{index}: no weight_map; {_MENDED}")
        there = {path.name for path in files}
        for name, file in listed.items():
            if file not in there:
                raise _Problem(f"{index}: {file} is not in the folder; {_MENDED}")
            if name not in tensors:
                raise _Problem(f"{index}: no file of the folder has the tensor {name}; {_MENDED}")
    return tensors


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """The tensors that a safetensors file says it holds, and where their bytes begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else -1
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            told = "is too short for one" if length < 0 else f"says its header has {length:,} bytes, of {size:,} in all"
            raise _Problem(f"{path}: no safetensors file, or cut off: it {told}; {_MENDED}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _Problem(f"{path}: no safetensors file: its header is not JSON; {_MENDED}") from error
    if not isinstance(header, dict):
        raise _Problem(f"{path}: no safetensors file: its header is no object; {_MENDED}")
    header.pop("__metadata__", None)
    end = 0
    for name, told in header.items():
        end = max(end, _tensor_end(path, name, told))
    if end != size - 8 - length:
        raise _Problem(
            f"{path}: its tensors need {end:,} bytes, and it has {size - 8 - length:,}: it is cut off or damaged; "
            + _MENDED
        )
    return header, 8 + length


def _tensor_end(path: Path, name: str, told: object) -> int:
    match told:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            whole = all(isinstance(n, int) and n >= 0 for n in shape)
            # Types of less than a byte are left to the library.
            needed = math.prod(shape) * _BYTES[kind] if whole and kind in _BYTES else end - begin
            if whole and 0 <= begin <= end and end - begin == needed:
                return end
    raise _Problem(f"{path}: the header says of {name} what cannot be (type, shape or place); {_MENDED}")


def _numbers(config: Mapping[str, Any], *names: str) -> Iterator[int]:
    for source in (config.get("text_config"), config):
        for name in names:
            found = source.get(name) if isinstance(source, dict) else None
            if isinstance(found, int) and not isinstance(found, bool):
                yield found


def _check_fit(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, list[int]]) -> None:
    """What transformers would fill with random numbers, and warn of, is refused."""
    present = {int(n) for name in tensors for n in re.findall(r"\.(?:layers|h|blocks)\.(\d+)\.", f".{name}")}
    count = next(_numbers(config, "num_hidden_layers", "n_layer", "num_layers"), None)
    if present and count is not None and max(present) + 1 < count:
        raise _Problem(
            f"{folder / 'config.json'}: {count} layers, but the weights have {max(present) + 1}; the two are of "
            "different models"
        )
    words = next(_numbers(config, "vocab_size"), None)
    table = next((s for n, s in tensors.items() if n.endswith(("embed_tokens.weight", "wte.weight"))), None)
    if words is not None and table and table[0] != words:
        raise _Problem(
            f"{folder / 'config.json'}: a vocabulary of {words:,}, but the weights have {table[0]:,} rows for it; the "
            "two are of different models"
        )


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise _Problem(f"the folder {folder} has no tokenizer; expected one of {', '.join(_TOKENIZERS)}")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            found = _json(folder / name)
            if name == "tokenizer.json" and not isinstance(found.get("model"), dict):
                raise _Problem(f"{folder / name}: no tokenizer of the tokenizers library (no model in it); {_MENDED}")


def _check_adapter(folder: Path) -> None:
    adapter = folder / "adapter"
    if not adapter.is_dir():
        return
    if not (adapter / "adapter_model.safetensors").is_file():
        raise _Problem(f"{adapter} holds no adapter_model.safetensors (other weight formats can run code)")
    _header(adapter / "adapter_model.safetensors")
    _json(adapter / "adapter_config.json")
