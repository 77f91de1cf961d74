"""Pruning of feed-forward channels: exactly those meant leave, the right ones are found, and the model is ordinary."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import UserError
from harness.method import Trained
from harness.models import load_model, save_model
from methods import prune_mlp
from methods._pruning import activation_importance, calibration_rows, gradient_importance
from methods.prune_mlp import PruneMLP, PruneMLPParams
from tests.methods.helpers import Log, held_out_loss, instructions, make_context, make_inputs
from tests.methods.pruning_models import (
    CHANNELS,
    HIDDEN,
    generates,
    logits,
    make_model,
    parameters,
    reloads_equal,
    teach,
)

KINDS = ["gradient", "activation", "weight"]


@pytest.fixture(scope="module")
def grouped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tiny_model, tmp_path_factory.mktemp("grouped") / "model")


@pytest.fixture(scope="module")
def taught(grouped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(grouped, tmp_path_factory.mktemp("taught"))


def run(folder: Path, scratch: Path, *, seed: int = 0, **more: Any) -> Trained:
    params = PruneMLPParams(**{"calibration_rows": 8, **more})
    return PruneMLP().run(make_inputs(folder, instructions(30, 3)), params, make_context(scratch, Log(), seed=seed))


def without(model: Any, removed: list[torch.Tensor]) -> Any:
    """A copy of the model whose feed-forward layers do not read these channels."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer, channels in zip(model.model.layers, removed, strict=True):
            layer.mlp.down_proj.weight[:, channels] = 0
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_removing_is_zeroing(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    changes = {"mlp_bias": True} if kind == "llama" else {}
    folder = make_model(tiny_model, tmp_path / "model", kind=kind, **changes)
    before = load_model(folder).model
    score = torch.rand(3, CHANNELS, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(prune_mlp, "_importance", lambda *_: score.double())
    trained = run(folder, tmp_path, fraction=1 / 3)
    removed = [layer.argsort()[:32] for layer in score]
    assert torch.allclose(logits(trained.model), logits(without(before, removed)), atol=1e-5)
    assert not torch.allclose(logits(trained.model), logits(before), atol=1e-2)
    biases = 2 if kind == "llama" else 0
    assert parameters(before) - parameters(trained.model) == 3 * 32 * (3 * before.config.hidden_size + biases)
    assert trained.metrics["parameters_before"] == parameters(before)
    assert trained.metrics["parameters"] == parameters(trained.model)
    assert trained.metrics["channels_removed"] == 96
    assert trained.metrics["fraction_removed"] == pytest.approx(1 / 3)
    again = reloads_equal(trained, tmp_path / "pruned")
    assert again.config.intermediate_size == CHANNELS - 32
    generates(again)


@pytest.mark.parametrize("importance", KINDS)
def test_finds_the_channels_that_do_nothing(grouped: Path, tmp_path: Path, importance: str) -> None:
    loaded = load_model(grouped)
    # One is read weakly, one is written weakly by what multiplies it.
    places = [torch.tensor([7, 40]), torch.tensor([0, 95]), torch.tensor([31, 32])]
    with torch.no_grad():
        for layer, (one, two) in zip(loaded.model.model.layers, places, strict=True):
            layer.mlp.down_proj.weight[:, one] *= 1e-3
            layer.mlp.up_proj.weight[two] *= 1e-3
    save_model(loaded.model, loaded.tokenizer, tmp_path / "planted")
    trained = run(tmp_path / "planted", tmp_path, importance=importance, multiple_of=2, fraction=2 / CHANNELS)
    assert torch.allclose(logits(trained.model), logits(without(loaded.model, places)), atol=1e-5)


@pytest.mark.parametrize("importance", KINDS)
def test_scales_that_cancel_change_nothing(grouped: Path, tmp_path: Path, importance: str) -> None:
    loaded = load_model(grouped)
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            layer.mlp.up_proj.weight[:10] *= 100
            layer.mlp.down_proj.weight[:, :10] /= 100
            layer.post_attention_layernorm.weight[:10] *= 20
            for name in ("gate_proj", "up_proj"):
                layer.mlp.get_submodule(name).weight[:, :10] /= 20
    save_model(loaded.model, loaded.tokenizer, tmp_path / "scaled")
    plain, scaled = (run(f, tmp_path, importance=importance, fraction=1 / 3) for f in (grouped, tmp_path / "scaled"))
    assert torch.allclose(logits(plain.model), logits(scaled.model), atol=1e-3)


@pytest.mark.parametrize("importance", KINDS)
def test_removing_the_most_important_is_worse(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importance: str
) -> None:
    loaded, rows = load_model(taught), instructions(30, 9)
    least = held_out_loss(loaded, run(taught, tmp_path, importance=importance, fraction=1 / 3).model, rows)
    measure = prune_mlp._importance
    monkeypatch.setattr(prune_mlp, "_importance", lambda *args: -measure(*args))
    most = held_out_loss(loaded, run(taught, tmp_path, importance=importance, fraction=1 / 3).model, rows)
    assert least < most - 0.2


def test_importance_is_what_it_says(taught: Path, tmp_path: Path) -> None:
    loaded, context = load_model(taught), make_context(tmp_path, Log())
    model = loaded.model
    inputs = make_inputs(taught, instructions(4, 3))
    rows = calibration_rows(inputs, model, loaded.tokenizer, PruneMLPParams(calibration_rows=2), context, "test")
    readers = [layer.mlp.down_proj for layer in model.model.layers]
    gradient = gradient_importance(model, readers, CHANNELS, rows, context)
    activation = activation_importance(model, readers, CHANNELS, rows, context)
    layer, channel, epsilon = 2, int(gradient[2].argmax()), 1e-2
    slopes = []
    for row in rows:
        losses = []
        for sign in (1, -1):
            changed = copy.deepcopy(model)
            with torch.no_grad():
                changed.model.layers[layer].mlp.down_proj.weight[:, channel] *= 1 + sign * epsilon
                losses.append(float(changed(**row).loss))
        slopes.append(abs(losses[0] - losses[1]) / (2 * epsilon))
    assert float(gradient[layer, channel]) == pytest.approx(sum(slopes) / 2, rel=0.02, abs=1e-4)
    seen: list[torch.Tensor] = []
    hook = readers[layer].register_forward_pre_hook(lambda _module, args: seen.append(args[0][0]))
    with torch.no_grad():
        for row in rows:
            model(input_ids=row["input_ids"])
    hook.remove()
    expected = torch.cat(seen).abs().mean(0) * readers[layer].weight.norm(dim=0)
    assert torch.allclose(activation[layer].float(), expected.detach(), rtol=1e-3)


def test_bfloat16_ranks_as_float32_does(taught: Path, tmp_path: Path) -> None:
    loaded = load_model(taught)
    readers = [layer.mlp.down_proj for layer in loaded.model.model.layers]
    found = []
    for precision in ("float32", "bfloat16"):
        context = make_context(tmp_path, Log(), precision=precision)  # type: ignore[arg-type]  # one of the two
        inputs = make_inputs(taught, instructions(4, 3))
        rows = calibration_rows(inputs, loaded.model, loaded.tokenizer, PruneMLPParams(), context, "test")
        found.append(activation_importance(loaded.model, readers, CHANNELS, rows, context))
    assert torch.allclose(found[0], found[1], rtol=0.05, atol=1e-3)


def test_steps_and_errors(grouped: Path, tmp_path: Path) -> None:
    assert run(grouped, tmp_path, fraction=0.3).model.config.intermediate_size == 64
    assert run(grouped, tmp_path, fraction=0.3, multiple_of=1).model.config.intermediate_size == 67
    assert run(grouped, tmp_path, fraction=0.3, importance="weight").metrics["parameters"] < parameters(
        load_model(grouped).model
    )
    with pytest.raises(UserError, match=r"would remove 0 of the 96 .* take 0.3333 to 0.6667, or a smaller"):
        run(grouped, tmp_path, fraction=0.1)
    with pytest.raises(UserError, match="one channel must stay"):
        run(grouped, tmp_path, fraction=0.99)
    with pytest.raises(UserError, match=r": take a smaller multiple_of$"):
        run(grouped, tmp_path, fraction=0.5, multiple_of=128)
    with pytest.raises(UserError, match="dataset"):
        PruneMLP().run(make_inputs(grouped, None), PruneMLPParams(fraction=0.5), make_context(tmp_path, Log()))
    with pytest.raises(ValidationError, match="fraction"):
        PruneMLPParams(fraction=1.5)


def test_other_architectures_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    gemma = make_model(tiny_model, tmp_path / "gemma", kind="gemma", hidden_size=HIDDEN)
    with pytest.raises(UserError, match=r"GemmaForCausalLM.*it knows llama"):
        run(gemma, tmp_path)
    assert PruneMLP.compresses is True
