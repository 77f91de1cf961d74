"""Options that spare memory: that training still learns, what must be equal is equal, and what it costs is stored."""

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import UserError
from harness.method import Inputs, Trained
from harness.models import load_model, save_model
from methods._host_optimizer import HostOptimizer
from methods._meter import Meter
from methods._optimizer import OptimizerParams, make_optimizer, set_rate, state_mb
from methods._ppo_trainer import Trainer as PPOTrainer
from methods.distill import Distill, DistillParams
from methods.dpo import DPO, DPOParams
from methods.ppo import PPO, PPOParams
from methods.reward_model import RewardModel, RewardModelParams
from methods.sft import SFT, SFTParams
from tests.methods.helpers import Log, instructions, make_context, preferences, weights

METHODS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (SFT, SFTParams, {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}),
    "dpo": (DPO, DPOParams, {"steps": 3, "batch_size": 4, "learning_rate": 1e-3}),
    "reward_model": (
        RewardModel,
        RewardModelParams,
        {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "held_out_pairs": 0},
    ),
    "distill": (Distill, DistillParams, {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "alpha": 0.5}),
    "ppo": (
        PPO,
        PPOParams,
        {
            "rollout_batch_size": 8,
            "minibatch_size": 4,
            "max_new_tokens": 6,
            "iterations": 2,
            "learning_rate": 1e-3,
            "entropy_coef": 0.01,
            "max_kl": None,
        },
    ),
}

