"""Pruning of heads: exactly the groups meant leave, the right ones are found, and what is left is an ordinary model."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import InfeasibleError, PrunedError, UserError
from harness.method import Trained
from harness.models import load_model, save_model
from methods import prune_heads
from methods._pruning import activation_importance, calibration_rows, gradient_importance
from methods.prune_heads import PruneHeads, PruneHeadsParams
from methods.sft import SFT, SFTParams
from tests.methods.helpers import Log, held_out_loss, instructions, make_context, make_inputs
from tests.methods.pruning_models import (
    GROUPS,
    HEAD,
    HEADS,
    HIDDEN,
    generates,
    logits,
    make_model,
    parameters,
    reloads_equal,
    teach,
)

PER_GROUP = HEADS // GROUPS


@pytest.fixture(scope="module")
def grouped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tiny_model, tmp_path_factory.mktemp("grouped") / "model")


@pytest.fixture(scope="module")
def taught(grouped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(grouped, tmp_path_factory.mktemp("taught"))


def run(folder: Path, scratch: Path, *, log: Log | None = None, seed: int = 0, **more: Any) -> Trained:
    params = PruneHeadsParams(**{"calibration_rows": 8, **more})
    return PruneHeads().run(
        make_inputs(folder, instructions(30, 3)), params, make_context(scratch, log or Log(), seed=seed)
    )


def without(model: Any, removed: list[list[int]]) -> Any:
    """A copy of the model with all projections of these groups, layer by layer, set to zero."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer, groups in zip(model.model.layers, removed, strict=True):
            for group in groups:
                for name, per in (("q_proj", PER_GROUP), ("k_proj", 1), ("v_proj", 1), ("o_proj", PER_GROUP)):
                    size = per * layer.self_attn.head_dim
                    projection = getattr(layer.self_attn, name)
                    part = slice(group * size, (group + 1) * size)
                    if name == "o_proj":
                        projection.weight[:, part] = 0
                    else:
                        projection.weight[part] = 0
                        if projection.bias is not None:
                            projection.bias[part] = 0
    return model


def score_as(monkeypatch: pytest.MonkeyPatch, score: torch.Tensor) -> None:
    monkeypatch.setattr(prune_heads, "_importance", lambda *_: score.double())


@pytest.mark.parametrize(
    ("kind", "count"), [("llama", 1), ("llama", 2), ("mistral", 1), ("qwen2", 1), ("qwen3", 1), ("smollm3", 1)]
)
def test_removing_is_zeroing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    folder = make_model(tiny_model, tmp_path / "model", kind=kind)
    before = load_model(folder).model
    score = torch.tensor([[3.0, 1, 2, 4], [1, 2, 3, 4], [4, 3, 2, 1]])
    score_as(monkeypatch, score)
    trained = run(folder, tmp_path, fraction=count / GROUPS)
    removed = [layer.argsort()[:count].tolist() for layer in score]
    assert torch.allclose(logits(trained.model), logits(without(before, removed)), atol=1e-5)
    assert not torch.allclose(logits(trained.model), logits(before), atol=1e-2)
    width = before.config.hidden_size
    rows = (2 * PER_GROUP + 2) * HEAD * width
    if before.model.layers[0].self_attn.q_proj.bias is not None:
        rows += (PER_GROUP + 2) * HEAD
    assert parameters(before) - parameters(trained.model) == 3 * count * rows
    assert trained.metrics["parameters_before"] - trained.metrics["parameters"] == 3 * count * rows
    assert trained.metrics["heads_removed"] == 3 * count * PER_GROUP
    assert trained.metrics["heads_zeroed"] == 0
    assert trained.metrics["fraction_removed"] == count / GROUPS
    again = reloads_equal(trained, tmp_path / "pruned")
    assert again.config.num_attention_heads == HEADS - count * PER_GROUP
    assert again.config.num_key_value_heads == GROUPS - count
    assert again.config.head_dim == HEAD
    generates(again)


