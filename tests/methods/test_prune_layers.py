"""Pruning of layers: those that do nothing leave, the cache finds the others, and what is left is an ordinary model."""

import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import InfeasibleError, PrunedError, UserError
from harness.method import Trained
from harness.models import load_model, save_model
from methods import prune_layers
from methods._pruning import calibration_rows
from methods.prune_layers import PruneLayers, PruneLayersParams
from tests.methods.helpers import Log, held_out_loss, instructions, make_context, make_inputs
from tests.methods.pruning_models import generates, logits, make_model, parameters, reloads_equal, teach

DEEP = 6


@pytest.fixture(scope="module")
def deep(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tiny_model, tmp_path_factory.mktemp("deep") / "model", layers=DEEP)


def run(folder: Path, scratch: Path, *, log: Log | None = None, seed: int = 0, **more: Any) -> Trained:
    params = PruneLayersParams(**{"calibration_rows": 8, **more})
    return PruneLayers().run(
        make_inputs(folder, instructions(30, 3)), params, make_context(scratch, log or Log(), seed=seed)
    )


def idle(folder: Path, to: Path, layers: list[int], scale: float = 0.0) -> Path:
    """The model, with layers that add (nearly) nothing to the residual stream."""
    loaded = load_model(folder)
    with torch.no_grad():
        for index in layers:
            layer = loaded.model.model.layers[index]
            layer.self_attn.o_proj.weight *= scale
            layer.mlp.down_proj.weight *= scale
    save_model(loaded.model, loaded.tokenizer, to)
    return to


def removed(log: Log) -> list[int]:
    steps = [(step, metrics) for step, _, metrics in log.steps if "removed" in metrics]
    return [step - 1 for step, metrics in steps if metrics["removed"]]


@pytest.mark.parametrize(("importance", "places"), [("block_influence", [1, 4]), ("angular", [2, 3])])
def test_finds_the_layers_that_do_nothing(deep: Path, tmp_path: Path, importance: str, places: list[int]) -> None:
    folder = idle(deep, tmp_path / "idle", places)
    before, log = load_model(folder).model, Log()
    trained = run(folder, tmp_path, importance=importance, fraction=1 / 3, log=log)
    assert removed(log) == places
    assert torch.allclose(logits(trained.model), logits(before), atol=1e-5)
    assert trained.model.config.num_hidden_layers == DEEP - 2
    each = parameters(before.model.layers[0])
    assert parameters(before) - parameters(trained.model) == 2 * each
    assert trained.metrics["parameters_before"] - trained.metrics["parameters"] == 2 * each
    assert (trained.metrics["layers_removed"], trained.metrics["fraction_removed"]) == (2.0, pytest.approx(1 / 3))
    again = reloads_equal(trained, tmp_path / "pruned")
    generates(trained.model)
    generates(again)


def test_angular_takes_neighbours(deep: Path, tmp_path: Path) -> None:
    # The two idlest are apart; of neighbours, 3 and 4 do least.
    folder = idle(idle(idle(deep, tmp_path / "a", [1]), tmp_path / "b", [3]), tmp_path / "c", [4], scale=0.05)
    log = Log()
    run(folder, tmp_path, importance="angular", fraction=1 / 3, log=log)
    assert removed(log) == [3, 4]


def test_layers_keep_their_weights_and_order(deep: Path, tmp_path: Path) -> None:
    before, log = load_model(deep).model, Log()
    trained = run(deep, tmp_path, fraction=0.5, log=log)
    kept = [i for i in range(DEEP) if i not in removed(log)]
    assert len(kept) == 3
    for place, index in enumerate(kept):
        new = trained.model.model.layers[place]
        assert new.self_attn.layer_idx == place
        old = before.model.layers[index].state_dict()
        assert all(torch.equal(value, old[name]) for name, value in new.state_dict().items())


