"""What a batch's rows share is computed once: the same losses and gradients as row by row, on fewer tokens."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.method import find_method
from harness.models import load_model
from methods import _shared_prompt
from methods._rows import preference_rows
from methods._shared_prompt import grow, shared_attention
from tests.methods.helpers import Log, make_context, make_inputs, preferences, turn

SYSTEM = turn("system", "you are a short and honest helper")


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt": [SYSTEM, turn("user", question)],
        "chosen": [turn("assistant", chosen)],
        "rejected": [turn("assistant", rejected)],
    }


def uneven(count: int = 8) -> Any:
    """Prompts of many lengths, one of them twice; answers that begin alike, that are equal, and very short ones."""
    import datasets

    rows = [
        pair("name a river", "the river is long and wide", "the river is a stone"),
        pair("name a river", "no", "the cloud, the tiger and the lemon play the piano in the north " * 2),
        pair("what does the green tiger in the north say to the lemon on the chair?", "please", "never"),
        pair("say it", "apple please", "apple please"),
        pair("a", "b", "c"),
        pair("count to three, then name " + "a stone and " * 6, "one two three", "three two one zero"),
        pair("name a cloud", "green", "green cloud"),
        pair("name a chair", "a chair", "no chair"),
    ]
    return datasets.Dataset.from_list(rows[:count])


@pytest.fixture
def row_by_row(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A block in which nothing is shared."""

    @contextlib.contextmanager
    def plain() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(_shared_prompt, "_may_share", lambda _model: False)
            yield

    return plain


def test_a_tree_holds_every_token_once() -> None:
    rows = [[1, 2, 3, 4, 7, 8], [1, 2, 5, 6], [1, 2, 3, 4, 7, 9, 9], [1, 2, 5, 7]]
    tree = grow(rows, [4, 3, 4, 3], torch.device("cpu"))
    assert tree.root == 2
    # 1 2 | 3 4 7 | 8 | 9 9 || 5 | 6 | 7: the answers' common beginning, too, is there once.
    assert tree.ids.tolist() == [[1, 2, 3, 4, 7, 8, 9, 9, 5, 6, 7]]
    assert tree.positions.tolist() == [[0, 1, 2, 3, 4, 5, 5, 6, 2, 3, 3]]
    assert [[int(tree.ids[0, p]) for p in at[: len(row)]] for row, at in zip(rows, tree.places, strict=True)] == rows
    seen = (~tree.hidden).tolist()
    # What the last 9 sees of the first group: both first tokens, 3 4 7, not 8, both of its own.
    assert seen[0][5] == [True] * 5 + [False, True, True]
    # What 7 sees of the second: both first tokens and 5, not 6, itself.
    assert seen[1][2][:5] == [True, True, True, False, True]


def test_rows_of_one_prompt_have_no_root_of_their_own() -> None:
    tree = grow([[1, 2, 3], [1, 2, 4, 5]], [2, 2], torch.device("cpu"))
    assert (tree.root, tree.ids.tolist()) == (0, [[1, 2, 3, 4, 5]])


LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {}),
    ("dpo", {"loss_type": "ipo"}),
    ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}),
    ("dpo", {"loss_type": "cdpo", "label_smoothing": 0.1}),
    ("dpo", {"loss_type": "aot"}),
    ("dpo", {"loss_type": "sigmoid_norm"}),
    ("kto", {}),
    ("kto", {"loss_type": "apo_zero_unpaired"}),
    ("orpo", {}),
    ("cpo", {}),
    ("simpo", {}),
    ("dpo", {"gradient_checkpointing": True}),
    ("dpo", {"lora_rank": 4}),
    ("dpo", {"lora_rank": 4, "adapter": "dora"}),
    ("dpo", {"lora_rank": 4, "gradient_checkpointing": True}),
]


def losses_and_gradients(
    folder: Path, scratch: Path, name: str, settings: dict[str, Any]
) -> tuple[list[float], dict[str, torch.Tensor], bool]:
    """Of two batches, by the method's own trainer."""
    method: Any = find_method(name)
    params = method.params.model_validate({"steps": 2, "batch_size": 6, **settings})
    loaded = load_model(folder)
    rows = preference_rows(uneven(), loaded.tokenizer, 512)
    with shared_attention(loaded.model) as shared:
        context = make_context(scratch, Log())
        trainer = method().trainer(loaded.model, loaded.tokenizer, rows, params, context)
        model = trainer.accelerator.prepare(trainer.model).train()
        found = []
        torch.manual_seed(0)
        for weight in (p for n, p in model.named_parameters() if "lora_B" in n):
            # Or no gradient would reach the first of an adapter's two matrices.
            torch.nn.init.normal_(weight, std=0.05)
        for batch in trainer.get_train_dataloader():
            loss = trainer.compute_loss(model, batch)
            loss.backward()
            found.append(float(loss.detach()))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return found, gradients, shared


@pytest.mark.parametrize(("name", "settings"), LOSSES, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v)))
def test_losses_and_gradients_are_those_of_rows_by_themselves(
    name: str, settings: dict[str, Any], tiny_model: Path, tmp_path: Path, row_by_row: Any
) -> None:
    losses, gradients, shared = losses_and_gradients(tiny_model, tmp_path, name, settings)
    with row_by_row():
        right, plain, not_shared = losses_and_gradients(tiny_model, tmp_path, name, settings)
    assert (shared, not_shared) == (True, False)
    assert losses == pytest.approx(right, rel=1e-5, abs=1e-5)
    assert gradients.keys() == plain.keys()
    assert max(float(g.abs().max()) for g in plain.values()) > 1e-3
    for key, gradient in plain.items():
        assert torch.allclose(gradients[key], gradient, rtol=1e-5, atol=1e-5), key


