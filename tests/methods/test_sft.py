"""SFT: what it learns, what it ignores, and that it repeats bit for bit."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import InfeasibleError, PrunedError, UserError
from harness.method import Trained
from harness.models import load_model, save_model
from methods._rows import encode, instruction_rows, training_order
from methods._sft_trainer import make_trainer
from methods._trl import finish
from methods.sft import SFT, SFTParams
from tests.methods.helpers import (
    Log,
    completion_log_prob,
    held_out_loss,
    instructions,
    make_context,
    make_inputs,
    turn,
    weights,
)

QUICK = {"steps": 30, "batch_size": 8, "learning_rate": 5e-3}


def run(
    folder: Path, scratch: Path, *, log: Log | None = None, seed: int = 0, precision: Any = "float32", **params: Any
) -> Trained:
    context = make_context(scratch, log or Log(), seed=seed, precision=precision)
    return SFT().run(make_inputs(folder, instructions(200, 1)), SFTParams(**{**QUICK, **params}), context)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_lowers_the_held_out_loss(
    tiny_model: Path, tmp_path: Path, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_model(tiny_model)
    unseen = instructions(40, 2)
    log = Log()
    trained = run(tiny_model, tmp_path, log=log, precision=precision)
    start, end = held_out_loss(before, before.model, unseen), held_out_loss(before, trained.model, unseen)
    assert start > 5
    assert end < 0.5 * start
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())
    assert [step for step, _, _ in log.steps] == list(range(1, 31))
    assert {total for _, total, _ in log.steps} == {30}
    assert set(log.steps[0][2]) == {"loss", "grad_norm", "learning_rate"}
    assert log.values("loss")[0] == pytest.approx(start, rel=0.15)
    assert trained.metrics["steps"] == 30
    assert trained.metrics["final_loss"] == pytest.approx(sum(log.values("loss")[-3:]) / 3)
    assert trained.metrics["rows_left_out"] == 0
    assert capsys.readouterr().out == ""


def test_counts_the_tokens_it_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_model)
    rows = instruction_rows(instructions(200, 1), loaded.tokenizer, 512)
    trained = run(tiny_model, tmp_path, steps=3)
    seen = training_order(len(rows), 24, 0)
    assert trained.metrics["train_tokens"] == sum(len(rows[i]["input_ids"]) for i in seen)


def test_same_seed_gives_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    first, again, other = (
        weights(run(tiny_model, tmp_path / name, seed=seed, precision="bfloat16", steps=5).model)
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_bfloat16_really_autocasts_and_float32_does_not(tiny_model: Path, tmp_path: Path) -> None:
    for precision, expected in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        loaded = load_model(tiny_model)
        seen = set()
        loaded.model.get_submodule("model.layers.0.mlp.down_proj").register_forward_hook(
            lambda _m, _i, output, seen=seen: seen.add(output.dtype)
        )
        inputs = make_inputs(tiny_model, instructions(20, 1))
        inputs._loaded["policy"] = loaded
        SFT().run(inputs, SFTParams(steps=1), make_context(tmp_path, Log(), precision=precision))
        assert seen == {expected}


def test_the_loss_is_the_mean_over_completion_tokens_only(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_model)
    rows = instruction_rows(instructions(8, 1), loaded.tokenizer, 512)
    trainer = make_trainer(
        loaded.model, loaded.tokenizer, rows, SFTParams(steps=1), 2e-5, make_context(tmp_path, Log())
    )
    plain = load_model(tiny_model).model
    scored = [completion_log_prob(loaded, plain, row["prompt"], row["completion"]) for row in instructions(2, 1)]
    loss = trainer.compute_loss(trainer.model, dict(trainer.data_collator(rows[:2])))
    expected = -sum(log_prob for log_prob, _ in scored) / sum(tokens for _, tokens in scored)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_completion_head_gives_the_gradient_of_the_full_logits(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import methods._head

    loaded, plain = load_model(tiny_model), load_model(tiny_model)
    rows = instruction_rows(instructions(8, 1), loaded.tokenizer, 512)
    trainer = make_trainer(
        loaded.model, loaded.tokenizer, rows, SFTParams(steps=1), 2e-5, make_context(tmp_path, Log())
    )
    batch = trainer.data_collator(rows)
    plain.model(**batch).loss.backward()
    # 5 positions at a time: the chunked path gives the same.
    for chunk in (2048, 5):
        monkeypatch.setattr(methods._head, "_CHUNK", chunk)
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, dict(batch)).backward()
        for (name, ours), theirs in zip(loaded.model.named_parameters(), plain.model.parameters(), strict=True):
            assert torch.allclose(ours.grad, theirs.grad, atol=1e-5), name


def test_labels_cover_the_answer_up_to_its_end_token(tiny_model: Path) -> None:
    tokenizer = load_model(tiny_model).tokenizer
    row = instruction_rows(instructions(1, 1), tokenizer, 512)[0]
    answer = instructions(1, 1)[0]["completion"][0]["content"]
    prompt = tokenizer.decode([t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label == -100])
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == f"{answer}<|im_end|>"
    assert prompt.endswith("<|im_start|>assistant\n")


def test_long_rows_are_left_out(tiny_model: Path, tmp_path: Path) -> None:
    import datasets

    long = {"prompt": [turn("user", "word " * 300)], "completion": [turn("assistant", "no")], "constraints": "[]"}
    dataset = datasets.Dataset.from_list([*instructions(10, 1).to_list(), long])
    trained = SFT().run(
        make_inputs(tiny_model, dataset), SFTParams(steps=1, max_length=128), make_context(tmp_path, Log())
    )
    assert trained.metrics["rows_left_out"] == 1
    with pytest.raises(UserError, match="max_length=8"):
        run(tiny_model, tmp_path, max_length=8)


def test_lora_merges_into_an_ordinary_folder(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_model)
    rows = instruction_rows(instructions(100, 1), loaded.tokenizer, 512)
    params = SFTParams(steps=15, lora_rank=8, learning_rate=1e-2)
    trainer = make_trainer(
        loaded.model, loaded.tokenizer, rows, params, params.learning_rate, make_context(tmp_path, Log())
    )
    trainer.train()
    ids = torch.tensor([rows[0]["input_ids"]])
    with torch.no_grad():
        adapted = trainer.model.eval()(input_ids=ids).logits
        merged = finish(trainer)
        assert torch.allclose(merged(input_ids=ids).logits, adapted, atol=1e-4)
        save_model(merged, loaded.tokenizer, tmp_path / "saved")
        again = load_model(tmp_path / "saved").model
        assert torch.allclose(again(input_ids=ids).logits, adapted, atol=1e-4)
        base = load_model(tiny_model).model
        assert (base(input_ids=ids).logits - adapted).abs().max() > 0.5
    assert type(merged) is type(base)
    assert set(merged.state_dict()) == set(base.state_dict())
    assert not list((tmp_path / "saved").glob("adapter*"))
    # Embeddings have no adapter.
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)


def test_full_training_saves_an_ordinary_folder(tiny_model: Path, tmp_path: Path) -> None:
    trained = run(tiny_model, tmp_path, steps=2, precision="bfloat16", gradient_checkpointing=True)
    save_model(trained.model, trained.tokenizer, tmp_path / "saved")
    again = load_model(tmp_path / "saved").model
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, trained.model(input_ids=ids).logits)
    before = load_model(tiny_model).model
    assert again.config.to_dict() | {"_name_or_path": ""} == before.config.to_dict() | {"_name_or_path": ""}
    assert again.generation_config.eos_token_id in (2, [2])
    assert again.generation_config.pad_token_id == before.generation_config.pad_token_id
    assert not trained.model.training


def test_leaves_files_in_its_scratch_only(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    (tmp_path / "here").mkdir()
    (tmp_path / "temp").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    run(tiny_model, tmp_path / "scratch", steps=1)
    assert not list((tmp_path / "here").iterdir())
    assert not [p for p in (tmp_path / "temp").rglob("*") if p.is_file()]


def test_divergence_is_infeasible(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="step"):
        run(tiny_model, tmp_path, learning_rate=1e30, warmup_fraction=0.0, lr_scheduler="constant")


def test_a_missed_deadline_prunes(tiny_model: Path, tmp_path: Path) -> None:
    log = Log()
    context = make_context(tmp_path, log, deadline=time.monotonic() - 1)
    with pytest.raises(PrunedError, match="deadline"):
        SFT().run(make_inputs(tiny_model, instructions(20, 1)), SFTParams(), context)
    assert not log.steps


def test_says_what_is_missing(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dataset"):
        SFT().run(make_inputs(tiny_model, None), SFTParams(), make_context(tmp_path, Log()))
    tokenizer = load_model(tiny_model).tokenizer
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="chat template"):
        encode(tokenizer, [turn("user", "a")], [turn("assistant", "b")])


def test_order_holds_every_row_once_an_epoch() -> None:
    order = training_order(7, 20, 5)
    assert sorted(order[:7]) == sorted(order[7:14]) == list(range(7))
    assert order[:7] != order[7:14]
    assert order[:10] == training_order(7, 10, 5)
    assert order != training_order(7, 20, 6)
