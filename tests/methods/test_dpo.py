"""DPO: its reference is the incoming policy, and it moves held-out margins the right way."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import InfeasibleError
from harness.method import Trained
from harness.models import load_model, save_model
from methods.dpo import DPO, DPOParams
from tests.methods.helpers import Log, completion_log_prob, make_context, make_inputs, preferences, weights

QUICK = {"steps": 20, "batch_size": 8, "learning_rate": 1e-3}


def run(
    folder: Path,
    scratch: Path,
    *,
    log: Log | None = None,
    seed: int = 0,
    precision: Any = "float32",
    pairs: int = 200,
    **params: Any,
) -> Trained:
    context = make_context(scratch, log or Log(), seed=seed, precision=precision)
    return DPO().run(make_inputs(folder, preferences(pairs, 1)), DPOParams(**{**QUICK, **params}), context)


def margins(folder: Path, model: Any, dataset: Any) -> list[float]:
    """Log-ratio of chosen over rejected beyond that of the model in the folder, in nats, pair by pair."""
    reference = load_model(folder)

    def difference(of: Any, row: Any) -> float:
        chosen, _ = completion_log_prob(reference, of, row["prompt"], row["chosen"])
        rejected, _ = completion_log_prob(reference, of, row["prompt"], row["rejected"])
        return chosen - rejected

    return [difference(model, row) - difference(reference.model, row) for row in dataset]


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 8, "learning_rate": 1e-2}], ids=["full", "lora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_raises_the_margin_of_held_out_pairs(
    tiny_model: Path, tmp_path: Path, settings: dict[str, Any], precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    trained = run(tiny_model, tmp_path, log=log, precision=precision, **settings)
    # The reference is the incoming policy, to the last bit: before the first update nothing differs from it.
    first = log.steps[0][2]
    assert first["rewards_margin"] == first["rewards_chosen"] == first["rewards_rejected"] == 0.0
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log.values("rewards_margin")[-1] > 0.2
    assert log.values("rewards_accuracy")[-1] > 0.9
    found = margins(tiny_model, trained.model, preferences(30, 2))
    assert sum(m > 0 for m in found) > 0.9 * len(found)
    assert 0.1 * sum(found) / len(found) == pytest.approx(log.values("rewards_margin")[-1], rel=0.5)
    assert trained.metrics["steps"] == len(log.steps) == 20
    assert trained.metrics["train_tokens"] > 0
    assert capsys.readouterr().out == ""


def test_the_reference_is_the_policy_in_memory_not_the_one_on_disk(tiny_model: Path, tmp_path: Path) -> None:
    # A policy whose config points to other weights: a reference reloaded from that path would start at a margin.
    inputs = make_inputs(tiny_model, preferences(64, 1))
    loaded = inputs.load("policy")
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in loaded.model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    assert Path(loaded.model.config._name_or_path) == tiny_model
    log = Log()
    DPO().run(inputs, DPOParams(steps=2), make_context(tmp_path, log))
    assert log.steps[0][2]["rewards_chosen"] == 0.0


def test_reference_log_probs_are_those_of_the_policy_in_later_epochs(tiny_model: Path, tmp_path: Path) -> None:
    # No learning rate to speak of: 6 pairs in batches of 4 mix rows of two epochs, and every margin stays 0.
    log = Log()
    run(tiny_model, tmp_path, log=log, pairs=6, steps=6, batch_size=4, learning_rate=1e-12)
    assert all(abs(margin) < 1e-5 for margin in log.values("rewards_margin"))
    assert len({round(value, 3) for value in log.values("logps_chosen")}) > 1


def test_logged_log_probs_are_those_of_the_plain_model(tiny_model: Path, tmp_path: Path) -> None:
    log = Log()
    run(tiny_model, tmp_path, log=log, pairs=8, steps=1, batch_size=8)
    loaded = load_model(tiny_model)
    rows = preferences(8, 1)
    for side in ("chosen", "rejected"):
        values = [completion_log_prob(loaded, loaded.model, row["prompt"], row[side])[0] for row in rows]
        assert log.values(f"logps_{side}")[0] == pytest.approx(sum(values) / 8, rel=1e-5)


def test_same_seed_gives_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    for settings in ({}, {"lora_rank": 4}):
        first, again = (
            weights(run(tiny_model, tmp_path, precision="bfloat16", steps=4, **settings).model) for _ in range(2)
        )
        assert all(torch.equal(first[name], again[name]) for name in first)


def test_gradient_accumulation_equals_the_larger_batch(tiny_model: Path, tmp_path: Path) -> None:
    whole = weights(run(tiny_model, tmp_path, steps=3, batch_size=8).model)
    parts = weights(run(tiny_model, tmp_path, steps=3, batch_size=4, gradient_accumulation=2).model)
    assert all(torch.allclose(whole[name], parts[name], atol=1e-4) for name in whole)


def test_lora_result_is_an_ordinary_folder(tiny_model: Path, tmp_path: Path) -> None:
    trained = run(tiny_model, tmp_path / "scratch", steps=2, lora_rank=4)
    save_model(trained.model, trained.tokenizer, tmp_path / "saved")
    assert {p.name for p in (tmp_path / "saved").iterdir()} == {p.name for p in tiny_model.iterdir()}
    assert load_model(tmp_path / "saved").model.config.architectures == ["LlamaForCausalLM"]


def test_divergence_is_infeasible(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="step"):
        run(tiny_model, tmp_path, learning_rate=1e30, warmup_fraction=0.0, lr_scheduler="constant")


def test_leaves_no_file_behind(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    for name in ("here", "temp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    run(tiny_model, tmp_path / "scratch", steps=1)
    assert not list((tmp_path / "here").iterdir())
    assert not [p for p in (tmp_path / "temp").rglob("*") if p.is_file()]
