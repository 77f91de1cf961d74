"""Merging: each way against its formula, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.errors import PrunedError, UserError
from harness.method import Inputs, find_method
from harness.models import load_model, save_model
from methods._merging import consensus, dropped, slerp, task_mean, trim_level, trimmed
from methods.merge import MergeParams
from tests.methods.helpers import Log, make_context

T = torch.tensor


def moved(base: Path, folder: Path, seed: int, size: float = 0.05) -> Path:
    """The base with seeded noise on every weight."""
    loaded = load_model(base)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in loaded.model.parameters():
            value.add_(size * torch.randn(value.shape, generator=generator))
    save_model(loaded.model, loaded.tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The base and three that were made of it."""
    folder = tmp_path_factory.mktemp("merged")
    return [tiny_model, *(moved(tiny_model, folder / str(seed), seed) for seed in (1, 2, 3))]


def run(models: list[Path], settings: dict[str, object], scratch: Path, seed: int = 0) -> tuple[Any, Any]:
    folders = {"origin": models[0], **{f"merge_{n}": folder for n, folder in enumerate(models[1:])}}
    inputs = Inputs(folders, lambda _role, path: load_model(path))
    trained = find_method("merge")().run(
        inputs, MergeParams.model_validate(settings), make_context(scratch, Log(), seed=seed)
    )
    return trained.model, dict(trained.metrics)


def state(source: Any) -> dict[str, torch.Tensor]:
    model = load_model(source).model if isinstance(source, Path) else source
    return {name: p.detach() for name, p in model.named_parameters()}


def flat(source: Any) -> torch.Tensor:
    return torch.cat([p.flatten() for p in state(source).values()])


@pytest.mark.parametrize("how", ["linear", "slerp", "ties", "dare_linear", "dare_ties"])
def test_merging_a_model_with_itself_gives_it_back(models: list[Path], tmp_path: Path, how: str) -> None:
    settings: dict[str, object] = {"how": how} if how in ("linear", "slerp") else {"how": how, "density": 1.0}
    model, metrics = run([models[0], models[1], models[1]], settings, tmp_path)
    assert torch.allclose(flat(model), flat(models[1]), atol=1e-6)
    assert metrics == {"models": 2.0, "change": pytest.approx(1.0, rel=1e-4), "agreement": 1.0}


def test_linear_is_the_weighted_mean(models: list[Path], tmp_path: Path) -> None:
    model, metrics = run(models, {"weights": [1.0, 2.0, 1.0]}, tmp_path)
    wanted = 0.25 * flat(models[1]) + 0.5 * flat(models[2]) + 0.25 * flat(models[3])
    assert torch.allclose(flat(model), wanted, atol=1e-6)
    # Independent changes: the mean is shorter by the root of the squared weights.
    assert metrics["change"] == pytest.approx(math.sqrt(0.25**2 + 0.5**2 + 0.25**2), rel=0.02)
    assert metrics["agreement"] == pytest.approx(0.25, abs=0.02)


def test_a_scale_of_their_number_is_the_sum_of_all_changes(models: list[Path], tmp_path: Path) -> None:
    model, _ = run(models, {"scale": 3.0}, tmp_path)
    base = flat(models[0])
    assert torch.allclose(flat(model), base + sum(flat(m) - base for m in models[1:]), atol=1e-5)


def test_slerp_goes_along_the_circle() -> None:
    a, b = T([1.0, 0.0]), T([0.0, 1.0])
    middle = slerp([a, b], [1.0, 1.0])
    assert torch.allclose(middle, T([math.sqrt(0.5), math.sqrt(0.5)]), atol=1e-6)
    third = slerp([a, b], [2.0, 1.0])
    assert torch.allclose(third, T([math.cos(math.pi / 6), math.sin(math.pi / 6)]), atol=1e-6)
    # As far on the sphere from each of three whose weights are equal and whose order does not matter here.
    assert torch.allclose(slerp([a, b, middle], [1.0, 1.0, 1.0]), middle, atol=1e-6)
    # A first weight of nothing is the second model.
    assert torch.allclose(slerp([a, b], [0.0, 1.0]), b, atol=1e-6)
    assert torch.allclose(slerp([a, b], [1.0, 0.0]), a, atol=1e-6)


def test_slerp_of_nearly_equal_tensors_is_their_mean(models: list[Path], tmp_path: Path) -> None:
    a = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    b = a + 1e-3 * torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(slerp([a, b], [1.0, 3.0]), 0.25 * a + 0.75 * b, atol=1e-6)
    assert torch.equal(slerp([torch.zeros(3), torch.zeros(3)], [1.0, 1.0]), torch.zeros(3))
    model, _ = run(models[:3], {"how": "slerp"}, tmp_path)
    linear, _ = run(models[:3], {}, tmp_path)
    # Their angle is not small: the arc keeps the length that a mean loses.
    name = "model.layers.0.self_attn.q_proj.weight"
    sizes = [float(state(s)[name].norm()) for s in (models[1], models[2], model, linear)]
    assert sizes[3] < min(sizes[:3])
    assert sizes[2] == pytest.approx((sizes[0] + sizes[1]) / 2, rel=1e-3)


