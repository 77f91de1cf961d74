"""The sampler: what it generates, which tokens count, and that it can be repeated."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.errors import InfeasibleError
from harness.method import LoadedModel
from harness.models import load_model
from methods._ppo_attention import quick_attention
from methods._rollout import Rollout, sample

PROMPTS = [[5, 40, 77, 12, 300], [9, 8], [401, 17, 33, 250, 250, 6, 90, 71, 15], [44]]


@pytest.fixture
def loaded(tiny_model: Path) -> LoadedModel:
    loaded = load_model(tiny_model)
    # A random model with tied weights repeats its last token or is nearly uniform; a random output layer of its own
    # gives distributions worth comparing.
    head = loaded.model.get_output_embeddings()
    weight = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3))
    head.weight = torch.nn.Parameter(weight * 0.3)
    return loaded


def draw(loaded: LoadedModel, prompts: list[list[int]], **settings: Any) -> Rollout:
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "eos": loaded.tokenizer.eos_token_id}
    generator = torch.Generator().manual_seed(settings.pop("seed", 0))
    return sample(loaded.model, prompts, pad=loaded.tokenizer.pad_token_id, generator=generator, **(options | settings))


def generated(loaded: LoadedModel, eos: int, tokens: int) -> torch.Tensor:
    pad = loaded.tokenizer.pad_token_id
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    out = loaded.model.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, eos_token_id=eos, pad_token_id=pad
    )
    return out[:, longest:]


@pytest.mark.parametrize("quick", [False, True])
def test_greedy_equals_generate_on_left_padded_prompts(loaded: LoadedModel, quick: bool) -> None:
    # An end token that greedy decoding really meets, at different times in different rows.
    free = generated(loaded, eos=-1, tokens=20)
    eos = int(free[1, 6])
    expected = generated(loaded, eos=eos, tokens=20)
    with quick_attention(*([loaded.model] if quick else [])):
        rollout = draw(loaded, PROMPTS, temperature=0.0, eos=eos)
    assert rollout.ended.any()
    assert torch.equal(rollout.tokens, expected[:, : rollout.tokens.shape[1]])


def test_the_mask_takes_the_end_token_and_nothing_after(loaded: LoadedModel) -> None:
    free = draw(loaded, PROMPTS * 8, max_new_tokens=12)
    eos = int(free.tokens.flatten().mode().values)
    rollout = draw(loaded, PROMPTS * 8, eos=eos, max_new_tokens=12)
    assert 0 < int(rollout.ended.sum()) < len(rollout.ended)
    for tokens, mask, logprobs, ended in zip(
        rollout.tokens, rollout.mask, rollout.logprobs, rollout.ended, strict=True
    ):
        length = int(mask.sum())
        assert mask[:length].all()
        assert eos not in tokens[: length - 1]
        assert (int(tokens[length - 1]) == eos) == bool(ended)
        assert bool(ended) or length == 12
        assert (tokens[length:] == loaded.tokenizer.pad_token_id).all()
        assert (logprobs[:length] < 0).all()
        assert (logprobs[length:] == 0).all()


def test_rows_do_not_depend_on_which_others_have_ended(loaded: LoadedModel) -> None:
    free = draw(loaded, PROMPTS * 4)
    eos = int(free.tokens.flatten().mode().values)
    cut = draw(loaded, PROMPTS * 4, eos=eos)
    for row in range(len(cut.tokens)):
        length = int(cut.mask[row].sum())
        assert torch.equal(cut.tokens[row, :length], free.tokens[row, :length])
        torch.testing.assert_close(cut.logprobs[row, :length], free.logprobs[row, :length], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_come_with_the_models_probabilities(loaded: LoadedModel, temperature: float) -> None:
    prompt, draws = [5, 40, 77], 6000
    rollout = draw(loaded, [prompt] * draws, max_new_tokens=1, temperature=temperature, eos=-1)
    with torch.no_grad():
        logits = loaded.model(torch.tensor([prompt])).logits[0, -1]
    expected = (logits / temperature).softmax(-1)
    found = torch.bincount(rollout.tokens[:, 0], minlength=len(expected)) / draws
    likely = expected > 0.005
    assert likely.sum() >= 3
    error = (expected * (1 - expected) / draws).sqrt()
    assert ((found - expected).abs()[likely] < 4.5 * error[likely]).all()
    torch.testing.assert_close(rollout.logprobs[:, 0], expected.log()[rollout.tokens[:, 0]], atol=1e-4, rtol=1e-4)


def test_the_seed_alone_decides(loaded: LoadedModel) -> None:
    first, again, other = (draw(loaded, PROMPTS, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.logprobs, again.logprobs)
    assert not torch.equal(first.tokens, other.tokens)


def test_a_broken_model_is_infeasible(loaded: LoadedModel) -> None:
    with torch.no_grad():
        next(itertools.islice(loaded.model.parameters(), 3, None)).fill_(float("nan"))
    with pytest.raises(InfeasibleError, match="not finite"):
        draw(loaded, PROMPTS)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("begin", [[], [300 + n for n in range(20)]], ids=["apart", "begin-alike"])
def test_prompts_of_which_no_two_are_equal_keep_their_order(loaded: LoadedModel, begin: list[int], quick: bool) -> None:
    prompts = [begin + p for p in PROMPTS[::-1]]
    assert prompts != sorted(prompts)
    with quick_attention(*([loaded.model] if quick else [])):
        found, plain = draw(loaded, prompts, share_prompts=True), draw(loaded, prompts)
    assert torch.equal(found.tokens, plain.tokens)
    torch.testing.assert_close(found.logprobs, plain.logprobs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("begin", [[], [300 + n for n in range(20)]], ids=["apart", "begin-alike"])
@pytest.mark.parametrize("quick", [False, True])
def test_prompts_that_are_shared_are_answered_as_if_each_were_read(
    loaded: LoadedModel, begin: list[int], quick: bool
) -> None:
    prompts = [begin + p for p in PROMPTS for _ in range(3)]
    read: list[int] = []
    loaded.model.base_model.register_forward_pre_hook(
        lambda _module, args, kwargs: read.append((args[0] if args else kwargs["input_ids"]).numel()), with_kwargs=True
    )
    with quick_attention(*([loaded.model] if quick else [])):
        draw(loaded, prompts, share_prompts=True, max_new_tokens=1)
        few = sum(read)
        read.clear()
        draw(loaded, prompts, max_new_tokens=1)
        assert few < sum(read) / 2.5
        found = draw(loaded, prompts, share_prompts=True)
        plain = draw(loaded, prompts)
    assert torch.equal(found.tokens, plain.tokens)
    assert torch.equal(found.mask, plain.mask)
    torch.testing.assert_close(found.logprobs, plain.logprobs, atol=1e-5, rtol=1e-5)