EIGHT_BIT = "adamw_8bit"


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder for each role: the tiny model, a teacher and a reward model made of it."""
    place = tmp_path_factory.mktemp("taught")
    start = Inputs({"policy": tiny_model}, lambda _role, path: load_model(path), instructions(50, 1))
    teacher = SFT().run(start, SFTParams(steps=10, learning_rate=5e-3), make_context(place / "a", Log()))
    start = Inputs({"policy": tiny_model}, lambda _role, path: load_model(path), preferences(50, 1))
    reward = RewardModel().run(start, RewardModelParams(steps=5, batch_size=4), make_context(place / "b", Log()))
    for name, made in (("teacher", teacher), ("reward", reward)):
        save_model(made.model, made.tokenizer, place / name)
    return {"policy": tiny_model, "reference": tiny_model, "teacher": place / "teacher", "reward": place / "reward"}


def given(method: Any, taught: dict[str, Path]) -> Inputs:
    rows = preferences(60, 2) if method in (DPO, RewardModel) else instructions(60, 2)
    folders: Any = {role: taught[role] for role in method.needs}

    def load(role: str, path: Path) -> Any:
        return load_model(path, head="reward" if role == "reward" else "causal")

    return Inputs(folders, load, rows)  # type: ignore[arg-type]  # the roles are the method's own


def run(name: str, taught: dict[str, Path], scratch: Path, log: Log | None = None, **changes: Any) -> Trained:
    method, params, quick = METHODS[name]
    context = make_context(scratch, log or Log())
    trained: Trained = method().run(given(method, taught), params(**{**quick, **changes}), context)
    return trained


# -- the optimizer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 5e-3), (EIGHT_BIT, 5e-3), ("adafactor", 5e-3), ("sgd", 1.0)])
def test_every_optimizer_trains(taught: dict[str, Path], tmp_path: Path, optimizer: str, rate: float) -> None:
    log = Log()
    trained = run("sft", taught, tmp_path, log, steps=20, learning_rate=rate, optimizer=optimizer)
    loss = log.values("loss")
    assert loss[-1] < 0.65 * loss[0]
    # Two fp32 numbers a weight; a quarter where a tensor is large enough for 8-bit blocks; sums only; nothing.
    size = 4 * sum(p.numel() for p in trained.model.parameters()) / 2**20
    state = trained.metrics["optimizer_state_mb"]
    expected = {"adamw": 2.0, EIGHT_BIT: 0.55, "adafactor": 0.03, "sgd": 0.0}[optimizer]
    assert state / size == pytest.approx(expected, rel=0.4, abs=1e-3)
    assert log.values("learning_rate")[-1] < log.values("learning_rate")[5]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_the_choice(name: str, taught: dict[str, Path], tmp_path: Path) -> None:
    plain = run(name, taught, tmp_path / "a")
    chosen = run(name, taught, tmp_path / "b", optimizer="adafactor")
    assert chosen.metrics["optimizer_state_mb"] < 0.1 * plain.metrics["optimizer_state_mb"]
    one, other = weights(plain.model), weights(chosen.model)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_8_bit_is_a_quarter_of_the_state() -> None:
    weight = torch.nn.Parameter(torch.randn(512, 512))
    found = {}
    for name in ("adamw", EIGHT_BIT):
        optimizer = make_optimizer([{"params": [weight], "lr": 1e-3}], OptimizerParams(optimizer=name), "cpu")  # type: ignore[arg-type]  # a name from the list
        weight.grad = torch.randn_like(weight)
        optimizer.step()
        found[name] = state_mb(optimizer)
        # The rate that is set later is the one taken: torchao's is a tensor that its compiled step has read.
        before = weight.detach().clone()
        set_rate(optimizer.param_groups[0], 0.0)
        optimizer.step()
        assert torch.equal(weight, before)
        set_rate(optimizer.param_groups[0], 0.25)
        optimizer.step()
        assert 0.05 < float((weight.detach() - before).abs().max()) < 0.6
    assert found["adamw"] == pytest.approx(2.0, rel=0.01)
    # One byte a number, and a scale of four for each 256.
    assert found[EIGHT_BIT] == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_what_needs_a_gpu_is_refused_on_a_cpu(name: str, taught: dict[str, Path], tmp_path: Path) -> None:
    for optimizer in ("adamw_paged", "adamw_8bit_paged"):
        with pytest.raises(UserError, match=rf"optimizer {optimizer} .*CUDA device; this stage trains on cpu: use "):
            run(name, taught, tmp_path, optimizer=optimizer)
    with pytest.raises(UserError, match=r"offload_optimizer .*CUDA device; this stage trains on cpu.* leave it out"):
        run(name, taught, tmp_path, offload_optimizer=True)


def test_says_what_is_missing_or_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="pages its own state"):
        OptimizerParams(optimizer="adamw_paged", offload_optimizer=True)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1.0}]
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        make_optimizer(groups, OptimizerParams(optimizer="adamw_paged"), "cuda")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"install g\+\+"):
        make_optimizer(groups, OptimizerParams(optimizer="adamw_8bit"), "cpu")


def test_the_host_optimizer_takes_the_same_steps() -> None:
    # What it moves between is a GPU and the host; that it steps as the plain one does needs no GPU.
    torch.manual_seed(0)
    start = [torch.randn(8, 4), torch.randn(4)]
    gradients = [[torch.randn_like(w) for w in start] for _ in range(4)]
    ends = []
    for offload in (False, True):
        pairs = zip(start, (0.1, 0.01), strict=True)
        group = [{"params": [torch.nn.Parameter(w.clone())], "lr": rate} for w, rate in pairs]
        settings: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
        plain = torch.optim.AdamW(group, **settings)
        optimizer = HostOptimizer(group, torch.optim.AdamW, **settings) if offload else plain
        mine = [p for g in optimizer.param_groups for p in g["params"]]
        for step, found in enumerate(gradients):
            optimizer.zero_grad(set_to_none=True)
            for weight, gradient in zip(mine, found, strict=True):
                weight.grad = gradient.clone()
            if step == 2:
                mine[1].grad = None
            for g in optimizer.param_groups:
                set_rate(g, float(g["lr"]) * 0.9)
            optimizer.step()
        ends.append([w.detach().clone() for w in mine])
        assert state_mb(optimizer) > 0
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# -- keys of what was trained before there was a choice ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["sft", "dpo", "reward_model", "ppo"])
def test_defaults_leave_a_stages_settings_as_they_were(name: str) -> None:
    later = {"optimizer", "offload_optimizer"}
    if name == "ppo":
        later |= {"gradient_checkpointing", "gradient_accumulation"}
    _, params, _ = METHODS[name]
    assert later <= set(params.model_fields)
    assert not later & set(params().model_dump(mode="json"))
    assert params.model_validate(params().model_dump(mode="json")) == params()
    chosen = params(optimizer="sgd", gradient_checkpointing=True, gradient_accumulation=2)
    kept = chosen.model_dump(mode="json")
    assert (kept["optimizer"], kept["gradient_checkpointing"], kept["gradient_accumulation"]) == ("sgd", True, 2)
    assert params.model_validate(kept) == chosen


# -- gradient checkpointing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.parametrize("name", METHODS)
def test_recomputing_changes_no_weight(name: str, lora_rank: int, taught: dict[str, Path], tmp_path: Path) -> None:
    plain = run(name, taught, tmp_path / "a", lora_rank=lora_rank)
    spared = run(name, taught, tmp_path / "b", lora_rank=lora_rank, gradient_checkpointing=True)
    one, other = weights(plain.model), weights(spared.model)
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert spared.model.config.use_cache
    assert not any(getattr(m, "gradient_checkpointing", False) for m in spared.model.modules())


@pytest.mark.parametrize("name", METHODS)
def test_recomputing_really_runs_the_layers_again(
    name: str, taught: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    counts = []
    real = LlamaMLP.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            counts[-1] += 1
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    for on in (False, True):
        counts.append(0)
        run(name, taught, tmp_path, gradient_checkpointing=on)
    assert counts[1] == 2 * counts[0]


def test_recomputing_keeps_fewer_activations(taught: dict[str, Path], tmp_path: Path) -> None:
    kept = []
    for on in (False, True):
        context = make_context(tmp_path, Log())
        settings = {**METHODS["ppo"][2], "gradient_checkpointing": on}
        trainer = PPOTrainer(given(PPO, taught), PPOParams(**settings), context)
        experience = trainer.collect()
        total = 0

        def counted(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(counted, lambda tensor: tensor):
            trainer.learner._measure(experience, experience.minibatches[0])
        kept.append(total)
    assert kept[1] < 0.5 * kept[0]


# -- accumulation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sft", "dpo", "reward_model", "distill"])
def test_accumulation_equals_the_larger_batch(name: str, taught: dict[str, Path], tmp_path: Path) -> None:
    whole, parts = Log(), Log()
    large = run(name, taught, tmp_path / "a", whole, batch_size=8, optimizer="sgd")
    small = run(name, taught, tmp_path / "b", parts, batch_size=4, gradient_accumulation=2, optimizer="sgd")
    assert parts.values("loss") == pytest.approx(whole.values("loss"), rel=1e-4)
    assert parts.values("grad_norm") == pytest.approx(whole.values("grad_norm"), rel=1e-3)
    other = weights(small.model)
    assert all(torch.allclose(value, other[key], atol=2e-6) for key, value in weights(large.model).items())


@pytest.mark.parametrize("value", ["head", "model"])
def test_a_minibatch_in_parts_is_the_minibatch(value: str, taught: dict[str, Path], tmp_path: Path) -> None:
    found = []
    for parts in (1, 3):
        settings = {**METHODS["ppo"][2], "value": value, "gradient_accumulation": parts}
        trainer = PPOTrainer(given(PPO, taught), PPOParams(**settings), make_context(tmp_path, Log()))
        experience = trainer.collect()
        rows = experience.minibatches[0]
        measured, stepped = trainer.learner.step(experience, rows)
        assert stepped
        learning = [*trainer.learner.policy_weights, *trainer.learner.value_weights]
        found.append((measured, [p.grad.clone() for p in learning if p.grad is not None]))
    (whole, one), (parted, other) = found
    assert parted == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert whole["policy_loss"] != 0
    for gradient, same in zip(one, other, strict=True):
        torch.testing.assert_close(gradient, same, rtol=1e-4, atol=1e-6)


def test_parts_past_max_kl_take_no_step(taught: dict[str, Path], tmp_path: Path) -> None:
    settings = {**METHODS["ppo"][2], "gradient_accumulation": 2, "max_kl": 1e-9, "epochs": 3, "warmup": 0.0}
    trainer = PPOTrainer(given(PPO, taught), PPOParams(**settings), make_context(tmp_path, Log()))
    assert trainer.learner.update(trainer.collect())["updates"] == 1
    with pytest.raises(ValueError, match="gradient_accumulation"):
        PPOParams(minibatch_size=4, gradient_accumulation=5)


# -- what it costs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_memory_and_time_are_stored(name: str, taught: dict[str, Path], tmp_path: Path) -> None:
    metrics = run(name, taught, tmp_path).metrics
    assert metrics["step_ms"] > 0
    assert metrics["optimizer_state_mb"] > 0.5
    assert metrics["train_peak_mb"] >= 0


def test_the_meter_sees_memory_that_is_gone_at_the_end() -> None:
    meter = Meter("cpu")
    big = torch.ones(30 * 2**18)
    del big
    for _ in range(3):
        meter.tick()
    figures = meter.figures()
    assert figures["train_peak_mb"] == pytest.approx(30, abs=6)
    assert set(figures) == {"step_ms", "train_peak_mb"}
    # A new one begins anew.
    assert Meter("cpu").figures().get("train_peak_mb", 0.0) < 3
