"""Quantisation-aware training: it trains what it saves, is as small as `quantize` and better than it."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("torchao")
pytest.importorskip("compressed_tensors")

from pydantic import ValidationError

from harness._packed import PackedLinear
from harness.errors import PrunedError, UserError
from harness.method import Trained
from harness.models import load_model, save_model
from methods._rows import instruction_rows, training_order
from methods.qat import QAT, QATParams
from methods.quantize import Quantize, QuantizeParams
from methods.sft import SFT, SFTParams
from tests.methods.helpers import Log, completion_log_prob, held_out_loss, instructions, make_context, make_inputs

ROWS = {"granularity": "channel"}
"""One scale a row: in a model this small, where 4 bits hurt."""


@pytest.fixture(scope="module")
def trained_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after 60 steps of SFT."""
    folder = tmp_path_factory.mktemp("trained")
    params = SFTParams(steps=60, batch_size=8, learning_rate=5e-3)
    trained = SFT().run(make_inputs(tiny_model, instructions(200, 1)), params, make_context(folder, Log()))
    save_model(trained.model, trained.tokenizer, folder / "model")
    return folder / "model"


def run(
    folder: Path, scratch: Path, *, log: Log | None = None, seed: int = 0, precision: Any = "float32", **params: Any
) -> Trained:
    context = make_context(scratch, log or Log(), seed=seed, precision=precision)
    settings = {"steps": 20, "batch_size": 8, "learning_rate": 2e-3, **params}
    return QAT().run(make_inputs(folder, instructions(200, 1)), QATParams(**settings), context)


def quantised(folder: Path, scratch: Path, **params: Any) -> Trained:
    return Quantize().run(make_inputs(folder, None), QuantizeParams(**params), make_context(scratch, Log()))