def test_queries_stay_with_their_keys(grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_model(grouped).model
    score_as(monkeypatch, torch.tensor([[1.0, 9, 2, 8]] * 3))
    after = run(grouped, tmp_path, fraction=0.5).model
    for old, new in zip(before.model.layers, after.model.layers, strict=True):
        for name, per in (("q_proj", PER_GROUP), ("k_proj", 1), ("v_proj", 1)):
            whole = getattr(old.self_attn, name).weight.reshape(GROUPS, per * HEAD, HIDDEN)
            assert torch.equal(getattr(new.self_attn, name).weight, whole[[1, 3]].flatten(0, 1))
        whole = old.self_attn.o_proj.weight.reshape(HIDDEN, GROUPS, PER_GROUP * HEAD)
        assert torch.equal(new.self_attn.o_proj.weight, whole[:, [1, 3]].flatten(1))
        assert torch.equal(old.mlp.up_proj.weight, new.mlp.up_proj.weight)


def planted(folder: Path, to: Path, places: list[int]) -> Path:
    """The model, in each layer with one group that does nearly nothing."""
    loaded = load_model(folder)
    with torch.no_grad():
        for layer, group in zip(loaded.model.model.layers, places, strict=True):
            width = PER_GROUP * HEAD
            layer.self_attn.o_proj.weight[:, group * width : (group + 1) * width] *= 1e-3
    save_model(loaded.model, loaded.tokenizer, to)
    return to


@pytest.mark.parametrize("importance", ["gradient", "activation", "weight"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_finds_the_group_that_does_nothing(grouped: Path, tmp_path: Path, importance: str, scope: str) -> None:
    places = [2, 0, 3]
    folder = planted(grouped, tmp_path / "planted", places)
    before = load_model(folder).model
    trained = run(folder, tmp_path, importance=importance, scope=scope, fraction=0.25)
    assert torch.allclose(logits(trained.model), logits(without(before, [[p] for p in places])), atol=1e-5)
    assert torch.allclose(logits(trained.model), logits(before), atol=0.02)


@pytest.mark.parametrize("importance", ["gradient", "activation", "weight"])
def test_scales_that_cancel_change_nothing(grouped: Path, tmp_path: Path, importance: str) -> None:
    loaded = load_model(grouped)
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            # One group's values a hundred times as large, read a hundredth as strongly.
            layer.self_attn.v_proj.weight[:HEAD] *= 100
            layer.self_attn.o_proj.weight[:, : PER_GROUP * HEAD] /= 100
            # Part of the stream normed to be twenty times as large, read a twentieth as strongly.
            layer.input_layernorm.weight[:10] *= 20
            for name in ("q_proj", "k_proj", "v_proj"):
                layer.self_attn.get_submodule(name).weight[:, :10] /= 20
    save_model(loaded.model, loaded.tokenizer, tmp_path / "scaled")
    plain, scaled = (run(f, tmp_path, importance=importance, fraction=0.5) for f in (grouped, tmp_path / "scaled"))
    assert torch.allclose(logits(plain.model), logits(scaled.model), atol=1e-3)


@pytest.mark.parametrize("importance", ["gradient", "activation", "weight"])
def test_removing_the_most_important_is_worse(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, importance: str
) -> None:
    loaded, rows = load_model(taught), instructions(30, 9)
    least = held_out_loss(loaded, run(taught, tmp_path, importance=importance, fraction=0.5).model, rows)
    measure = prune_heads._importance
    monkeypatch.setattr(prune_heads, "_importance", lambda *args: -measure(*args))
    most = held_out_loss(loaded, run(taught, tmp_path, importance=importance, fraction=0.5).model, rows)
    assert held_out_loss(loaded, loaded.model, rows) < least < most - 0.2


def test_importance_is_what_it_says(taught: Path, tmp_path: Path) -> None:
    loaded, context = load_model(taught), make_context(tmp_path, Log())
    model = loaded.model
    inputs = make_inputs(taught, instructions(4, 3))
    rows = calibration_rows(inputs, model, loaded.tokenizer, PruneHeadsParams(calibration_rows=3), context, "test")
    assert len(rows) == 3
    readers = [layer.self_attn.o_proj for layer in model.model.layers]
    gradient = gradient_importance(model, readers, HEADS, rows, context)
    activation = activation_importance(model, readers, GROUPS, rows, context)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())
    # By finite differences of the loss, and by writing the contributions out.
    layer, head, epsilon = 1, 5, 1e-2
    columns = slice(head * HEAD, (head + 1) * HEAD)
    slopes = []
    for row in rows:
        losses = []
        for sign in (1, -1):
            changed = copy.deepcopy(model)
            with torch.no_grad():
                changed.model.layers[layer].self_attn.o_proj.weight[:, columns] *= 1 + sign * epsilon
                losses.append(float(changed(**row).loss))
        slopes.append(abs(losses[0] - losses[1]) / (2 * epsilon))
    assert float(gradient[layer, head]) == pytest.approx(sum(slopes) / 3, rel=0.02, abs=1e-4)
    seen: list[torch.Tensor] = []
    hook = readers[layer].register_forward_pre_hook(lambda _module, args: seen.append(args[0][0]))
    with torch.no_grad():
        for row in rows:
            model(input_ids=row["input_ids"])
    hook.remove()
    columns = slice(2 * PER_GROUP * HEAD, 3 * PER_GROUP * HEAD)
    added = torch.cat(seen)[:, columns] @ readers[layer].weight[:, columns].T
    assert float(activation[layer, 2]) == pytest.approx(float(added.norm(dim=1).mean().detach()), rel=1e-4)


def test_global_pruning_stores_zeros(grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_model(grouped).model
    # Unlike layers: two groups of the first go, three of the second, none of the third.
    score = torch.tensor([[1.0, 9, 1, 9], [0.5, 0.5, 0.5, 20], [5, 5, 5, 5]])
    score_as(monkeypatch, score)
    log = Log()
    trained = run(grouped, tmp_path, scope="global", fraction=5 / 12, log=log)
    assert torch.allclose(logits(trained.model), logits(without(before, [[0, 2], [0, 1, 2], []])), atol=1e-5)
    assert log.values("groups_kept") == [2.0, 1.0, 4.0]
    assert (trained.metrics["heads_removed"], trained.metrics["heads_zeroed"]) == (0.0, 5.0 * PER_GROUP)
    assert parameters(trained.model) == parameters(before)
    reloads_equal(trained, tmp_path / "pruned")
    # The widest layer decides how wide all are stored.
    score_as(monkeypatch, torch.tensor([[1.0, 9, 1, 9], [0.5, 0.5, 0.5, 20], [1, 5, 5, 5]]))
    trained = run(grouped, tmp_path, scope="global", fraction=6 / 12)
    assert torch.allclose(logits(trained.model), logits(without(before, [[0, 2], [0, 1, 2], [0]])), atol=1e-5)
    assert trained.model.config.num_key_value_heads == 3
    assert (trained.metrics["heads_removed"], trained.metrics["heads_zeroed"]) == (3.0 * PER_GROUP, 3.0 * PER_GROUP)
    generates(reloads_equal(trained, tmp_path / "narrow"))


def test_global_pruning_leaves_every_layer_a_group(
    grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_as(monkeypatch, torch.tensor([[1.0, 1, 1, 1.1]] * 3))
    log = Log()
    trained = run(grouped, tmp_path, scope="global", fraction=0.75, log=log)
    assert log.values("groups_kept") == [1.0, 1.0, 1.0]
    assert trained.model.config.num_attention_heads == PER_GROUP


def test_training_does_not_bring_a_zeroed_head_back(
    grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_as(monkeypatch, torch.tensor([[1.0, 9, 1, 9], [0.5, 0.5, 0.5, 20], [5, 5, 5, 5]]))
    trained = run(grouped, tmp_path, scope="global", fraction=5 / 12)
    save_model(trained.model, trained.tokenizer, tmp_path / "pruned")
    params = SFTParams(steps=3, batch_size=4, learning_rate=1e-2)
    tuned = SFT().run(make_inputs(tmp_path / "pruned", instructions(20, 1)), params, make_context(tmp_path, Log()))
    assert not torch.equal(logits(tuned.model), logits(trained.model))
    assert torch.allclose(logits(tuned.model), logits(without(tuned.model, [[0, 2], [0, 1, 2], []])), atol=1e-6)


def test_the_seed_decides_the_rows(grouped: Path, tmp_path: Path) -> None:
    first, again, other = (Log() for _ in range(3))
    one = run(grouped, tmp_path, log=first, calibration_rows=4)
    two = run(grouped, tmp_path, log=again, calibration_rows=4)
    run(grouped, tmp_path, log=other, calibration_rows=4, seed=1)
    assert torch.equal(logits(one.model), logits(two.model))
    assert [s[2].get("loss") for s in first.steps[:4]] == [s[2].get("loss") for s in again.steps[:4]]
    assert [s[2].get("loss") for s in first.steps[:4]] != [s[2].get("loss") for s in other.steps[:4]]


def test_says_what_is_wrong(tiny_model: Path, grouped: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"would remove 0 of the 4 .* at least one must go.*0.250 \(1\), 0.500 \(2\)"):
        run(grouped, tmp_path, fraction=0.1)
    with pytest.raises(UserError, match="one must stay"):
        run(grouped, tmp_path, fraction=0.95)
    with pytest.raises(UserError, match=r"would remove 0 of 12 .* take 0.0833 to 0.7500"):
        run(grouped, tmp_path, fraction=0.01, scope="global")
    wide = make_model(tiny_model, tmp_path / "wide", hidden_size=64)
    with pytest.raises(UserError, match=r"llama models cannot have 6 heads at a width of 64; .*: 0.500 \(2\)"):
        run(wide, tmp_path, fraction=0.25)
    single = make_model(tiny_model, tmp_path / "single", num_key_value_heads=1)
    with pytest.raises(UserError, match="one key-value group"):
        run(single, tmp_path)
    gemma = make_model(tiny_model, tmp_path / "gemma", kind="gemma")
    with pytest.raises(UserError, match=r"GemmaForCausalLM.*it knows llama"):
        run(gemma, tmp_path)
    with pytest.raises(UserError, match="dataset"):
        PruneHeads().run(make_inputs(grouped, None), PruneHeadsParams(), make_context(tmp_path, Log()))
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(ValidationError, match="fraction"):
            PruneHeadsParams(fraction=fraction)


def test_layers_that_are_not_ordinary_are_refused(grouped: Path, tmp_path: Path) -> None:
    inputs = make_inputs(grouped, instructions(8, 3))
    attention = inputs.load("policy").model.model.layers[1].self_attn

    class Packed(torch.nn.Linear):
        pass

    attention.k_proj = Packed(HIDDEN, GROUPS * HEAD, bias=False)
    with pytest.raises(UserError, match=r"self_attn.k_proj of layer 1 is a Packed.*prune before quantizing"):
        PruneHeads().run(inputs, PruneHeadsParams(), make_context(tmp_path, Log()))


def test_overflow_and_deadline_end_a_run(grouped: Path, tmp_path: Path) -> None:
    for importance in ("gradient", "activation"):
        inputs = make_inputs(grouped, instructions(8, 3))
        with torch.no_grad():
            inputs.load("policy").model.model.layers[0].self_attn.v_proj.weight[0, 0] = torch.nan
        with pytest.raises(InfeasibleError, match="not finite"):
            PruneHeads().run(inputs, PruneHeadsParams(importance=importance), make_context(tmp_path, Log()))
    context = make_context(tmp_path, Log(), deadline=time.monotonic() - 1)
    with pytest.raises(PrunedError, match="deadline"):
        PruneHeads().run(make_inputs(grouped, instructions(8, 3)), PruneHeadsParams(), context)


def test_is_a_compression() -> None:
    assert PruneHeads.compresses is True
