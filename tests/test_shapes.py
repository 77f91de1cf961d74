"""What two models must have in common to share one profile."""

import json
import shutil
from pathlib import Path

import pytest

from harness._shapes import folder_shape
from harness.models import load_model, save_model


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model, folder)
    return folder


def test_weights_do_not_count_and_types_and_sizes_do(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    loaded = load_model(tiny_model)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.mul_(0.5)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "halved")
    assert folder_shape(tmp_path / "halved") == folder_shape(tiny_model)
    save_model(loaded.model.to(torch.bfloat16), loaded.tokenizer, tmp_path / "bf16")
    assert folder_shape(tmp_path / "bf16") != folder_shape(tiny_model)


@pytest.mark.parametrize(("key", "same"), [("_name_or_path", True), ("hidden_act", False), ("rope_theta", False)])
def test_of_a_configuration_only_its_names_are_left_out(
    copied: Path, tiny_model: Path, key: str, *, same: bool
) -> None:
    path = copied / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: "other"}))
    assert (folder_shape(copied) == folder_shape(tiny_model)) is same


def test_an_exported_model_counts_by_its_files(copied: Path) -> None:
    for path in copied.glob("*.safetensors"):
        path.unlink()
    (copied / "model.onnx").write_bytes(b"graph")
    before = folder_shape(copied)
    (copied / "model.onnx").write_bytes(b"other")
    assert folder_shape(copied) != before