def test_beats_training_first_and_rounding_afterwards(trained_model: Path, tmp_path: Path) -> None:
    loaded, unseen = load_model(trained_model), instructions(40, 2)
    aware = run(trained_model, tmp_path / "qat", scheme="int4_weight_only", **ROWS)
    plain = SFT().run(
        make_inputs(trained_model, instructions(200, 1)),
        SFTParams(steps=20, batch_size=8, learning_rate=2e-3),
        make_context(tmp_path, Log()),
    )
    save_model(plain.model, plain.tokenizer, tmp_path / "sft")
    after = quantised(tmp_path / "sft", tmp_path / "ptq", scheme="int4_weight_only", **ROWS)
    before = quantised(trained_model, tmp_path / "before", scheme="int4_weight_only", **ROWS)
    loss = {
        name: held_out_loss(loaded, model, unseen)
        for name, model in (
            ("sft", plain.model),
            ("qat", aware.model),
            ("sft, ptq", after.model),
            ("ptq", before.model),
        )
    }
    assert loss["qat"] < 0.9 * loss["ptq"]
    # The same steps on the same rows: what rounding cost, at least halved.
    assert loss["qat"] - loss["sft"] < 0.5 * (loss["sft, ptq"] - loss["sft"])
    assert aware.metrics["weight_bytes"] == after.metrics["weight_bytes"]
    assert aware.metrics["resident_bytes"] == after.metrics["resident_bytes"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", ["int8_weight_only", "int8_dynamic", "int4_weight_only", "int4_dynamic"])
def test_saves_what_it_trained_as_small_as_quantize_does(
    trained_model: Path, tmp_path: Path, scheme: str, precision: str, capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    trained = run(trained_model, tmp_path / "qat", log=log, scheme=scheme, steps=3, precision=precision)
    assert [step for step, _, _ in log.steps] == [1, 2, 3]
    assert trained.metrics["steps"] == 3
    assert trained.metrics["conversion_difference"] < 1e-5
    assert trained.metrics["reload_difference"] < (0.02 if scheme.endswith("dynamic") else 1e-5)
    same = quantised(trained_model, tmp_path / "ptq", scheme=scheme)
    for name in ("weight_bytes", "resident_bytes", "bits_per_weight", "quantised_matrices"):
        assert trained.metrics[name] == same.metrics[name], name
    packed = {n: m for n, m in trained.model.named_modules() if isinstance(m, PackedLinear)}
    assert len(packed) == 14
    # The steps were not lost between training and saving.
    assert not torch.equal(packed["model.layers.0.mlp.up_proj"].dense(), _dense(same, "model.layers.0.mlp.up_proj"))
    folder = tmp_path / "artifact"
    folder.mkdir()
    assert trained.write is not None
    trained.write(folder)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(load_model(folder).model(input_ids=ids).logits, trained.model(input_ids=ids).logits)
    printed = capfd.readouterr()
    assert printed.out == printed.err == ""


def _dense(trained: Trained, name: str) -> torch.Tensor:
    found: Any = trained.model.get_submodule(name)
    dense: torch.Tensor = found.dense()
    return dense


@pytest.mark.parametrize("scheme", ["int4_weight_only", "int4_dynamic"])
def test_the_loss_it_trains_on_is_that_of_the_rounded_model(trained_model: Path, tmp_path: Path, scheme: str) -> None:
    log = Log()
    run(trained_model, tmp_path / "qat", log=log, scheme=scheme, steps=1, **ROWS)
    loaded = load_model(trained_model)
    rounded = quantised(trained_model, tmp_path / "ptq", scheme=scheme, **ROWS)
    data = instructions(200, 1)
    order = training_order(len(instruction_rows(data, loaded.tokenizer, 512)), 8, 0)

    def loss(model: Any) -> float:
        scored = [completion_log_prob(loaded, model, data[i]["prompt"], data[i]["completion"]) for i in order]
        return -sum(value for value, _ in scored) / sum(tokens for _, tokens in scored)

    assert log.values("loss")[0] == pytest.approx(loss(rounded.model), rel=1e-4)
    assert abs(loss(rounded.model) - loss(loaded.model)) > 1e-3


def test_same_seed_gives_the_same_weights(trained_model: Path, tmp_path: Path) -> None:
    first, again, other = (
        run(trained_model, tmp_path / name, seed=seed, steps=3).model.state_dict()
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not all(torch.equal(first[n], other[n]) for n in first)


def test_notices_what_was_not_trained_rounded(
    trained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import methods.qat

    real = methods.qat.nearest

    def coarser(model: Any, names: Any, grid: Any) -> Any:
        from methods._quant_format import Grid

        return real(model, names, Grid(4, 16))

    monkeypatch.setattr(methods.qat, "nearest", coarser)
    with pytest.raises(RuntimeError, match="differs from the layer that was quantised"):
        run(trained_model, tmp_path / "a", steps=1)
    monkeypatch.setattr(methods.qat, "nearest", real)
    monkeypatch.setattr(methods.qat, "prepare_training", lambda *_: None)
    with pytest.raises(RuntimeError, match="q_proj was to be trained quantised and is a Linear"):
        run(trained_model, tmp_path / "b", steps=1)


def test_refuses_what_makes_no_sense(trained_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="expected lora_rank 0"):
        QATParams(lora_rank=8)
    with pytest.raises(ValidationError):
        QATParams(scheme="gptq_w4")  # type: ignore[arg-type]  # refused
    with pytest.raises(UserError, match="group_size=48 does not divide"):
        run(trained_model, tmp_path, group_size=48)
    with pytest.raises(UserError, match="dataset"):
        QAT().run(make_inputs(trained_model, None), QATParams(), make_context(tmp_path, Log()))
    with pytest.raises(UserError, match="max_length=8"):
        run(trained_model, tmp_path, max_length=8)
    with pytest.raises(PrunedError, match="deadline"):
        QAT().run(
            make_inputs(trained_model, instructions(20, 1)),
            QATParams(),
            make_context(tmp_path, Log(), deadline=time.monotonic() - 1),
        )
    assert QAT.deploys({})
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == "torchao" else find(n, *rest))
    with pytest.raises(UserError, match=r"needs torchao: .*posttrain-harness\[compression\]"):
        run(trained_model, tmp_path)