def test_ties_trims_elects_and_averages_as_in_the_paper() -> None:
    vectors = [T([5.0, -4.0, 0.1, 3.0]), T([4.0, 3.0, -0.2, -2.0]), T([-6.0, -1.0, 0.3, 0.5])]
    levels = [trim_level([v], 4, 0.5) for v in vectors]
    assert levels == [4.0, 3.0, 1.0]
    kept = [trimmed(v, level) for v, level in zip(vectors, levels, strict=True)]
    assert [k.tolist() for k in kept] == [[5, -4, 0, 0], [4, 3, 0, 0], [-6, -1, 0, 0]]
    # First: 5 + 4 against 6, mean of 5 and 4. Second: 4 + 1 against 3, mean of -4 and -1. The others were trimmed.
    assert torch.allclose(consensus(kept, [1.0, 1.0, 1.0]), T([4.5, -2.5, 0.0, 0.0]))
    # A weight may turn the election.
    assert torch.allclose(consensus(kept, [1.0, 1.0, 2.0]), T([-6.0, (-4 - 2) / 3, 0.0, 0.0]))


def test_ties_keeps_the_largest_of_a_whole_model_not_of_each_tensor(models: list[Path], tmp_path: Path) -> None:
    base, own = state(models[0]), [state(m) for m in models[1:3]]
    model, _ = run(models[:3], {"how": "ties", "density": 0.3}, tmp_path)
    found = state(model)
    whole = [torch.cat([(m[n] - base[n]).flatten() for n in base]) for m in own]
    levels = [float(w.abs().quantile(0.7)) if w.numel() < 2**24 else math.nan for w in whole]
    for name in base:
        vectors = [
            (m[name] - base[name]) * ((m[name] - base[name]).abs() >= q) for m, q in zip(own, levels, strict=True)
        ]
        total = vectors[0] + vectors[1]
        agree = [(v.sign() == total.sign()) & (total != 0) for v in vectors]
        count = (agree[0].int() + agree[1].int()).clamp(min=1)
        wanted = base[name] + (vectors[0] * agree[0] + vectors[1] * agree[1]) / count
        # The quantile may lie between two entries.
        assert float((found[name] - wanted).abs().gt(1e-5).float().mean()) < 1e-3


def test_dare_drops_by_chance_and_keeps_the_expectation(models: list[Path], tmp_path: Path) -> None:
    vector = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    once = dropped(vector, 0.1, generator)
    assert float((once != 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert torch.allclose(once[once != 0], (vector / 0.1)[once != 0])
    assert float(once @ vector) == pytest.approx(float(vector @ vector), rel=0.05)
    settings: dict[str, object] = {"how": "dare_linear", "density": 0.5}
    first, again, other = (flat(run(models, settings, tmp_path, seed)[0]) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    many = torch.stack([flat(run(models, settings, tmp_path, seed)[0]) for seed in range(12)]).mean(0)
    mean = flat(run(models, {}, tmp_path)[0])
    assert float((many - mean).norm()) < 0.5 * float((first - mean).norm())


def test_a_weight_of_nothing_leaves_a_model_out(models: list[Path], tmp_path: Path) -> None:
    for how in ("linear", "ties"):
        settings: dict[str, object] = {"how": how, "weight_1": 0.0, **({"density": 1.0} if how == "ties" else {})}
        model, _ = run(models[:3], settings, tmp_path)
        assert torch.allclose(flat(model), flat(models[2]), atol=1e-6)


def test_the_merged_model_is_an_ordinary_one_that_loads(models: list[Path], tmp_path: Path) -> None:
    model, _ = run(models, {"how": "ties"}, tmp_path)
    save_model(model, load_model(models[0]).tokenizer, tmp_path / "saved")
    again = load_model(tmp_path / "saved").model
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def test_task_mean_is_over_the_base() -> None:
    assert torch.allclose(task_mean(T([1.0]), [T([2.0]), T([4.0])], [1.0, 3.0], 2.0), T([1 + 2 * (0.5 + 3.0)]))


def test_another_architecture_and_another_vocabulary_are_refused(models: list[Path], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    loaded = load_model(models[0])
    config = LlamaConfig(**{**loaded.model.config.to_dict(), "num_hidden_layers": 1})
    save_model(LlamaForCausalLM(config), loaded.tokenizer, tmp_path / "small")
    with pytest.raises(UserError, match=r"another architecture.*layers\.1"):
        run([*models[:2], tmp_path / "small"], {}, tmp_path)
    tokenizer = loaded.tokenizer
    tokenizer.add_tokens(["newword"])
    save_model(loaded.model, tokenizer, tmp_path / "words")
    with pytest.raises(UserError, match="numbers its tokens otherwise"):
        run([*models[:2], tmp_path / "words"], {}, tmp_path)


def test_one_policy_alone_and_a_wrong_number_of_weights_are_refused(models: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two training steps"):
        run(models[:2], {}, tmp_path)
    with pytest.raises(UserError, match="2 models and 3 weights"):
        run(models[:3], {"weights": [1.0, 1.0, 1.0]}, tmp_path)
    with pytest.raises(UserError, match="all weights are 0"):
        run(models[:3], {"weight_1": 0.0, "weight_2": 0.0}, tmp_path)


def test_it_keeps_its_deadline(models: list[Path], tmp_path: Path) -> None:
    inputs = Inputs({"origin": models[0], "merge_0": models[1], "merge_1": models[2]}, lambda _r, p: load_model(p))
    with pytest.raises(PrunedError, match="deadline"):
        find_method("merge")().run(inputs, MergeParams(), make_context(tmp_path, Log(), deadline=0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["a"]}, "expected 2 to 8"),
        ({"models": ["a", "a"]}, "each once"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"weights": [1.0, -1.0]}, "at least 0"),
        ({"models": ["a", "b"], "weights": [1.0]}, "one for each of 2 models"),
        ({"models": ["a", "b"], "weight_3": 0.5}, "weight_3 is of no model"),
        ({"weights": [1.0, 1.0], "weight_1": 0.5}, "leave weight_1"),
        ({"density": 0.5}, "has no density"),
        ({"how": "slerp", "scale": 2.0}, "has no scale"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MergeParams.model_validate(settings)