def test_scores_are_what_they_say(deep: Path, tmp_path: Path) -> None:
    log = Log()
    run(deep, tmp_path, log=log, fraction=1 / 6, calibration_rows=1)
    first = [metrics["block_influence"] for _, _, metrics in log.steps if "block_influence" in metrics]
    angular = Log()
    run(deep, tmp_path, log=angular, importance="angular", fraction=1 / 3, calibration_rows=1)
    second = [metrics["angular"] for _, _, metrics in angular.steps if "angular" in metrics]
    loaded = load_model(deep)
    (row,) = calibration_rows(
        make_inputs(deep, instructions(30, 3)),
        loaded.model,
        loaded.tokenizer,
        PruneLayersParams(calibration_rows=1),
        make_context(tmp_path, Log()),
        "test",
    )
    states = []
    with torch.no_grad():
        # Layer by layer, the last one's output before the final norm.
        hidden = loaded.model.model.embed_tokens(row["input_ids"])
        places = torch.arange(hidden.shape[1])[None]
        rotary = loaded.model.model.rotary_emb(hidden, places)
        states.append(hidden)
        for layer in loaded.model.model.layers:
            hidden = layer(hidden, attention_mask=None, position_embeddings=rotary, position_ids=places)
            states.append(hidden)
    cosine = torch.nn.functional.cosine_similarity
    changes = [float(1 - cosine(a, b, dim=-1).mean()) for a, b in itertools.pairwise(states)]
    assert first == pytest.approx(changes, abs=1e-5)
    answer = row["labels"][0] != -100
    expected = [
        float((cosine(a, b, dim=-1)[0][answer].arccos() / math.pi).mean())
        for a, b in zip(states, states[2:], strict=False)
    ]
    assert second == pytest.approx(expected, abs=1e-4)


def test_removing_what_matters_is_worse(deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = teach(deep, tmp_path)
    loaded, rows = load_model(taught), instructions(30, 9)
    least = held_out_loss(loaded, run(taught, tmp_path, fraction=1 / 3).model, rows)
    measure = prune_layers._similarity
    monkeypatch.setattr(prune_layers, "_similarity", lambda *a, **k: [-s for s in measure(*a, **k)])
    most = held_out_loss(loaded, run(taught, tmp_path, fraction=1 / 3).model, rows)
    assert least < most - 0.2


def test_attention_of_each_layer_stays_its_own(tiny_model: Path, tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    changes: dict[str, Any] = {"layer_types": kinds, "use_sliding_window": True, "sliding_window": 4}
    folder = make_model(tiny_model, tmp_path / "mixed", kind="qwen2", layers=4, **changes)
    trained = run(idle(folder, tmp_path / "idle", [2]), tmp_path, fraction=0.25)
    assert trained.model.config.layer_types == [kinds[i] for i in (0, 1, 3)]
    assert torch.allclose(logits(trained.model), logits(load_model(tmp_path / "idle").model), atol=1e-5)
    generates(reloads_equal(trained, tmp_path / "pruned"))
    # None of those that slide is left.
    trained = run(idle(folder, tmp_path / "two", [1, 3]), tmp_path, fraction=0.5)
    assert trained.model.config.layer_types == ["full_attention"] * 2
    assert torch.allclose(logits(trained.model), logits(load_model(tmp_path / "two").model), atol=1e-5)
    reloads_equal(trained, tmp_path / "full")


def test_position_free_layers_stay_their_own(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_model(tiny_model, tmp_path / "nope", kind="smollm3", layers=4, no_rope_layers=[1, 1, 0, 1])
    trained = run(idle(folder, tmp_path / "idle", [1]), tmp_path, fraction=0.25)
    assert trained.model.config.no_rope_layers == [1, 0, 1]
    assert torch.allclose(logits(trained.model), logits(load_model(tmp_path / "idle").model), atol=1e-5)
    generates(reloads_equal(trained, tmp_path / "pruned"))


def test_says_what_is_wrong(tiny_model: Path, deep: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"would remove 0 of 6 layers.*take 0.167 to 0.833"):
        run(deep, tmp_path, fraction=0.05)
    with pytest.raises(UserError, match="one must stay"):
        run(deep, tmp_path, fraction=0.95)
    single = make_model(tiny_model, tmp_path / "single", layers=1)
    with pytest.raises(UserError, match="one layer, which must stay"):
        run(single, tmp_path)
    gemma = make_model(tiny_model, tmp_path / "gemma", kind="gemma")
    with pytest.raises(UserError, match=r"GemmaForCausalLM.*it knows llama"):
        run(gemma, tmp_path)
    with pytest.raises(UserError, match="dataset"):
        PruneLayers().run(make_inputs(deep, None), PruneLayersParams(), make_context(tmp_path, Log()))
    for fraction in (0.0, 1.0):
        with pytest.raises(ValidationError, match="fraction"):
            PruneLayersParams(fraction=fraction)
    assert PruneLayers.compresses is True


def test_overflow_and_deadline_end_a_run(deep: Path, tmp_path: Path) -> None:
    inputs = make_inputs(deep, instructions(8, 3))
    with torch.no_grad():
        inputs.load("policy").model.model.layers[0].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(InfeasibleError, match="not finite"):
        PruneLayers().run(inputs, PruneLayersParams(), make_context(tmp_path, Log()))
    context = make_context(tmp_path, Log(), deadline=time.monotonic() - 1)
    with pytest.raises(PrunedError, match="deadline"):
        PruneLayers().run(make_inputs(deep, instructions(8, 3)), PruneLayersParams(), context)
