"""Distillation: that the student comes nearer to its teacher, by every divergence, from either's answers."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import InfeasibleError, PrunedError, UserError
from harness.method import Inputs, LoadedModel, Trained
from harness.models import load_model, save_model
from methods._distill_loss import _kl, completion_losses, divergence
from methods._distill_models import Trunk, keep_layers, kept_layers
from methods._distill_trainer import make_trainer
from methods._rows import encode, instruction_rows
from methods._trl import finish
from methods.distill import Distill, DistillParams
from methods.sft import SFT, SFTParams
from tests.methods.helpers import Log, completion_log_prob, instructions, make_context, make_inputs, weights

QUICK = {"steps": 25, "batch_size": 8, "learning_rate": 5e-3}


@pytest.fixture(scope="module")
def teacher(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, taught to repeat the word asked for: something there is to learn from it."""
    place = tmp_path_factory.mktemp("teacher")
    params = SFTParams(steps=40, batch_size=8, learning_rate=5e-3)
    trained = SFT().run(make_inputs(tiny_model, instructions(200, 1)), params, make_context(place / "scratch", Log()))
    save_model(trained.model, trained.tokenizer, place / "model")
    return place / "model"


def inputs(student: Path, teacher: Path, rows: int = 100) -> Inputs:
    folders: Any = {"policy": student, "teacher": teacher}
    return Inputs(folders=folders, loader=lambda _role, path: load_model(path), dataset=instructions(rows, 3))


def run(
    student: Path,
    teacher: Path,
    scratch: Path,
    *,
    log: Log | None = None,
    seed: int = 0,
    bf16: bool = False,
    **more: Any,
) -> Trained:
    context = make_context(scratch, log or Log(), seed=seed, precision="bfloat16" if bf16 else "float32")
    return Distill().run(inputs(student, teacher), DistillParams(**{**QUICK, **more}), context)


def held_out(loaded: LoadedModel, student: Any, teacher: Any, kind: Any = "forward_kl", beta: float = 0.5) -> float:
    """Mean divergence per answer token on unseen rows, by the plainest means."""
    total, count = 0.0, 0
    for row in instructions(20, 9):
        before, after = encode(loaded.tokenizer, row["prompt"], row["completion"])
        ids = torch.tensor([before + after])
        with torch.no_grad():
            mine, theirs = (
                m(input_ids=ids).logits[0, len(before) - 1 : -1].log_softmax(-1) for m in (student, teacher)
            )
        total += float(divergence(mine, theirs, kind, beta).sum())
        count += len(after)
    return total / count


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_comes_nearer_to_the_teacher(tiny_model: Path, teacher: Path, tmp_path: Path, kind: str) -> None:
    student, teaching, log = load_model(tiny_model), load_model(teacher), Log()
    trained = run(tiny_model, teacher, tmp_path, log=log, divergence=kind)
    before = held_out(student, student.model, teaching.model, kind)
    after = held_out(student, trained.model, teaching.model, kind)
    assert after < 0.4 * before
    assert set(log.steps[0][2]) == {"loss", "grad_norm", "learning_rate", "kl", "hard_loss"}
    assert log.values("kl")[0] == pytest.approx(before, rel=0.3)
    assert log.values("loss") == pytest.approx(log.values("kl"))
    assert trained.metrics["final_kl"] == pytest.approx(sum(log.values("kl")[-2:]) / 2)
    assert trained.metrics["train_tokens"] > 0


def test_divergences_are_those_of_the_literature() -> None:
    torch.manual_seed(0)
    student, teacher = (torch.randn(5, 7).log_softmax(-1) for _ in range(2))
    exact = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(divergence(student, teacher, "forward_kl", 0.5), exact, atol=1e-6)
    assert torch.allclose(divergence(teacher, student, "reverse_kl", 0.5), exact, atol=1e-6)
    for beta in (0.1, 0.5, 0.8):
        mixture = (beta * teacher.exp() + (1 - beta) * student.exp()).log()
        expected = beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)
        assert torch.allclose(divergence(student, teacher, "jsd", beta), expected, atol=1e-6)
    assert torch.allclose(divergence(student, teacher, "jsd", 1e-3) / 1e-3, exact, rtol=0.02)
    reverse = divergence(student, teacher, "reverse_kl", 0.5)
    assert torch.allclose(divergence(student, teacher, "jsd", 1 - 1e-3) / 1e-3, reverse, rtol=0.02)


