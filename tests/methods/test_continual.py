"""Replay and elastic weight consolidation: what a step learned before is kept while the next one is learned."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import PrunedError, UserError
from harness.method import Inputs, find_method
from harness.models import load_model, save_model
from methods._ewc import Anchor, fisher
from methods._replay import mixed, replayed
from methods._rows import instruction_rows
from methods.sft import SFTParams
from tests.methods.helpers import Log, held_out_loss, make_context, turn, weights

FIRST, SECOND = ["apple", "river", "stone", "cloud"], ["tiger", "lemon", "piano", "chair"]


def domain(words: list[str], answer: str, count: int, seed: int) -> Any:
    """Each question has an answer of its own domain."""
    import datasets

    drawn = random.Random(seed)
    rows = []
    for _ in range(count):
        word = drawn.choice(words)
        rows.append(
            {
                "prompt": [turn("user", f"say {word} {drawn.randrange(50)}")],
                "completion": [turn("assistant", f"{answer} {word}")],
            }
        )
    return datasets.Dataset.from_list(rows)


OLD, NEW = domain(FIRST, "north", 40, 1), domain(SECOND, "green", 40, 2)
HELD_OLD, HELD_NEW = domain(FIRST, "north", 16, 3), domain(SECOND, "green", 16, 4)


@pytest.fixture(scope="module")
def taught(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after it has learned the first domain."""
    folder = tmp_path_factory.mktemp("taught")
    _, model, tokenizer = _train(tiny_model, OLD, folder / "scratch", {"steps": 60})
    save_model(model, tokenizer, folder / "model")
    return folder / "model"


def _train(
    start: Path, dataset: Any, scratch: Path, settings: dict[str, object], further: dict[str, Any] | None = None
) -> tuple[Log, Any, Any]:
    scratch.mkdir(parents=True, exist_ok=True)
    log = Log()
    inputs = Inputs({"policy": start}, lambda _role, path: load_model(path), dataset, further=further or {})
    params = SFTParams.model_validate({"batch_size": 8, "learning_rate": 3e-3, "steps": 30, **settings})
    trained = find_method("sft")().run(inputs, params, make_context(scratch, log))
    log.metrics = dict(trained.metrics)  # type: ignore[attr-defined]  # looked at by one test
    return log, trained.model, trained.tokenizer


def _losses(start: Path, model: Any) -> tuple[float, float]:
    loaded = load_model(start)
    return held_out_loss(loaded, model, HELD_OLD), held_out_loss(loaded, model, HELD_NEW)


@pytest.mark.parametrize(("fraction", "size"), [(0.25, 8), (0.3, 10), (0.5, 1), (0.05, 8), (0.9, 4)])
def test_every_batch_has_its_share_as_soon_as_whole_rows_allow(fraction: float, size: int) -> None:
    counts = replayed(40, size, fraction)
    for batches in range(1, 41):
        assert sum(counts[:batches]) == int(batches * size * fraction + 1e-9)
    assert max(counts) - min(counts) <= 1


def test_earlier_sets_take_turns_and_no_row_comes_again_before_all_have() -> None:
    new = [{"input_ids": [i], "labels": [i]} for i in range(50)]
    old = [[{"input_ids": [100 * s + i], "labels": [0]} for i in range(n)] for s, n in ((1, 3), (2, 9))]
    seen = mixed(new, old, fraction=0.5, batches=6, batch_size=4, seed=0)
    ids = [row["input_ids"][0] for row in seen]
    assert [sum(i >= 100 for i in ids[k : k + 4]) for k in range(0, 24, 4)] == [2] * 6
    first, second = [i for i in ids if 100 <= i < 200], [i for i in ids if i >= 200]
    assert (len(first), len(second)) == (6, 6)
    assert Counter(first) == {100: 2, 101: 2, 102: 2}
    assert max(Counter(second).values()) == 1
    # The new rows are the first of those that training on them alone would see.
    alone = mixed(new, [], fraction=0.0, batches=6, batch_size=4, seed=0)
    assert [i for i in ids if i < 100] == [row["input_ids"][0] for row in alone][:12]
    assert mixed(new, old, fraction=0.5, batches=6, batch_size=4, seed=0) == seen
    assert mixed(new, old, fraction=0.5, batches=6, batch_size=4, seed=1) != seen


