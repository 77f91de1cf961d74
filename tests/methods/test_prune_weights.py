"""Pruning of weights: as many zeros as asked for, where each criterion puts them, and still there after training."""

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import InfeasibleError, PrunedError, UserError
from harness.method import Context, Inputs, Trained
from harness.models import load_model, save_model
from methods._pruning import PROJECTIONS, calibration_rows
from methods._sparsity import MARK, KeptZeros
from methods._sparsity_criteria import magnitude
from methods.distill import Distill, DistillParams
from methods.dpo import DPO, DPOParams
from methods.ppo import PPO, PPOParams
from methods.prune_weights import PruneWeights, PruneWeightsParams
from methods.reward_model import RewardModel, RewardModelParams
from methods.sft import SFT, SFTParams
from tests.methods.helpers import (
    Log,
    held_out_loss,
    instructions,
    make_context,
    make_inputs,
    preferences,
    weights,
)
from tests.methods.pruning_models import generates, make_model, parameters, reloads_equal, teach

needs_llmcompressor = pytest.mark.skipif(
    importlib.util.find_spec("llmcompressor") is None, reason="llmcompressor is not installed"
)
CRITERIA = [
    "magnitude",
    pytest.param("wanda", marks=needs_llmcompressor),
    pytest.param("sparsegpt", marks=needs_llmcompressor),
]
CALIBRATED = CRITERIA[1:]


@pytest.fixture(scope="module")
def grouped(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tiny_model, tmp_path_factory.mktemp("grouped") / "model")


