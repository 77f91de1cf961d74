"""Small models to prune, and what the tests of pruning measure on them."""

from pathlib import Path
from typing import Any

import torch

from harness.method import Trained
from harness.models import load_model, save_model
from methods.sft import SFT, SFTParams
from tests.methods.helpers import Log, instructions, make_context, make_inputs

HIDDEN, HEADS, GROUPS, HEAD, CHANNELS = 48, 8, 4, 8, 96
"""Every number of groups is a number that the configuration accepts: 48 is a multiple of 2, 4, 6 and 8 heads."""


def make_model(source: Path, folder: Path, *, kind: str = "llama", layers: int = 3, **changes: Any) -> Path:
    """A random model with grouped-query attention and the tokenizer of `source`; biases are random, not zero."""
    from transformers import AutoConfig, AutoModelForCausalLM

    loaded = load_model(source)
    sizes = {
        "vocab_size": loaded.model.config.vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": CHANNELS,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": loaded.tokenizer.bos_token_id,
        "eos_token_id": loaded.tokenizer.eos_token_id,
        "pad_token_id": loaded.tokenizer.pad_token_id,
    }
    if kind == "qwen2":
        # As published: no head_dim, so a head is the width divided by the number of heads.
        sizes["hidden_size"] = HEADS * HEAD
        del sizes["head_dim"]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **changes}))
    with torch.no_grad():
        for name, value in model.named_parameters():
            # Larger than the 0.02 of pre-training, at which a random model's layers do next to nothing.
            if value.dim() == 2 and "layers" in name:
                value.normal_(0, 0.15)
            elif name.endswith("bias"):
                value.normal_(0, 0.1)
    save_model(model, loaded.tokenizer, folder)
    return folder


def teach(source: Path, place: Path, steps: int = 120) -> Path:
    """The model after supervised training on the tests' instructions: something there is to lose."""
    params = SFTParams(steps=steps, batch_size=8, learning_rate=2e-3)
    trained = SFT().run(make_inputs(source, instructions(200, 1)), params, make_context(place / "scratch", Log()))
    save_model(trained.model, trained.tokenizer, place / "model")
    return place / "model"


def some_ids(model: Any) -> torch.Tensor:
    return torch.randint(3, model.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(3))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=some_ids(model)).logits
    return found


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def reloads_equal(trained: Trained, folder: Path) -> Any:
    """Save, load as anybody would, and compare; the loaded model."""
    from transformers import AutoModelForCausalLM

    save_model(trained.model, trained.tokenizer, folder)
    again, facts = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(facts[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(again), logits(trained.model))
    return again


def generates(model: Any) -> None:
    """Greedy decoding with the cache gives what a whole forward pass for each token gives."""
    ids = some_ids(model)
    kwargs = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    cached = model.generate(ids, use_cache=True, **kwargs)
    plain = ids
    with torch.no_grad():
        for _ in range(8):
            scores = model(input_ids=plain, use_cache=False).logits[:, -1]
            # min_new_tokens keeps the end away.
            scores[:, model.config.eos_token_id] = -torch.inf
            plain = torch.cat([plain, scores.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(cached, plain)
