"""Adapters of each kind: what they train and where, that they begin at the policy, merge exactly, what they cost."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import UserError
from harness.method import Inputs, find_method
from harness.models import load_model
from harness.suite import load_suite
from methods._compute import Compute
from methods._peft import RANKED
from methods._peft_model import adapted, as_it_came, merged_weights
from methods._ppo_trainer import Trainer as PPOTrainer
from methods.dpo import DPOParams
from methods.ppo import PPOParams
from methods.sft import SFTParams
from tests.methods.helpers import Log, instructions, make_context, make_inputs, preferences, turn, weights

KINDS: dict[str, dict[str, Any]] = {
    **{kind: {"adapter": kind, "lora_rank": 4} for kind in sorted(RANKED)},
    "ia3": {"adapter": "ia3"},
}
PROMPT: dict[str, Any] = {"adapter": "prompt_tuning", "prompt_tokens": 5, "lora_merge": False}
EVERY = {**KINDS, "prompt_tuning": PROMPT}


def sft(model: Path, scratch: Path, **settings: Any) -> Any:
    method = find_method("sft")
    quick = {"steps": 1, "batch_size": 4, "warmup_fraction": 0.0, "learning_rate": 1e-2}
    params = method.params.model_validate({**quick, **settings})
    return method().run(make_inputs(model, instructions(16, 1)), params, make_context(scratch, Log()))


def moved(model: Path, trained: Any) -> dict[str, torch.Tensor]:
    """How far each weight has gone; those that have not are left out."""
    before = weights(load_model(model).model)
    after = weights(trained.model)
    assert after.keys() == before.keys()
    return {name: after[name] - before[name] for name in before if not torch.equal(before[name], after[name])}


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter": "dora"}, "dora needs a rank: set lora_rank"),
        ({"adapter": "lora_plus"}, "lora_plus needs a rank"),
        ({"adapter": "ia3", "lora_rank": 4}, "ia3 has no rank: leave lora_rank out"),
        ({"adapter": "ia3", "lora_alpha": 16}, "ia3 has no scale: leave lora_alpha out"),
        ({"adapter": "prompt_tuning", "lora_rank": 4, "lora_merge": False}, "prompt_tuning has no rank"),
        ({"adapter": "prompt_tuning"}, "set lora_merge: false"),
        ({"adapter": "prompt_tuning", "adapter_targets": "mlp", "lora_merge": False}, "leave adapter_targets out"),
        ({"adapter_targets": "attention"}, "set lora_rank, or adapter: ia3"),
        ({"lora_rank": 4, "lora_plus_ratio": 8.0}, "lora_plus_ratio is not used by adapter lora"),
        ({"lora_rank": 4, "prompt_tokens": 8}, "prompt_tokens is not used by adapter lora"),
        ({"adapter": "adapterhub", "lora_rank": 4}, "'ia3' or 'prompt_tuning'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPOParams.model_validate(settings)


@pytest.mark.parametrize("method", ["ppo", "reward_model", "distill"])
def test_a_soft_prompt_is_refused_where_weights_are_wanted(method: str) -> None:
    settings = {"adapter": "prompt_tuning"} | ({} if method == "reward_model" else {"lora_merge": False})
    with pytest.raises(ValidationError, match="prompt_tuning is not possible here"):
        find_method(method).params.model_validate(settings)


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo", "cpo", "simpo", "distill", "reward_model", "ppo"])
def test_every_trained_method_has_them_and_what_was_stored_before_keeps_its_key(method: str) -> None:
    params = find_method(method).params
    later = {"adapter", "adapter_targets", "lora_plus_ratio", "prompt_tokens"}
    assert later <= params.model_fields.keys()
    assert not later & params.model_validate({"lora_rank": 4}).model_dump(mode="json").keys()
    stored = params.model_validate({"lora_rank": 4, "adapter": "dora", "adapter_targets": "mlp"})
    assert {"adapter": "dora", "adapter_targets": "mlp"}.items() <= stored.model_dump(mode="json").items()
    # 32 and 32.0 are different keys.
    kind = type(params().model_dump(mode="json")["lora_alpha"])
    assert kind is (float if method == "ppo" else int)


def test_rank_and_targets_are_searched(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "name: t\nmodels: [m]\nrecipes:\n  a:\n  - sft:\n      lora_rank: search\n"
        "      adapter_targets: {values: [all, attention, mlp]}\n      adapter: {values: [lora, dora, pissa]}\n"
        "  b:\n  - sft: {adapter: lora_plus, lora_rank: {min: 2, max: 8}, lora_plus_ratio: search}\n"
        "measure: {profile: {}}\nbudget: {trials_per_cell: 1}\n"
    )
    first, second = (load_suite(path).steps(name)[0].spaces for name in "ab")
    rank = first["lora_rank"]
    assert (rank.low, rank.high, rank.log, rank.integer) == (4, 64, True, True)
    assert first["adapter_targets"].values == ("all", "attention", "mlp")
    assert set(second) == {"lora_rank", "lora_plus_ratio"}
    path.write_text(path.read_text().replace("lora, dora, pissa", "lora, ia3"))
    with pytest.raises(UserError, match="ia3 has no rank"):
        load_suite(path)


# -- what is trained ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("part", ["all", "attention", "mlp"])
def test_only_the_targets_move(tiny_model: Path, tmp_path: Path, kind: str, part: str) -> None:
    found = moved(tiny_model, sft(tiny_model, tmp_path, adapter_targets=part, **KINDS[kind]))
    attention = {"k_proj", "v_proj"} | (set() if kind == "ia3" else {"q_proj", "o_proj"})
    mlp = {"down_proj"} | (set() if kind == "ia3" else {"gate_proj", "up_proj"})
    expected = {"all": attention | mlp, "attention": attention, "mlp": mlp}[part]
    # What peft takes apart and puts together again is as it was but for the last bit.
    assert {name.split(".")[-2] for name, by in found.items() if by.abs().max() > 1e-6} == expected


def test_ia3_scales_keys_values_and_the_inputs_of_the_last_layer(tiny_model: Path, tmp_path: Path) -> None:
    before = weights(load_model(tiny_model).model)
    for name in moved(tiny_model, trained := sft(tiny_model, tmp_path, learning_rate=0.1, **KINDS["ia3"])):
        scales = weights(trained.model)[name] / before[name]
        # One scale for each output, or (down_proj) for each input.
        across = 0 if "down_proj" in name else 1
        torch.testing.assert_close(scales, scales.mean(across, keepdim=True).expand_as(scales), atol=1e-3, rtol=1e-3)
        assert 0.05 < (scales - 1).abs().max() < 0.11


def test_rslora_scales_by_the_root_of_the_rank(tiny_model: Path, tmp_path: Path) -> None:
    lora, other = (moved(tiny_model, sft(tiny_model, tmp_path, **KINDS[k])) for k in ("lora", "rslora"))
    # Of one step of AdamW, whose size does not depend on the gradient's.
    for name in lora:
        assert float(other[name].norm() / lora[name].norm()) == pytest.approx(math.sqrt(4), rel=1e-2)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_lora_plus_trains_b_faster(tiny_model: Path, tmp_path: Path, optimizer: str, method: str) -> None:
    # After one step A is where it was, as B was zero: all that moved is B.
    found = {}
    for kind, more in (("lora", {}), ("lora_plus", {"lora_plus_ratio": 4.0})):
        settings = {**KINDS[kind], **more, "optimizer": optimizer, "learning_rate": 1e-4}
        if method == "sft":
            found[kind] = moved(tiny_model, sft(tiny_model, tmp_path, **settings))
        else:
            trainer = ppo(tiny_model, tmp_path, **settings)
            trainer.learner.step(experience := trainer.collect(), experience.minibatches[0])
            found[kind] = {n: p.detach() for n, p in trainer.models.trained.named_parameters() if "lora_B" in n}
    assert found["lora"]
    for name, step in found["lora"].items():
        torch.testing.assert_close(found["lora_plus"][name], 4 * step, atol=1e-6, rtol=2e-3)


def test_dora_learns_the_lengths_of_rows(tiny_model: Path) -> None:
    model = load_model(tiny_model).model
    found = adapted(model, SFTParams(**KINDS["dora"]), seed=0)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    lengths = layer.lora_magnitude_vector["default"].weight
    assert lengths.requires_grad
    torch.testing.assert_close(lengths, layer.base_layer.weight.norm(dim=1))
    with torch.no_grad():
        lengths *= 2
    torch.testing.assert_close(merged_weights(layer)["weight"], 2 * layer.base_layer.weight, atol=1e-5, rtol=1e-5)
    assert found.active_adapter == "default"


def test_pissa_begins_with_the_largest_singular_vectors(tiny_model: Path) -> None:
    model = load_model(tiny_model).model
    name = "model.layers.1.self_attn.q_proj"
    before = model.get_submodule(name).weight.detach().clone()
    adapted(model, SFTParams(**KINDS["pissa"]), seed=0)
    layer = model.get_submodule(name)
    left, sizes, right = torch.linalg.svd(before)
    best = left[:, :4] * sizes[:4] @ right[:4]
    # A fast decomposition: the sizes of a random matrix hardly differ, so its last vector is not quite the best.
    assert (before - layer.get_delta_weight("default")).norm() < 1.005 * (before - best).norm()
    torch.testing.assert_close(merged_weights(layer)["weight"], before, atol=1e-6, rtol=1e-6)
    assert (layer.base_layer.weight - before).abs().max() > 1e-2


# -- the policy as it came in ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_first_margin_is_0(tiny_model: Path, tmp_path: Path, kind: str, method: str) -> None:
    log, found = Log(), find_method(method)
    params = found.params.model_validate(
        {**KINDS[kind], "steps": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup_fraction": 0.0}
    )
    found().run(make_inputs(tiny_model, preferences(16, 1)), params, make_context(tmp_path, log))
    for side in ("rewards_chosen", "rewards_rejected"):
        first, second = log.values(side)
        assert abs(first) < 1e-4
        assert abs(second) > 1e-4


def test_a_soft_prompt_is_held_against_the_policy_without_it(tiny_model: Path, tmp_path: Path) -> None:
    from tests.methods.helpers import completion_log_prob

    log = Log()
    params = DPOParams(**PROMPT, steps=1, batch_size=8, beta=0.1)
    find_method("dpo")().run(make_inputs(tiny_model, pairs := preferences(8, 1)), params, make_context(tmp_path, log))
    loaded = load_model(tiny_model)
    without = [completion_log_prob(loaded, loaded.model, row["prompt"], row["chosen"])[0] for row in pairs]
    difference = log.values("logps_chosen")[0] - sum(without) / 8
    assert abs(difference) > 1e-2
    assert log.values("rewards_chosen")[0] == pytest.approx(0.1 * difference, abs=1e-4)


def ppo(model: Path, scratch: Path, precision: Any = "float32", **settings: Any) -> PPOTrainer:
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": [turn("user", f"say {n}")]} for n in range(8)])
    inputs = Inputs(
        folders=dict.fromkeys(("policy", "reference", "reward"), model),
        loader=lambda role, path: load_model(path, head="reward" if role == "reward" else "causal"),
        dataset=rows,
    )
    small = {"rollout_batch_size": 8, "minibatch_size": 8, "max_new_tokens": 6, "iterations": 2, "warmup": 0.0}
    return PPOTrainer(
        inputs, PPOParams.model_validate({**small, **settings}), make_context(scratch, Log(), precision=precision)
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_ppo_starts_at_its_reference_and_samples_what_it_trains(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    trainer = ppo(tiny_model, tmp_path, learning_rate=1e-2, max_kl=None, kl_coef=0.0, **KINDS[kind])
    first = trainer.collect()
    assert abs(first.figures()["kl"]) < 1e-4
    assert first.figures()["sampler_gap"] < 1e-5
    # No reward to learn from here: anything that moves the policy will do.
    first.advantages.copy_(torch.linspace(-1, 1, first.advantages.numel()).view_as(first.advantages))
    trainer.learner.step(first, first.minibatches[0])
    second = trainer.collect()
    assert abs(second.figures()["kl"]) > 1e-4
    assert second.figures()["sampler_gap"] < 1e-4
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        with as_it_came(trainer.models.peft):
            reference = trainer.models.trained(ids).logits
        sampled = trainer.models.sampler.model(ids).logits
        trained = trainer.models.trained(ids).logits
        left = trainer.left(trainer.models.trained, trainer.models.peft, {}).model(ids).logits
        torch.testing.assert_close(reference, load_model(tiny_model).model(ids).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sampled, trained, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left, trained, atol=1e-4, rtol=1e-4)
    assert (trained - reference).abs().max() > 1e-3


# -- models that do not have what is asked for -------------------------------------------------------------------------


def _tiny(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 50},
        "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 32},
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes[kind]))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            "mamba",
            {"lora_rank": 2, "adapter_targets": "attention"},
            r"no linear layer of Mamba.*use adapter_targets: all",
        ),
        ("mamba", {"adapter": "ia3"}, "Mamba.* has no layers of its own for them"),
        ("gpt2", {"adapter": "ia3"}, "GPT2.* has no layers of its own for them"),
        ("gpt2", PROMPT, "its positions are not rotary"),
        ("gpt2", {"adapter": "pissa", "lora_rank": 17}, "has only 16; lower lora_rank"),
    ],
)
def test_a_model_without_such_layers_is_refused(model: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapted(_tiny(model), SFTParams.model_validate(settings), seed=0)


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
def test_layers_of_another_layout_merge_too(kind: str) -> None:
    model = _tiny("gpt2").eval()
    found = adapted(model, SFTParams(**KINDS[kind], adapter_targets="attention"), seed=0)
    layer = model.transformer.h[0].attn.c_attn
    with torch.no_grad():
        layer.lora_B["default"].weight += 0.1
        ids = torch.arange(9)[None]
        right = model(ids).logits
        weight = merged_weights(layer)["weight"]
        merged = found.merge_and_unload(adapter_names=["default"])
        torch.testing.assert_close(weight, merged.transformer.h[0].attn.c_attn.weight)
        torch.testing.assert_close(merged(ids).logits, right, atol=1e-5, rtol=1e-5)


# -- compute -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", *sorted(EVERY)])
def test_what_training_took_is_counted(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    trained = sft(tiny_model, tmp_path, steps=2, batch_size=4, **EVERY.get(kind, {}))
    model = load_model(tiny_model).model
    matrices = {n: p.shape for n, p in model.named_parameters() if "proj" in n}
    entries = sum(shape.numel() for shape in matrices.values())
    lora = sum(4 * sum(shape) for shape in matrices.values())
    rows = sum(shape[0] for shape in matrices.values())
    scales = sum(s[0] for n, s in matrices.items() if "k_proj" in n or "v_proj" in n)
    scales += sum(s[1] for n, s in matrices.items() if "down_proj" in n)
    learned = {"full": model.num_parameters(), "dora": lora + rows, "ia3": scales, "prompt_tuning": 5 * 64}
    assert trained.metrics["trained_parameters"] == learned.get(kind, lora)
    tokens = trained.metrics["train_tokens"] + (2 * 4 * 5 if kind == "prompt_tuning" else 0)
    # Forward and back through all matrices, and the gradient of those that learn.
    a_token = {"full": 6 * entries, "ia3": 4 * entries + 6 * scales, "prompt_tuning": 4 * entries}
    assert trained.metrics["train_flops"] == a_token.get(kind, 4 * entries + 6 * lora) * tokens


def test_recomputing_costs_a_forward_pass(tiny_model: Path) -> None:
    model = load_model(tiny_model).model
    plain, spared = (Compute(model).figures(10, recomputed=on)["train_flops"] for on in (False, True))
    assert spared == pytest.approx(8 / 6 * plain)


def test_ppo_counts_the_passes_it_learns_from(tiny_model: Path, tmp_path: Path) -> None:
    trainer = ppo(tiny_model, tmp_path, lora_rank=4, epochs=2, max_kl=None)
    experience = trainer.collect()
    trainer.learner.update(experience)
    tokens = 2 * (sum(map(len, experience.prompts)) + int(experience.rollout.mask.sum()))
    found = trainer.learner.compute()
    assert found["train_tokens"] == tokens
    expected = Compute(trainer.models.trained).figures(tokens, recomputed=False)
    assert found == {"train_tokens": tokens, **expected}


def test_pissa_beside_the_weights_is_a_lora_of_twice_the_rank(tiny_model: Path, tmp_path: Path) -> None:
    """So the weights beside it are the untrained ones, which other adapters share."""
    trained = sft(tiny_model, tmp_path, steps=3, lora_merge=False, **KINDS["pissa"])
    assert all(by.abs().max() < 1e-6 for by in moved(tiny_model, trained).values())
    trained.write(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 64, True)
    assert {p.name for p in (tmp_path / "saved" / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    merged = sft(tiny_model, tmp_path, steps=3, **KINDS["pissa"]).model
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        found = load_model(tmp_path / "saved").model(ids).logits
        torch.testing.assert_close(found, merged(ids).logits, atol=1e-4, rtol=1e-4)


# -- every method, and what trains beside -----------------------------------------------------------------------------

PAIRS = ("dpo", "kto", "orpo", "cpo", "simpo")


def trained_by(method: str, model: Path, scratch: Path, **settings: Any) -> tuple[Any, Log]:
    log, found = Log(), find_method(method)
    scratch.mkdir(exist_ok=True)
    quick = {"steps": 2, "batch_size": 4, "warmup_fraction": 0.0, "learning_rate": 1e-2}
    rows = instructions(16, 1) if method in ("sft", "distill") else preferences(16, 1)
    inputs = make_inputs(model, rows)
    (teacher := scratch / "teacher").symlink_to(model)
    inputs.folders = {"policy": model, "teacher": teacher}
    params = found.params.model_validate({**quick, **settings})
    return found().run(inputs, params, make_context(scratch, log)), log


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_reward_model_learns_by_adapters_and_is_an_ordinary_one(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    from harness.models import save_model

    trained, log = trained_by("reward_model", tiny_model, tmp_path, steps=25, head_learning_rate=1e-2, **KINDS[kind])
    assert sum(log.values("loss")[-5:]) < 0.8 * sum(log.values("loss")[:5])
    save_model(trained.model, trained.tokenizer, tmp_path / "saved")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        kept = load_model(tmp_path / "saved", head="reward").model(input_ids=ids).logits
        torch.testing.assert_close(kept, trained.model(input_ids=ids).logits)
    assert kept.abs().max() > 0


@pytest.mark.parametrize("kind", sorted(EVERY))
def test_demonstrations_are_learned(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    from tests.methods.helpers import held_out_loss

    # Scales, and vectors before the input, can do little with random weights.
    rate, least = {"ia3": (0.3, 0.1), "prompt_tuning": (0.3, 0.02), "lora_plus": (2e-3, 0.2)}.get(kind, (1e-2, 0.2))
    settings = {"steps": 40, "batch_size": 8, "learning_rate": rate}
    trained, _ = trained_by("sft", tiny_model, tmp_path, **settings, **EVERY[kind])
    loaded = load_model(tiny_model)
    model = trained.model
    if kind == "prompt_tuning":
        trained.write(tmp_path / "saved")
        model = load_model(tmp_path / "saved").model
    rows = instructions(16, 2)
    assert held_out_loss(loaded, model, rows) < held_out_loss(loaded, loaded.model, rows) - least


@pytest.mark.parametrize(
    ("method", "kind"),
    [*((m, k) for m in PAIRS for k in ("ia3", "prompt_tuning")), ("distill", "ia3"), ("distill", "pissa")],
)
def test_every_method_leaves_what_loads_as_it_was_trained(
    tiny_model: Path, tmp_path: Path, method: str, kind: str
) -> None:
    extra = {"on_policy": 0.5, "max_new_tokens": 4, "alpha": 0.5} if method == "distill" else {}
    trained, log = trained_by(method, tiny_model, tmp_path, **{**EVERY[kind], "lora_merge": False}, **extra)
    trained.write(tmp_path / "saved")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        found, before = (load_model(folder).model(ids).logits for folder in (tmp_path / "saved", tiny_model))
    assert (found - before).abs().max() > 1e-4
    assert all(math.isfinite(value) for _, _, metrics in log.steps for value in metrics.values())


@pytest.mark.parametrize("kind", ["dora", "pissa", "ia3", "prompt_tuning"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_recomputing_changes_nothing(tiny_model: Path, tmp_path: Path, kind: str, method: str) -> None:
    from safetensors.torch import load_file

    found = []
    for on in (False, True):
        settings = {**EVERY[kind], "lora_merge": False, "gradient_checkpointing": on}
        trained, _ = trained_by(method, tiny_model, tmp_path / str(on), **settings)
        trained.write(tmp_path / f"saved {on}")
        found.append(load_file(tmp_path / f"saved {on}" / "adapter" / "adapter_model.safetensors"))
    assert found[0].keys() == found[1].keys()
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, atol=1e-5, rtol=1e-5)


def test_a_soft_prompt_leaves_the_zeros_of_a_pruned_model_alone(tiny_model: Path, tmp_path: Path) -> None:
    from harness.models import save_model

    loaded = load_model(tiny_model)
    loaded.model.config.sparse_weights = True
    with torch.no_grad():
        for name, weight in loaded.model.named_parameters():
            if "proj" in name:
                weight[:, ::2] = 0
    save_model(loaded.model, loaded.tokenizer, tmp_path / "sparse")
    trained, _ = trained_by("sft", tmp_path / "sparse", tmp_path, **PROMPT)
    assert not moved(tmp_path / "sparse", trained)