@pytest.fixture(scope="module")
def taught(grouped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return teach(grouped, tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="module")
def sparse(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sparse")
    trained = run(taught, place, criterion="magnitude", pattern="2:4")
    save_model(trained.model, trained.tokenizer, place / "model")
    return place / "model"


def run(
    folder: Path, scratch: Path, *, log: Log | None = None, seed: int = 0, bf16: bool = False, **more: Any
) -> Trained:
    params = PruneWeightsParams(**{"calibration_rows": 8, **more})
    context = make_context(scratch, log or Log(), seed=seed, precision="bfloat16" if bf16 else "float32")
    return PruneWeights().run(make_inputs(folder, instructions(30, 3)), params, context)


def matrices(model: Any) -> list[torch.Tensor]:
    return [layer.get_submodule(name).weight.detach() for layer in model.model.layers for name in PROJECTIONS]


def zeros(model: Any) -> list[torch.Tensor]:
    return [matrix == 0 for matrix in matrices(model)]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_matrix_is_as_sparse_as_asked(grouped: Path, tmp_path: Path, criterion: str) -> None:
    before, log = load_model(grouped).model, Log()
    trained = run(grouped, tmp_path, criterion=criterion, sparsity=0.3, log=log)
    for matrix in matrices(trained.model):
        count = matrix.numel() * 0.3
        # Wanda rounds in each row, SparseGPT in each block of columns, and it may take one more.
        slack = {"magnitude": 0.5, "wanda": len(matrix), "sparsegpt": 2.0}[criterion]
        assert abs(float((matrix == 0).sum()) - count) <= slack
    others = [n for n in before.state_dict() if not any(n.endswith(f"{p}.weight") for p in PROJECTIONS)]
    assert len(others) == 1 + 1 + 2 * 3 + 1
    assert all(torch.equal(before.state_dict()[n], trained.model.state_dict()[n]) for n in others)
    zero = sum(int(z.sum()) for z in zeros(trained.model))
    total = sum(z.numel() for z in zeros(trained.model))
    assert trained.metrics["zero_fraction"] == pytest.approx(zero / total)
    assert trained.metrics["zero_fraction"] == pytest.approx(0.3, abs=0.011)
    assert trained.metrics["parameters"] == parameters(before)
    # The padding token's embedding was zero before.
    assert trained.metrics["nonzero_parameters"] == sum(int(p.count_nonzero()) for p in before.parameters()) - zero
    assert [m["zero_fraction"] for _, _, m in log.steps if m] == pytest.approx([0.3] * 3, abs=0.011)


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_two_of_every_four(tiny_model: Path, tmp_path: Path, criterion: str, kind: str) -> None:
    folder = make_model(tiny_model, tmp_path / "model", kind=kind)
    trained = run(folder, tmp_path, criterion=criterion, pattern="2:4")
    for zero in zeros(trained.model):
        assert bool((zero.reshape(len(zero), -1, 4).sum(-1) == 2).all())
    again = reloads_equal(trained, tmp_path / "pruned")
    assert trained.metrics["zero_fraction"] == 0.5
    generates(again)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_leaves_an_ordinary_folder(
    grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, criterion: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = load_model(grouped).model
    trained = run(grouped, tmp_path, criterion=criterion)
    model = trained.model
    assert os.listdir(".") == []  # noqa: PTH208  # names are enough
    assert "save_pretrained" not in vars(model)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert set(model.state_dict()) == set(before.state_dict())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert type(module._parameters) is dict
    assert all(p.requires_grad for p in model.parameters())
    again = reloads_equal(trained, tmp_path / "pruned")
    assert getattr(again.config, MARK) is True
    assert not hasattr(again.config, "quantization_config")
    assert sorted(p.name for p in (tmp_path / "pruned").iterdir()) == sorted(p.name for p in grouped.iterdir())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_seed_decides_everything(grouped: Path, tmp_path: Path, criterion: str) -> None:
    one, two = (weights(run(grouped, tmp_path, criterion=criterion, calibration_rows=3).model) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = weights(run(grouped, tmp_path, criterion=criterion, calibration_rows=3, seed=5).model)
    assert all(torch.equal(one[name], other[name]) for name in one) == (criterion == "magnitude")


def test_magnitude_takes_the_smallest_of_a_matrix() -> None:
    weight = torch.tensor([[1.0, -2, 3, 4, 0.1, 0.2, 0.3, -0.4], [9, 9, 9, 9, 9, 9, 9, 9]])
    # Equal weights do not all go.
    assert int((magnitude(weight, 0.75, "unstructured") == 0).sum()) == 12
    assert magnitude(weight, 0.25, "unstructured").tolist()[0] == [1, -2, 3, 4, 0, 0, 0, 0]
    assert magnitude(weight, 0.5, "2:4").tolist()[0] == pytest.approx([0, 0, 3, 4, 0, 0, 0.3, -0.4])
    assert int((magnitude(weight, 0.5, "2:4")[1] == 0).sum()) == 4


def planted(folder: Path, to: Path, channel: int) -> Path:
    """The model with one channel, of the stream that attention reads, loud, and its weights there as much quieter."""
    loaded = load_model(folder)
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            layer.input_layernorm.weight[channel] *= 1000
            for name in ("q_proj", "k_proj", "v_proj"):
                layer.self_attn.get_submodule(name).weight[:, channel] /= 1000
    save_model(loaded.model, loaded.tokenizer, to)
    return to


@needs_llmcompressor
def test_wanda_keeps_small_weights_of_loud_inputs(grouped: Path, tmp_path: Path) -> None:
    channel = 7
    folder = planted(grouped, tmp_path / "planted", channel)
    found = {
        criterion: run(folder, tmp_path, criterion=criterion, sparsity=0.3)
        .model.model.layers[0]
        .self_attn.q_proj.weight
        for criterion in ("magnitude", "wanda")
    }
    plain = run(grouped, tmp_path, criterion="wanda", sparsity=0.3).model.model.layers[0].self_attn.q_proj.weight
    assert bool((found["magnitude"][:, channel] == 0).all())
    # What scale stands on which side is nothing to it.
    assert torch.equal(found["wanda"] == 0, plain == 0)
    assert float((found["wanda"][:, channel] == 0).float().mean()) < 0.6


@needs_llmcompressor
def test_wanda_is_the_papers(grouped: Path, tmp_path: Path) -> None:
    """In the first and the second layer: the second's inputs are those after the first was pruned."""
    before = load_model(grouped)
    after = run(grouped, tmp_path, criterion="wanda").model
    params = PruneWeightsParams(calibration_rows=8)
    inputs, context = make_inputs(grouped, instructions(30, 3)), make_context(tmp_path, Log())
    rows = calibration_rows(inputs, before.model, before.tokenizer, params, context, "test")
    for index in (0, 1):
        for name in ("self_attn.q_proj", "mlp.down_proj"):
            matrix = before.model.model.layers[index].get_submodule(name)
            seen: list[torch.Tensor] = []
            hook = matrix.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0][0]))
            with torch.no_grad():
                for row in rows:
                    before.model(input_ids=row["input_ids"])
            hook.remove()
            score = matrix.weight.abs() * torch.cat(seen).norm(dim=0)
            least = score.argsort(dim=1, stable=True)[:, : matrix.in_features // 2]
            expected = torch.zeros_like(score, dtype=torch.bool).scatter(1, least, True)
            found = after.model.layers[index].get_submodule(name).weight == 0
            # Where two scores are nearly equal, rounding may decide.
            assert float((found != expected).float().mean()) < 0.002, (index, name)
        with torch.no_grad():
            before.model.model.layers[index].load_state_dict(after.model.layers[index].state_dict())


@needs_llmcompressor
def test_sparsegpt_makes_up_for_what_it_takes(taught: Path, tmp_path: Path) -> None:
    before = load_model(taught)
    losses = {}
    for criterion in ("magnitude", "wanda", "sparsegpt"):
        trained = run(taught, tmp_path, criterion=criterion, sparsity=0.6, calibration_rows=30)
        losses[criterion] = held_out_loss(before, trained.model, instructions(30, 9))
        changed = [
            bool((new[new != 0] != old[new != 0]).any())
            for old, new in zip(matrices(before.model), matrices(trained.model), strict=True)
        ]
        assert all(changed) if criterion == "sparsegpt" else not any(changed)
    assert losses["sparsegpt"] < losses["wanda"]
    assert losses["sparsegpt"] < losses["magnitude"] - 0.1


@pytest.mark.parametrize("criterion", CALIBRATED)
def test_bfloat16_prunes_nearly_as_float32(grouped: Path, tmp_path: Path, criterion: str) -> None:
    exact, rounded = (zeros(run(grouped, tmp_path, criterion=criterion, bf16=bf16).model) for bf16 in (False, True))
    same = [float((a == b).float().mean()) for a, b in zip(exact, rounded, strict=True)]
    assert min(same) > 0.97


def test_attention_of_each_layer_stays_its_own(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("llmcompressor")
    changes: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    folder = make_model(
        tiny_model, tmp_path / "mixed", kind="qwen2", use_sliding_window=True, sliding_window=4, **changes
    )
    masks: list[tuple[int, Any]] = []
    inputs = make_inputs(folder, instructions(4, 3))
    for index, layer in enumerate(inputs.load("policy").model.model.layers):
        layer.self_attn.register_forward_pre_hook(
            lambda _module, _args, kwargs, index=index: masks.append((index, kwargs["attention_mask"])),
            with_kwargs=True,
        )
    params = PruneWeightsParams(calibration_rows=1)
    PruneWeights().run(inputs, params, make_context(tmp_path, Log()))
    # Once in the model, then twice by itself.
    first, later = dict(masks[:3]), masks[3:]
    assert [index for index, _ in later] == [0, 0, 1, 1, 2, 2]
    assert all(mask is first[index] for index, mask in later)
    assert first[0] is not first[1]


def two_models(policy: Path, other: Path, role: str, dataset: Any) -> Inputs:
    folders: Any = {"policy": policy, role: other, "reference": policy}
    return Inputs(
        folders=folders,
        loader=lambda role, path: load_model(path, head="reward" if role == "reward" else "causal"),
        dataset=dataset,
    )


def trained_by(method: str, policy: Path, teacher: Path, reward: Path | None, context: Context, **more: Any) -> Trained:
    quick: dict[str, Any] = {"learning_rate": 1e-2, **more}
    if method == "ppo":
        assert reward is not None
        settings = {"iterations": 2, "rollout_batch_size": 4, "minibatch_size": 2, "max_new_tokens": 4, "warmup": 0.0}
        params = PPOParams(**{**settings, **quick, "learning_rate": 1e-3, "max_kl": None})
        return PPO().run(two_models(policy, reward, "reward", instructions(8, 1)), params, context)
    quick |= {"steps": 3, "batch_size": 4}
    if method == "sft":
        return SFT().run(make_inputs(policy, instructions(20, 1)), SFTParams(**quick), context)
    if method == "dpo":
        return DPO().run(make_inputs(policy, preferences(20, 1)), DPOParams(**quick), context)
    inputs = two_models(policy, teacher, "teacher", instructions(20, 1))
    return Distill().run(inputs, DistillParams(**quick), context)


@pytest.fixture(scope="module")
def reward(sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("reward")
    params = RewardModelParams(steps=3, batch_size=4, learning_rate=1e-3)
    trained = RewardModel().run(make_inputs(sparse, preferences(20, 1)), params, make_context(place, Log()))
    # Its head began as zeros, which were there to be learned.
    assert bool((trained.model.score.weight != 0).any())
    assert all(torch.equal(a, b) for a, b in zip(zeros(trained.model), zeros(load_model(sparse).model), strict=True))
    save_model(trained.model, trained.tokenizer, place / "model")
    return place / "model"


@pytest.mark.parametrize("method", ["sft", "dpo", "distill", "ppo"])
def test_zeros_stay_through_training(sparse: Path, taught: Path, reward: Path, tmp_path: Path, method: str) -> None:
    before = load_model(sparse).model
    trained = trained_by(method, sparse, taught, reward, make_context(tmp_path, Log()))
    for old, new in zip(matrices(before), matrices(trained.model), strict=True):
        assert torch.equal(old == 0, new == 0)
        assert not torch.equal(old, new)
    assert all(not p._post_accumulate_grad_hooks for p in trained.model.parameters())
    assert getattr(reloads_equal(trained, tmp_path / "tuned").config, MARK) is True


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adafactor"},
        {"optimizer": "sgd"},
        {"weight_decay": 0.1, "gradient_accumulation": 2, "gradient_checkpointing": True},
    ],
    ids=["adafactor", "sgd", "accumulated"],
)
def test_zeros_stay_with_every_optimizer(sparse: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    before = load_model(sparse).model
    trained = trained_by("sft", sparse, sparse, None, make_context(tmp_path, Log()), **options)
    for old, new in zip(matrices(before), matrices(trained.model), strict=True):
        assert torch.equal(old == 0, new == 0)
        assert not torch.equal(old, new)


def test_a_dense_model_is_left_alone(taught: Path, tmp_path: Path) -> None:
    loaded = load_model(taught)
    with torch.no_grad():
        loaded.model.model.layers[0].self_attn.q_proj.weight[:4] = 0
    save_model(loaded.model, loaded.tokenizer, tmp_path / "zeros")
    trained = trained_by("sft", tmp_path / "zeros", taught, None, make_context(tmp_path, Log()))
    assert bool((trained.model.model.layers[0].self_attn.q_proj.weight[:4] != 0).any())


def test_gradients_of_zeros_do_not_count(sparse: Path) -> None:
    model = load_model(sparse).model
    ids = torch.arange(5, 15)[None]
    with KeptZeros(model) as kept:
        model(input_ids=ids, labels=ids).loss.backward()
        for layer in model.model.layers:
            for name in PROJECTIONS:
                weight = layer.get_submodule(name).weight
                assert not bool(weight.grad[weight == 0].any())
                assert bool(weight.grad.any())
        before = zeros(model)
        with torch.no_grad():
            for matrix in matrices(model):
                matrix.add_(1)
        kept.restore()
        assert all(torch.equal(a, b) for a, b in zip(before, zeros(model), strict=True))
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert bool(weight.grad[weight == 0].any())


@pytest.mark.parametrize("method", ["sft", "ppo"])
def test_adapters_are_refused(sparse: Path, reward: Path, tmp_path: Path, method: str) -> None:
    with pytest.raises(UserError, match=r"LoRA adapters would fill its zeros again.*lora_rank: 0"):
        trained_by(method, sparse, sparse, reward, make_context(tmp_path, Log()), lora_rank=4)


def test_says_what_is_wrong(tiny_model: Path, grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for sparsity in (0.0, 1.0):
        with pytest.raises(ValidationError, match="sparsity"):
            PruneWeightsParams(sparsity=sparsity)
    with pytest.raises(ValidationError, match=r"pattern 2:4 is a sparsity of 0.5, not 0.6"):
        PruneWeightsParams(pattern="2:4", sparsity=0.6)
    with pytest.raises(ValidationError, match="criterion"):
        PruneWeightsParams(criterion="random")  # type: ignore[arg-type]  # on purpose
    gemma = make_model(tiny_model, tmp_path / "gemma", kind="gemma")
    with pytest.raises(UserError, match=r"GemmaForCausalLM.*it knows llama"):
        run(gemma, tmp_path, criterion="magnitude")
    odd = make_model(tiny_model, tmp_path / "odd", intermediate_size=98)
    with pytest.raises(UserError, match=r"multiples of 4; this model has \[98\]"):
        run(odd, tmp_path, criterion="magnitude", pattern="2:4")
    monkeypatch.setitem(sys.modules, "llmcompressor.modifiers.pruning.wanda", None)
    with pytest.raises(UserError, match=r"pip install 'posttrain-harness\[compression\]'"):
        run(grouped, tmp_path, criterion="wanda")
    run(grouped, tmp_path, criterion="magnitude")
    assert PruneWeights.compresses is True


@needs_llmcompressor
def test_overflow_and_deadline_end_a_run(grouped: Path, tmp_path: Path) -> None:
    for criterion in ("wanda", "sparsegpt"):
        inputs = make_inputs(grouped, instructions(8, 3))
        with torch.no_grad():
            inputs.load("policy").model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.inf
        with pytest.raises(InfeasibleError, match="not finite"):
            PruneWeights().run(inputs, PruneWeightsParams(criterion=criterion), make_context(tmp_path, Log()))
    with pytest.raises(ValidationError):
        PruneWeightsParams(calibration_rows=0)
    late = make_context(tmp_path, Log(), deadline=time.monotonic() - 1)
    for criterion in ("magnitude", "wanda"):
        with pytest.raises(PrunedError, match="deadline"):
            PruneWeights().run(make_inputs(grouped, instructions(8, 3)), PruneWeightsParams(criterion=criterion), late)


@needs_llmcompressor
def test_a_hessian_that_cannot_be_inverted_is_no_silent_matter(
    grouped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise torch._C._LinAlgError("not positive definite")

    monkeypatch.setattr(torch.linalg, "cholesky", fails)
    with pytest.raises(InfeasibleError, match="Failed to invert hessian"):
        run(grouped, tmp_path, criterion="sparsegpt")
