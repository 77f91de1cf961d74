"""Exports of the tiny model: they say what torch says, hold what a runtime needs, and broken ones are found out."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import InfeasibleError, UserError
from harness.method import LoadedModel, find_method
from harness.models import load_model
from methods import export
from methods.export import Export, ExportParams
from tests.methods.helpers import Log, make_context, make_inputs
from tests.runtimes.exports import export_of, needs

FLOAT32 = ["onnx", "openvino", "gguf"]
SMALLER = [
    ("onnx", "int8", 0.05),
    ("openvino", "int8", 0.05),
    ("openvino", "float16", 2e-3),
    ("gguf", "float16", 2e-3),
    ("gguf", "q8_0", 0.05),
    ("gguf", "q4_0", 0.2),
]


def _weights(folder: Path) -> int:
    """Bytes of weights: the graph around them is most of a tiny model's file."""
    return sum(p.stat().st_size for p in folder.iterdir() if p.name.endswith((".data", ".bin", ".gguf")))


@pytest.mark.parametrize("format_", FLOAT32)
def test_a_float32_export_says_what_torch_says(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, format_: str
) -> None:
    done = export_of(tiny_model, tmp_path_factory, format_)
    assert done.metrics["max_logit_error"] < 1e-4
    assert done.metrics["greedy_agreement"] == 1
    names = {p.name for p in done.folder.iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [n for n in names if n.endswith(".safetensors")]
    # Tied embeddings are stored once; a GGUF file holds the tokenizer too.
    assert _weights(done.folder) < 1.1 * (tiny_model / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("format_", "weights", "relative"), SMALLER)
def test_fewer_bits_are_smaller_files_and_small_errors(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, format_: str, weights: str, relative: float
) -> None:
    dense = export_of(tiny_model, tmp_path_factory, format_)
    done = export_of(tiny_model, tmp_path_factory, format_, weights)
    share = {"float16": 0.52, "int8": 0.3, "q8_0": 0.3, "q4_0": 0.25}[weights]
    assert _weights(done.folder) < share * _weights(dense.folder)
    assert done.metrics["file_mb"] < dense.metrics["file_mb"]
    assert done.metrics["float32_logit_error"] < 1e-4
    assert dense.metrics["relative_logit_error"] < done.metrics["relative_logit_error"] < relative


def test_a_wrong_export_is_found_out(
    tiny_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the exporter had turned the values' heads around."""
    export_of(tiny_model, tmp_path_factory, "openvino")
    inputs = make_inputs(tiny_model, None)
    write = export._write

    def wrong(policy: LoadedModel, *rest: Any) -> None:
        with torch.no_grad():
            for layer in policy.model.model.layers:
                layer.self_attn.v_proj.weight.copy_(layer.self_attn.v_proj.weight.flip(0))
        write(policy, *rest)

    monkeypatch.setattr(export, "_write", wrong)
    with pytest.raises(InfeasibleError, match="differ from torch's by"):
        Export().run(inputs, ExportParams(format="openvino"), make_context(tmp_path, Log()))


def test_what_is_no_plain_float32_policy_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    params = ExportParams(format="onnx")

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            Export().run(inputs, params, make_context(tmp_path, Log()))

    inputs = make_inputs(tiny_model, None)
    inputs.load("policy").model.bfloat16()
    refused("expected plain float32 weights, got torch.bfloat16")
    inputs = make_inputs(tiny_model, None)
    inputs.load("policy").model.config.quantization_config = {"quant_method": "torchao"}
    refused("quantised already")
    inputs = make_inputs(tiny_model, None)
    inputs.load("policy").model.peft_config = {"default": object()}
    refused("merge it first")


def test_a_cache_of_another_kind_is_refused(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    from methods._export_graph import capture

    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, sliding_window=4,
        )
    )  # fmt: skip
    with pytest.raises(UserError, match="only full attention"):
        capture(model)


def test_weights_go_with_the_format() -> None:
    with pytest.raises(ValidationError, match="format onnx has weights float32, int8; got q8_0"):
        ExportParams(format="onnx", weights="q8_0")


def test_its_targets_are_those_of_its_runtime() -> None:
    method = find_method("export")
    assert method.deploys({"format": "onnx"})
    assert method.runs_on({"format": "gguf", "weights": "q8_0"}) == {"llamacpp"}
    assert "format" in method.fixed


@pytest.mark.parametrize("format_", ["openvino", "gguf"])
def test_a_pruned_model_is_exported(
    tiny_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, format_: str
) -> None:
    """One KV group less, so that heads × width is no longer the hidden size."""
    from harness.models import save_model

    loaded = load_model(tiny_model)
    config = type(loaded.model.config).from_dict(
        {**loaded.model.config.to_dict(), "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    )
    torch.manual_seed(0)
    folder = tmp_path / "pruned"
    save_model(type(loaded.model)(config), loaded.tokenizer, folder)
    assert export_of(folder, tmp_path_factory, format_).metrics["max_logit_error"] < 1e-4


def test_embeddings_that_are_no_output_matrix_get_a_scale_for_each_row() -> None:
    """SmolLM2 and the tiny model have tied ones."""
    needs("onnx")
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from methods._export_onnx_int8 import _embeddings

    table = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32) * np.arange(7, dtype=np.float32)[:, None]
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["out"])],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(table, "table")],
    )
    _embeddings(graph)
    assert {t.name: t.data_type for t in graph.initializer} == {
        "table.steps": TensorProto.INT8,
        "table.scales": TensorProto.FLOAT,
    }
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.array([6, 0, 3, 3], dtype=np.int64)
    (found,) = session.run(None, {"ids": ids})
    assert (np.abs(found - table[ids]) <= np.abs(table[ids]).max(1, keepdims=True) * 0.501 / 127).all()