def test_without_either_the_first_domain_is_forgotten_and_with_each_it_is_kept(taught: Path, tmp_path: Path) -> None:
    before = _losses(taught, load_model(taught).model)
    runs: dict[str, tuple[dict[str, object], dict[str, Any]]] = {
        "plain": ({}, {}),
        "replay": ({"replay": "old", "replay_fraction": 0.5}, {"old": OLD}),
        "ewc": ({"ewc_weight": 1000.0, "ewc_dataset": "old", "ewc_rows": 40}, {"old": OLD}),
    }
    after = {
        name: _losses(taught, _train(taught, NEW, tmp_path / name, settings, further)[1])
        for name, (settings, further) in runs.items()
    }
    forgotten = {name: old - before[0] for name, (old, _) in after.items()}
    assert forgotten["plain"] > 1.0
    assert forgotten["replay"] < 0.25 * forgotten["plain"]
    assert forgotten["ewc"] < 0.5 * forgotten["plain"]
    # What is new is learned all the same.
    assert all(new < before[1] - 1.0 for _, new in after.values())


def test_ewc_by_adapters_keeps_what_was_learned_too(taught: Path, tmp_path: Path) -> None:
    before = _losses(taught, load_model(taught).model)
    adapters: dict[str, object] = {"lora_rank": 8, "learning_rate": 1e-2}
    plain = _losses(taught, _train(taught, NEW, tmp_path / "plain", adapters)[1])
    held: dict[str, object] = {**adapters, "ewc_weight": 1000.0, "ewc_dataset": "old", "ewc_rows": 40}
    log, model, _ = _train(taught, NEW, tmp_path / "held", held, {"old": OLD})
    kept = _losses(taught, model)
    assert kept[0] - before[0] < 0.5 * (plain[0] - before[0])
    penalties = log.values("ewc_penalty")
    assert penalties[0] == 0.0
    assert max(penalties) > 0.0


