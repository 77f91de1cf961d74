"""GGUF files of a Llama: weights, hyperparameters and tokenizer in one, as llama.cpp reads them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Kind
from gguf.constants import LlamaFileType as FileType

from harness.errors import UserError
from harness.runtimes import FILES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["pre_tokenizer_name", "write_gguf"]

_KINDS = {
    "float32": (Kind.F32, Kind.F32, FileType.ALL_F32),
    "float16": (Kind.F16, Kind.F16, FileType.MOSTLY_F16),
    "q8_0": (Kind.Q8_0, Kind.Q8_0, FileType.MOSTLY_Q8_0),
    "q4_0": (Kind.Q4_0, Kind.Q8_0, FileType.MOSTLY_Q4_0),
}
"""Weights → type of matrices, of embeddings and output, of the file. Vectors stay float32."""

_BLOCK = 32
"""Weights of a row that share a scale."""

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_NAMED_BY_PATTERN = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
"""Pattern by which text is split → llama.cpp's name for it."""

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
"""Types of tokens."""


def write_gguf(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", weights: str, folder: Path) -> None:
    """Write `model.gguf`.

    Raises:
        UserError: not a Llama, or a setting or tokenizer that llama.cpp would read otherwise.
    """
    _check(model, weights)
    config = model.config
    matrices, ends, file_type = _KINDS[weights]
    writer = gguf.GGUFWriter(folder / FILES["llamacpp"], "llama")
    writer.add_type("model")
    writer.add_name(Path(config.name_or_path).name or "model")
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    # Without these llama.cpp takes the hidden size over the heads, which a model with fewer heads does not have.
    for add in (writer.add_key_length, writer.add_value_length, writer.add_rope_dimension_count):
        add(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    for name, tensor in _tensors(model):
        kind = Kind.F32 if tensor.ndim == 1 else ends if "blk." not in name else matrices
        writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check(model: "PreTrainedModel", weights: str) -> None:
    config = model.config
    if config.model_type != "llama":
        raise UserError(f"export: GGUF is written for the Llama architecture only; this is {config.model_type}")
    rope = config.rope_parameters.get("rope_type", "default")
    if rope != "default" or config.rope_parameters.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"export: GGUF is written for plain rotary embeddings only; this model has {rope} ones")
    if config.hidden_act != "silu":
        raise UserError(f"export: llama.cpp's Llama has silu activations, this model {config.hidden_act}")
    if config.attention_bias or config.mlp_bias:
        raise UserError("export: GGUF is written for a Llama without biases only")
    narrow = {n: p.shape[1] for n, p in model.named_parameters() if p.ndim == 2 and p.shape[1] % _BLOCK}
    if weights.startswith("q") and narrow:
        name, width = next(iter(narrow.items()))
        raise UserError(
            f"export: {weights} has a scale for {_BLOCK} weights of a row, and {name} has rows of {width}: take "
            f"float16, or prune in steps of {_BLOCK}"
        )


def _tensors(model: "PreTrainedModel") -> "Iterator[tuple[str, NDArray[np.float32]]]":
    """(name in GGUF, values) of every weight, in llama.cpp's order of rotated pairs; tied embeddings once."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        named = names.get_name(name, try_suffixes=(".weight",))
        if named is None:
            raise UserError(f"export: llama.cpp's Llama has no place for the weight {name}")
        value: NDArray[np.float32] = parameter.detach().float().numpy()
        if name.endswith("q_proj.weight"):
            value = _paired(value, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            value = _paired(value, config.num_key_value_heads)
        yield named, np.ascontiguousarray(value)


def _paired(value: "NDArray[np.float32]", heads: int) -> "NDArray[np.float32]":
    """Rows [heads × width, …] in llama.cpp's order: it rotates neighbours, transformers halves of a head."""
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def _add_tokenizer(writer: "gguf.GGUFWriter", tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    described: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    name = pre_tokenizer_name(described)
    added = {token["id"]: token["special"] for token in described["added_tokens"]}
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(rows)]
    kinds = [
        (_CONTROL if added[i] else _USER_DEFINED) if i in added else _NORMAL if i in by_id else _UNUSED
        for i in range(rows)
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = described["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for add, token in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, tokenizer.eos_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
    ):
        if token is not None:
            add(token)
    first = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer_name(described: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer (its tokenizer.json) splits text.

    Raises:
        UserError: not byte-level BPE, or split in a way that has no name here: llama.cpp would read text otherwise.
    """
    normalizer = described.get("normalizer") or {}
    steps = described.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    last = steps[-1]
    plain = not (normalizer and normalizer.get("normalizers") != [])
    if (
        described["model"]["type"] == "BPE"
        and last.get("type") == "ByteLevel"
        and plain
        and not last["add_prefix_space"]
    ):
        before = steps[:-1]
        if not before and last["use_regex"]:
            return "gpt-2"
        if len(before) == 1 and before[0]["type"] == "Digits" and before[0]["individual_digits"] and last["use_regex"]:
            return "smollm"
        if len(before) == 1 and before[0]["type"] == "Split" and not last["use_regex"]:
            pattern = before[0]["pattern"].get("Regex")
            if before[0]["behavior"] == "Isolated" and pattern in _NAMED_BY_PATTERN:
                return _NAMED_BY_PATTERN[pattern]
    raise UserError(
        "export: GGUF is written for byte-level BPE tokenizers that split text as GPT-2, SmolLM, Llama 3 or Qwen2 do; "
        f"this one is {described['model']['type']} behind {', '.join(str(s.get('type')) for s in steps)}"
    )