def test_the_loss_is_the_one_computed_by_hand(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    student, teaching = load_model(tiny_model), load_model(teacher)
    rows = instruction_rows(instructions(6, 3), student.tokenizer, 512)
    params = DistillParams(steps=1, temperature=2.0, alpha=0.7)
    trainer = make_trainer(
        student.model, teaching.model, student.tokenizer, rows, params, make_context(tmp_path, Log())
    )
    found = trainer.compute_loss(None, trainer._prepare_inputs(trainer.data_collator(rows)))
    soft, hard, count = 0.0, 0.0, 0
    for row in rows:
        start = row["labels"].count(-100)
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            mine, theirs = (m(input_ids=ids).logits[0, start - 1 : -1] for m in (student.model, teaching.model))
        p, q = (theirs / 2).softmax(-1), (mine / 2).softmax(-1)
        soft += float((p * (p / q).log()).sum())
        hard += float(torch.nn.functional.cross_entropy(mine, ids[0, start:], reduction="sum"))
        count += len(row["input_ids"]) - start
    # The square of the temperature, or softer targets would train more weakly beside the hard loss.
    assert float(found.detach()) == pytest.approx((0.7 * 4 * soft + 0.3 * hard) / count, rel=1e-4)


def test_the_temperature_leaves_the_gradient_its_size() -> None:
    torch.manual_seed(0)
    hidden, taught = torch.randn(4, 50) * 0.1, torch.randn(4, 50) * 0.1
    norms = []
    for temperature in (1.0, 8.0):
        logits = hidden.clone().requires_grad_()
        losses = completion_losses(
            logits,
            taught,
            (lambda x: x, lambda x: x),
            torch.zeros(4, dtype=torch.long),
            kind="forward_kl",
            beta=0.5,
            temperature=temperature,
        )
        (temperature**2 * losses.soft).backward()
        norms.append(float(logits.grad.norm()))
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_alpha_zero_is_supervised_fine_tuning(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    log, plain = Log(), Log()
    settings = {"steps": 5, "batch_size": 4, "learning_rate": 1e-3}
    distilled = run(tiny_model, teacher, tmp_path / "a", log=log, alpha=0.0, **settings)
    tuned = SFT().run(
        make_inputs(tiny_model, instructions(100, 3)), SFTParams(**settings), make_context(tmp_path / "b", plain)
    )
    assert log.values("loss") == pytest.approx(plain.values("loss"), rel=1e-5)
    assert log.values("hard_loss") == pytest.approx(log.values("loss"), rel=1e-5)
    other = weights(tuned.model)
    assert all(torch.allclose(value, other[name], atol=1e-5) for name, value in weights(distilled.model).items())
    student = load_model(tiny_model)
    rows = instructions(100, 3).select([0])
    assert completion_log_prob(student, distilled.model, rows[0]["prompt"], rows[0]["completion"])[0] < 0


def test_chunks_change_nothing(
    tiny_model: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = []
    for chunk in (512, 7):
        monkeypatch.setattr("methods._distill_loss._CHUNK", chunk)
        student, teaching = load_model(tiny_model), load_model(teacher)
        rows = instruction_rows(instructions(6, 3), student.tokenizer, 512)
        params = DistillParams(steps=1, alpha=0.5)
        trainer = make_trainer(
            student.model, teaching.model, student.tokenizer, rows, params, make_context(tmp_path, Log())
        )
        trainer.compute_loss(None, trainer._prepare_inputs(trainer.data_collator(rows))).backward()
        gradients.append({name: p.grad.clone() for name, p in student.model.named_parameters()})
        assert all(p.grad is None for p in teaching.model.parameters())
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-6) for name in gradients[0])


def test_accumulation_gives_the_loss_of_one_large_batch(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    one, two = Log(), Log()
    run(tiny_model, teacher, tmp_path / "a", log=one, steps=4, batch_size=8, alpha=0.5)
    run(tiny_model, teacher, tmp_path / "b", log=two, steps=4, batch_size=4, gradient_accumulation=2, alpha=0.5)
    for name in ("loss", "kl", "hard_loss"):
        assert two.values(name) == pytest.approx(one.values(name), rel=1e-3)


@pytest.mark.parametrize("more", [{}, {"on_policy": 0.5}])
def test_same_seed_gives_the_same_weights(tiny_model: Path, teacher: Path, tmp_path: Path, more: Any) -> None:
    first, again, other = (
        weights(run(tiny_model, teacher, tmp_path / n, seed=seed, bf16=True, steps=4, max_new_tokens=8, **more).model)
        for n, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_learns_from_its_own_answers(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    student, teaching, log = load_model(tiny_model), load_model(teacher), Log()
    trained = run(tiny_model, teacher, tmp_path, log=log, on_policy=1.0, alpha=0.5, max_new_tokens=8, divergence="jsd")
    after = held_out(student, trained.model, teaching.model, "jsd")
    assert after < 0.8 * held_out(student, student.model, teaching.model, "jsd")
    assert all("hard_loss" not in metrics for _, _, metrics in log.steps)
    assert trained.metrics["sampled_tokens"] > 0
    mixed, part = Log(), DistillParams(**{**QUICK, "on_policy": 0.5, "alpha": 0.5, "max_new_tokens": 8})
    Distill().run(inputs(tiny_model, teacher), part, make_context(tmp_path, mixed))
    sampled = sum("hard_loss" not in metrics for _, _, metrics in mixed.steps)
    assert sampled in (12, 13)


def test_a_sampled_batch_has_the_students_own_answers(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    student, teaching = load_model(tiny_model), load_model(teacher)
    rows = instruction_rows(instructions(4, 3), student.tokenizer, 512)
    params = DistillParams(steps=1, on_policy=1.0, max_new_tokens=6)
    trainer = make_trainer(
        teaching.model, student.model, student.tokenizer, rows, params, make_context(tmp_path, Log())
    )
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    for row, ids, labels in zip(rows, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        start = row["labels"].count(-100)
        assert ids[:start] == row["input_ids"][:start]
        assert labels[:start] == [-100] * start
        answer = [label for label in labels if label != -100]
        assert 1 <= len(answer) <= 6
        assert ids[start : start + len(answer)] == answer
    assert not torch.is_autocast_enabled("cpu")


def test_layers_are_spaced_evenly() -> None:
    assert kept_layers(30, 15) == [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29]
    assert kept_layers(12, 2) == [0, 11]
    assert kept_layers(5, 4) == [0, 1, 3, 4]
    with pytest.raises(UserError, match="keep fewer"):
        kept_layers(4, 4)


def test_a_student_of_the_teachers_layers_reloads(tiny_model: Path, tmp_path: Path) -> None:
    deep = _deeper(tiny_model, tmp_path / "deep", 5)
    trained = run(deep, deep, tmp_path, student_layers=3, steps=3)
    assert trained.metrics["student_parameters"] < trained.metrics["teacher_parameters"]
    save_model(trained.model, trained.tokenizer, tmp_path / "saved")
    again = load_model(tmp_path / "saved").model
    assert again.config.num_hidden_layers == 3
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, trained.model(input_ids=ids).logits)
        # The cache finds each layer's place.
        longer = again.generate(ids, max_new_tokens=4, do_sample=False)
        assert torch.equal(longer, trained.model.generate(ids, max_new_tokens=4, do_sample=False))
    untouched = load_model(deep).model
    assert keep_layers(untouched, 3) == [0, 2, 4]
    kept, source = untouched.model.layers[1].mlp.up_proj.weight, load_model(deep).model.model.layers[2]
    assert torch.equal(kept, source.mlp.up_proj.weight)


def _deeper(folder: Path, to: Path, layers: int) -> Path:
    from transformers import LlamaForCausalLM

    loaded = load_model(folder)
    config = loaded.model.config
    config.num_hidden_layers = layers
    torch.manual_seed(1)
    save_model(LlamaForCausalLM(config), loaded.tokenizer, to)
    return to


def test_dropped_layers_are_made_up_for(teacher: Path, tmp_path: Path) -> None:
    deep = _deeper(teacher, tmp_path / "deep", 4)
    start, teaching = load_model(deep), load_model(deep)
    keep_layers(start.model, 2)
    before = held_out(start, start.model, teaching.model)
    trained = run(deep, deep, tmp_path, student_layers=2, steps=20, learning_rate=1e-3)
    assert held_out(start, trained.model, teaching.model) < before


def test_lora_trains_adapters_only_and_merges(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    student, teaching = load_model(tiny_model), load_model(teacher)
    before = held_out(student, student.model, teaching.model)
    trained = run(
        tiny_model,
        teacher,
        tmp_path,
        lora_rank=16,
        learning_rate=5e-3,
        steps=60,
        gradient_checkpointing=True,
        on_policy=0.2,
        max_new_tokens=8,
    )
    # The embeddings, which the teacher trained too, are out of the adapters' reach.
    assert held_out(student, trained.model, teaching.model) < 0.93 * before
    assert torch.equal(trained.model.get_input_embeddings().weight, student.model.get_input_embeddings().weight)
    assert set(trained.model.state_dict()) == set(student.model.state_dict())
    assert trained.model.config.use_cache


def test_full_training_leaves_an_ordinary_model(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    student, teaching = load_model(tiny_model), load_model(teacher)
    rows = instruction_rows(instructions(20, 3), student.tokenizer, 512)
    params = DistillParams(steps=2, batch_size=4)
    before = weights(teaching.model)
    trainer = make_trainer(
        student.model, teaching.model, student.tokenizer, rows, params, make_context(tmp_path, Log())
    )
    trainer.train()
    assert all(torch.equal(before[name], value) for name, value in weights(teaching.model).items())
    assert "forward" not in vars(finish(trainer))


def test_logits_beyond_a_linear_layer_are_taken_whole(tiny_model: Path) -> None:
    from transformers import GemmaConfig, GemmaForCausalLM

    assert Trunk.of(load_model(tiny_model).model).sliced
    torch.manual_seed(0)
    config = GemmaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    model = GemmaForCausalLM(config).eval()
    model.forward = lambda *args, **kwargs: _scaled(type(model).forward(model, *args, **kwargs))
    trunk = Trunk.of(model)
    assert not trunk.sliced
    ids, mask = torch.arange(6)[None], torch.tensor([[False, True, True, False, True]])
    assert torch.allclose(trunk.head(trunk.at(ids, mask)), model(input_ids=ids).logits[:, :-1][mask])


def _scaled(output: Any) -> Any:
    output.logits = 3.0 * output.logits
    return output


def test_refuses_another_vocabulary(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    other = load_model(teacher)
    other.model.resize_token_embeddings(other.model.config.vocab_size + 8)
    save_model(other.model, other.tokenizer, tmp_path / "larger")
    with pytest.raises(UserError, match="one vocabulary"):
        run(tiny_model, tmp_path / "larger", tmp_path)
    renamed = load_model(teacher)
    renamed.tokenizer.add_tokens(["<|another|>"])
    save_model(renamed.model, renamed.tokenizer, tmp_path / "renamed")
    with pytest.raises(UserError, match="number their tokens"):
        run(tiny_model, tmp_path / "renamed", tmp_path)


def test_says_what_is_wrong(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the student itself"):
        run(tiny_model, tiny_model, tmp_path)
    with pytest.raises(UserError, match="dataset"):
        Distill().run(make_inputs(tiny_model, None), DistillParams(), make_context(tmp_path, Log()))
    with pytest.raises(UserError, match="keep fewer"):
        run(tiny_model, teacher, tmp_path, student_layers=2)
    with pytest.raises(ValidationError, match="alpha 0"):
        DistillParams(alpha=0.0, on_policy=0.5)
    with pytest.raises(ValidationError, match="jsd"):
        DistillParams(beta=0.1)


def test_divergence_and_deadline_end_a_run(tiny_model: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match="step"):
        run(tiny_model, teacher, tmp_path, learning_rate=1e30, warmup_fraction=0.0, lr_scheduler="constant")
    context = make_context(tmp_path, Log(), deadline=time.monotonic() - 1)
    with pytest.raises(PrunedError, match="deadline"):
        Distill().run(inputs(tiny_model, teacher), DistillParams(), context)