def test_the_penalty_of_an_adapter_is_that_of_the_weights_it_makes(taught: Path, tmp_path: Path) -> None:
    import peft

    loaded = load_model(taught)
    rows = instruction_rows(OLD, loaded.tokenizer, 64)[:4]
    importance = fisher(loaded.model, rows, make_context(tmp_path, Log()))
    start = weights(loaded.model)
    torch.manual_seed(0)
    model = peft.get_peft_model(
        loaded.model, peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    anchor = Anchor(model, importance, 3.0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.02)
    found = anchor.add_gradient(1.0)
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert grads
    assert all("lora_" in name for name in grads)
    merged = weights(model.merge_and_unload())
    moved = sum(float((importance[n] * (merged[n] - start[n]) ** 2).sum()) for n in importance)
    assert found == pytest.approx(1.5 * moved, rel=1e-4)


def test_the_fisher_information_is_that_of_the_models_own_tokens(taught: Path, tmp_path: Path) -> None:
    loaded = load_model(taught)
    rows = instruction_rows(OLD, loaded.tokenizer, 64)[:1]
    (row,) = rows
    found = fisher(loaded.model, rows * 400, make_context(tmp_path, Log()))
    # By its definition: over every token that the model might say at each place.
    model = loaded.model
    exact = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    ids = torch.tensor([row["input_ids"]])
    places = [i for i, label in enumerate(row["labels"]) if label != -100]
    name = "model.norm.weight"
    for place in places:
        log_probs = model(input_ids=ids).logits[0, place - 1].log_softmax(-1)
        (norm,) = (p for n, p in model.named_parameters() if n == name)
        jacobian = torch.stack(
            [torch.autograd.grad(log_probs[t], norm, retain_graph=True)[0] for t in range(len(log_probs))]
        )
        exact[name] += (log_probs.exp()[:, None] * jacobian**2).sum(0).detach() / len(places)
    assert torch.linalg.vector_norm(found[name] - exact[name]) < 0.25 * torch.linalg.vector_norm(exact[name])
    assert float(found[name].sum()) == pytest.approx(float(exact[name].sum()), rel=0.15)


def test_the_penalty_foretells_the_divergence_on_the_old_data(taught: Path, tmp_path: Path) -> None:
    loaded, moved = load_model(taught), load_model(taught)
    rows = instruction_rows(OLD, loaded.tokenizer, 64)
    importance = fisher(moved.model, rows, make_context(tmp_path, Log()))
    anchor = Anchor(moved.model, importance, 1.0)
    torch.manual_seed(0)
    with torch.no_grad():
        for value in moved.model.parameters():
            value.add_(2e-3 * torch.randn_like(value))
    penalty = anchor.add_gradient(1.0)
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        mask = torch.tensor(row["labels"])[1:] != -100
        with torch.no_grad():
            p, q = (m.model(input_ids=ids).logits[0, :-1][mask].log_softmax(-1) for m in (loaded, moved))
        total += float((p.exp() * (p - q)).sum())
        tokens += int(mask.sum())
    # Weights moved at random: what lies off the diagonal cancels.
    assert penalty == pytest.approx(total / tokens, rel=0.5)


def test_the_gradient_of_full_training_is_the_penaltys(taught: Path, tmp_path: Path) -> None:
    loaded = load_model(taught)
    rows = instruction_rows(OLD, loaded.tokenizer, 64)[:2]
    importance = fisher(loaded.model, rows, make_context(tmp_path, Log()))
    anchor = Anchor(loaded.model, importance, 2.0)
    name, value = next(iter(loaded.model.named_parameters()))
    with torch.no_grad():
        value += 0.1
    value.grad = torch.ones_like(value)
    anchor.add_gradient(0.5)
    assert torch.allclose(value.grad, 1 + 0.5 * 2.0 * importance[name] * 0.1, rtol=1e-3)


def test_what_the_penalty_was_is_logged_and_the_loss_stays_the_datas(taught: Path, tmp_path: Path) -> None:
    held: dict[str, object] = {"ewc_weight": 1e-9, "ewc_dataset": "old", "ewc_rows": 2, "steps": 4}
    log, model, _ = _train(taught, NEW, tmp_path / "held", held, {"old": OLD})
    plain, other, _ = _train(taught, NEW, tmp_path / "plain", {"steps": 4})
    assert log.values("ewc_penalty")[0] == 0.0
    assert log.values("loss") == pytest.approx(plain.values("loss"), rel=1e-4)
    assert "ewc_penalty" not in plain.steps[0][2]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_replayed_rows_are_counted_and_accumulation_changes_no_share(taught: Path, tmp_path: Path) -> None:
    settings: dict[str, object] = {
        "replay": ["old", "older"],
        "batch_size": 4,
        "gradient_accumulation": 2,
        "steps": 5,
    }
    log, _, _ = _train(taught, NEW, tmp_path, settings, {"old": OLD, "older": HELD_OLD})
    assert log.metrics["replayed_rows"] == 10  # type: ignore[attr-defined]


def test_the_fisher_keeps_the_deadline(taught: Path, tmp_path: Path) -> None:
    loaded = load_model(taught)
    rows = instruction_rows(OLD, loaded.tokenizer, 64)[:2]
    with pytest.raises(PrunedError, match="deadline"):
        fisher(loaded.model, rows, make_context(tmp_path, Log(), deadline=0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replay_fraction": 0.5}, "replay_fraction needs earlier training sets"),
        ({"replay": ["a", "a"]}, "each once"),
        ({"replay": [""]}, "names of training sets"),
        ({"replay": "a", "replay_fraction": 1.0}, "less than 1"),
        ({"ewc_weight": 1.0}, "set ewc_dataset"),
        ({"ewc_dataset": "a"}, "with an ewc_weight above 0 only"),
        ({"ewc_weight": -1.0, "ewc_dataset": "a"}, "greater than or equal to 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SFTParams.model_validate(settings)


def test_a_dataset_that_was_not_given_is_said(taught: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no dataset 'lost'"):
        _train(taught, NEW, tmp_path, {"replay": "lost"})


def test_defaults_are_not_stored_so_that_keys_stay() -> None:
    stored = SFTParams().model_dump(mode="json")
    assert not [name for name in stored if name.startswith(("replay", "ewc"))]
    asked = SFTParams(replay="a", replay_fraction=0.5, ewc_weight=1.0, ewc_dataset="b").model_dump(mode="json")
    assert {k: v for k, v in asked.items() if k.startswith(("replay", "ewc"))} == {
        "replay": "a",
        "replay_fraction": 0.5,
        "ewc_weight": 1.0,
        "ewc_dataset": "b",
    }