def test_fewer_tokens_go_through_the_layers(tiny_model: Path, tmp_path: Path, row_by_row: Any) -> None:
    def tokens() -> int:
        seen = []
        loaded = load_model(tiny_model)
        loaded.model.model.layers[0].register_forward_hook(
            lambda _module, args, _out: seen.append(args[0].shape[0] * args[0].shape[1])
        )
        inputs = make_inputs(tiny_model, uneven())
        inputs._loaded["policy"] = loaded
        method: Any = find_method("simpo")
        params = method.params(steps=1, batch_size=8)
        metrics = method().run(inputs, params, make_context(tmp_path, Log())).metrics
        # The trial of the architecture comes first.
        return int(seen[-1]) if metrics["shared_prompt"] in (0.0, 1.0) else 0

    shared = tokens()
    with row_by_row():
        assert shared < 0.5 * tokens()


def test_longer_rows_take_the_fused_kernel_to_the_same_numbers(tiny_model: Path, row_by_row: Any) -> None:
    model = load_model(tiny_model).model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (3, 340), generator=generator)
    ids[1, :200] = ids[0, :200]
    ids[2, :20] = ids[0, :20]
    wanted = torch.zeros(3, 339, dtype=torch.bool)
    wanted[:, 199:] = True
    directions = torch.randn(int(wanted.sum()), 64, generator=generator)
    results = []
    for block in (contextlib.nullcontext, row_by_row):
        model.zero_grad()
        with block(), shared_attention(model) as shared:
            ones = torch.ones_like(ids)
            if shared:
                states = _shared_prompt.states_before(wanted, model, ids, ones, {"use_cache": False})
            else:
                states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][wanted]
            # Not their squares, whose sum the last norm keeps constant.
            (states * directions).sum().backward()  # type: ignore[no-untyped-call]  # torch
        results.append((states.detach(), model.model.embed_tokens.weight.grad.clone()))
    (found, gradient), (right, plain) = results
    assert torch.allclose(found, right, atol=1e-5)
    assert torch.allclose(gradient, plain, atol=1e-5 * float(plain.abs().max()))


SIZES: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}


def _model(kind: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    configs = {
        "llama": lambda: t.LlamaConfig(**SIZES),
        "qwen3": lambda: t.Qwen3Config(**SIZES, head_dim=8),
        "olmo2": lambda: t.Olmo2Config(**SIZES),
        "gpt2": lambda: t.GPT2Config(vocab_size=600, n_positions=128, n_embd=32, n_layer=2, n_head=4),
        "sliding": lambda: t.MistralConfig(**SIZES, sliding_window=8),
        "gemma3": lambda: t.Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=8),
        "recurrent": lambda: t.MambaConfig(vocab_size=600, hidden_size=32, num_hidden_layers=2, state_size=4),
        "alibi": lambda: t.BloomConfig(vocab_size=600, hidden_size=32, n_layer=2, n_head=4),
        "experts": lambda: t.Qwen3MoeConfig(**SIZES, head_dim=8, num_experts=4, moe_intermediate_size=16),
        "scaled logits": lambda: t.CohereConfig(**SIZES, logit_scale=0.5),
        "dropout": lambda: t.LlamaConfig(**SIZES, attention_dropout=0.1),
    }
    return t.AutoModelForCausalLM.from_config(configs[kind]()).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "olmo2", "gpt2"])
def test_architectures_that_share(kind: str) -> None:
    with shared_attention(_model(kind)) as shared:
        assert shared


@pytest.mark.parametrize("kind", ["sliding", "gemma3", "recurrent", "alibi", "experts", "scaled logits", "dropout"])
def test_architectures_that_would_compute_something_else_do_not(kind: str) -> None:
    model = _model(kind)
    before = model.config._attn_implementation
    with shared_attention(model) as shared:
        assert not shared
    assert model.config._attn_implementation == before


def test_a_model_that_breaks_its_word_is_found_by_trial() -> None:
    # Attention that hands on no argument of its caller: the tree would be read as one causal row.
    model = _model("llama")
    for layer in model.model.layers:
        forward = layer.self_attn.forward
        layer.self_attn.forward = lambda *a, forward=forward, **k: forward(
            *a, **{n: v for n, v in k.items() if n != "tree"}
        )
    with shared_attention(model) as shared:
        assert not shared
    assert not model.training


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_a_stage_says_and_learns(precision: Any, tiny_model: Path, tmp_path: Path, row_by_row: Any) -> None:
    method: Any = find_method("dpo")
    params = method.params(steps=8, batch_size=4, learning_rate=1e-3)

    def run() -> tuple[float, list[float]]:
        log = Log()
        context = make_context(tmp_path, log, precision=precision)
        trained = method().run(make_inputs(tiny_model, preferences(40, 1)), params, context)
        assert trained.model.config._attn_implementation == "sdpa"
        return trained.metrics["shared_prompt"], log.values("loss")

    said, losses = run()
    with row_by_row():
        plain_said, plain = run()
    assert (said, plain_said) == (1.0, 0.0)
    assert losses == pytest.approx(plain, abs=1e-4 if precision == "float32" else 2e-2)


def test_vectors_before_the_prompt_are_trained_row_by_row(tiny_model: Path, tmp_path: Path) -> None:
    method: Any = find_method("dpo")
    params = method.params(steps=1, batch_size=4, adapter="prompt_tuning", lora_merge=False)
    metrics = method().run(make_inputs(tiny_model, preferences(20, 1)), params, make_context(tmp_path, Log())).metrics
    assert metrics["shared_prompt"] == 0.0
