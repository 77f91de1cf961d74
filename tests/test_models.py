"""Models: loading, the reward head, saving, and what is refused."""

from pathlib import Path

import pytest

from harness.errors import UserError
from harness.models import folder_fingerprint, load_model, model_problem, resolve_model, save_model


def test_a_new_reward_head_is_zero_and_a_trained_one_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    weight = load_model(tiny_model, head="reward").model.get_submodule("score").weight
    assert not weight.any()
    with torch.no_grad():
        weight.fill_(0.25)
    loaded = load_model(tiny_model, head="reward")
    loaded.model.get_submodule("score").weight.data.fill_(0.25)
    save_model(loaded.model, loaded.tokenizer, tmp_path)
    again = load_model(tmp_path, head="reward").model.get_submodule("score").weight
    assert torch.equal(again, weight)


def test_saved_models_are_safetensors_and_load_equal(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    loaded = load_model(tiny_model)
    assert not loaded.model.training
    assert loaded.tokenizer.padding_side == "left"
    save_model(loaded.model, loaded.tokenizer, tmp_path / "copy")
    assert list((tmp_path / "copy").glob("*.safetensors"))
    copy = load_model(tmp_path / "copy")
    ids = torch.arange(5, 25)[None]
    assert torch.equal(loaded.model(ids).logits, copy.model(ids).logits)
    assert copy.tokenizer.chat_template == loaded.tokenizer.chat_template


def test_the_fingerprint_sees_weights_and_names(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_model)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "a")
    before = folder_fingerprint(tmp_path / "a")
    assert before == folder_fingerprint(tmp_path / "a")
    next(loaded.model.parameters()).data.add_(1.0)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "a")
    assert folder_fingerprint(tmp_path / "a") != before


def test_what_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    assert "not a bundled model" in str(model_problem("smollm2"))
    assert "config.json" in str(model_problem(str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "safetensors" in str(model_problem(str(tmp_path)))
    with pytest.raises(UserError, match="safetensors"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not really")
    assert "no safetensors file" in str(model_problem(str(tmp_path)))
    with pytest.raises(UserError, match="cannot load"):
        load_model(tmp_path)


def test_the_bundled_model_ends_its_turns_with_its_own_token() -> None:
    """The GGUF header names the wrong token; a policy that never ends a turn learns nothing from an end."""
    folder = resolve_model("smollm2-135m-instruct")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert tokenizer.decode(tokenizer("The capital of France").input_ids) == "The capital of France"