@pytest.mark.parametrize("weights", ["float32", "float16", "q8_0", "q4_0"])
def test_gguf_is_read_back_as_the_model_it_was_made_from(tiny_model: Path, tmp_path: Path, weights: str) -> None:
    """By transformers' own reader, which knows nothing of our writer: each weight within a step of its type."""
    from transformers import AutoModelForCausalLM

    from methods._export_gguf import write_gguf

    loaded = load_model(tiny_model)
    write_gguf(loaded.model, loaded.tokenizer, weights, tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    assert read.config.head_dim == loaded.model.config.head_dim
    assert read.config.num_key_value_heads == loaded.model.config.num_key_value_heads
    right = dict(loaded.model.named_parameters())
    for name, found in read.named_parameters():
        if name == "lm_head.weight":
            continue
        values = right[name]
        if weights == "float32" or values.ndim == 1:
            torch.testing.assert_close(found, values, atol=0, rtol=0)
            continue
        bits = {"float16": None, "q8_0": 8, "q4_0": 8 if "embed" in name else 4}[weights]
        blocks = values.reshape(-1, 32)
        # Half a step; of 4 bits a whole one, as their range is one step short on one side. The scale is a float16.
        coarse = {None: 0.0, 8: 0.5 / 127, 4: 1 / 8}[bits] + 2**-11
        step = coarse * blocks.abs().amax(1, keepdim=True)
        assert ((found.reshape(-1, 32) - blocks).abs() <= step + 1e-6).all(), name


def test_gguf_is_checked_without_llamacpp_too(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llama_cpp" else find(name, *rest)
    )
    inputs, params = make_inputs(tiny_model, None), ExportParams(format="gguf", weights="q8_0")
    metrics = Export().run(inputs, params, make_context(tmp_path, Log())).metrics
    assert metrics["checked_in_runtime"] == 0
    assert metrics["float32_logit_error"] < 1e-4 < metrics["max_logit_error"]


def test_gguf_refuses_what_llamacpp_would_read_otherwise(tiny_model: Path, tmp_path: Path) -> None:
    from methods._export_gguf import write_gguf

    loaded = load_model(tiny_model)
    config = loaded.model.config

    def refused(match: str, weights: str = "float32") -> None:
        with pytest.raises(UserError, match=match):
            write_gguf(loaded.model, loaded.tokenizer, weights, tmp_path)

    for name, value, match in (
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1.0}, "llama3"),
        ("hidden_act", "gelu", "gelu"),
        ("attention_bias", True, "without biases"),
        ("model_type", "opt", "Llama architecture only; this is opt"),
    ):
        before = getattr(config, name)
        setattr(config, name, value)
        refused(match)
        setattr(config, name, before)
    loaded.model.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(64, 100))
    refused("rows of 100: take", "q8_0")
    loaded.model.register_parameter("other", torch.nn.Parameter(torch.zeros(2)))
    refused("no place for the weight other")


def test_gguf_names_the_way_text_is_split() -> None:
    from methods._export_gguf import _LLAMA3, pre_tokenizer_name

    def described(*steps: dict[str, Any], kind: str = "BPE") -> dict[str, Any]:
        return {"model": {"type": kind}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}

    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    bare = {**plain, "use_regex": False}
    llama3 = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated"}
    assert pre_tokenizer_name(described(plain)) == "gpt-2"
    assert pre_tokenizer_name(described({"type": "Digits", "individual_digits": True}, plain)) == "smollm"
    assert pre_tokenizer_name(described(llama3, bare)) == "llama-bpe"
    for other in (
        described(plain, kind="Unigram"),
        described({**plain, "add_prefix_space": True}),
        described({**llama3, "pattern": {"Regex": "."}}, bare),
        {**described(plain), "normalizer": {"type": "NFC"}},
    ):
        with pytest.raises(UserError, match="byte-level BPE"):
            pre_tokenizer_name(other)


def test_llamacpp_reads_text_as_our_tokenizer_does(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = export_of(tiny_model, tmp_path_factory, "gguf").folder
    from llama_cpp import Llama

    reader = Llama(str(folder / "model.gguf"), vocab_only=True, verbose=False)
    tokenizer = load_model(tiny_model).tokenizer
    for text in ("Ann has 1234 apples,  and\n\n eats none.", "na\u00efve \u2603", "<|im_start|>user\nHi<|im_end|>"):
        assert reader.tokenize(text.encode(), add_bos=False, special=True) == tokenizer(text)["input_ids"]
    assert reader.metadata["tokenizer.chat_template"] == tokenizer.chat_template
