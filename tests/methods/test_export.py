"""Exports of the tiny model: they say what torch says, hold what a runtime needs, and broken ones are found out."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from harness.errors import InfeasibleError, UserError
from harness.method import find_method
from harness.models import load_model
from methods import export
from methods.export import Export, ExportParams
from tests.methods.helpers import Log, make_context, make_inputs
from tests.runtimes.exports import export_of

FLOAT32 = ["onnx", "openvino"]
SMALLER = [("onnx", "int8", 0.05), ("openvino", "int8", 0.05), ("openvino", "float16", 2e-3)]


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
    # Tied embeddings are stored once.
    assert _weights(done.folder) < 1.02 * (tiny_model / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("format_", "weights", "relative"), SMALLER)
def test_fewer_bits_are_smaller_files_and_small_errors(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, format_: str, weights: str, relative: float
) -> None:
    dense = export_of(tiny_model, tmp_path_factory, format_)
    done = export_of(tiny_model, tmp_path_factory, format_, weights)
    share = {"float16": 0.52, "int8": 0.3, "q8_0": 0.3, "q4_0": 0.25}[weights]
    assert _weights(done.folder) < share * _weights(dense.folder)
    assert done.metrics["file_mb"] < dense.metrics["file_mb"]
    assert dense.metrics["relative_logit_error"] < done.metrics["relative_logit_error"] < relative


def test_a_wrong_export_is_found_out(
    tiny_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the exporter had turned the values' heads around."""
    export_of(tiny_model, tmp_path_factory, "openvino")
    inputs = make_inputs(tiny_model, None)
    write = export._write

    def wrong(policy: object, *rest: object) -> None:
        write(policy, *rest)  # type: ignore[arg-type]  # passed on
        with torch.no_grad():
            for layer in inputs.load("policy").model.model.layers:
                layer.self_attn.v_proj.weight.copy_(layer.self_attn.v_proj.weight.flip(0))

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


def test_a_pruned_model_is_exported(tiny_model: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One KV group less, so that heads × width is no longer the hidden size."""
    from harness.models import save_model

    loaded = load_model(tiny_model)
    config = type(loaded.model.config).from_dict(
        {**loaded.model.config.to_dict(), "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    )
    torch.manual_seed(0)
    folder = tmp_path / "pruned"
    save_model(type(loaded.model)(config), loaded.tokenizer, folder)
    assert export_of(folder, tmp_path_factory, "openvino").metrics["max_logit_error"] < 1e-4
