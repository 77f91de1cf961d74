"""What methods that make data share: which prompts are taken, and what the policy writes."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from harness._turns import spoken
from harness.errors import InfeasibleError, UserError
from harness.method import Context, Inputs, LoadedModel
from harness.models import load_model
from methods._making import MakingParams, Tally, Text, Writer, draw, take_prompts
from methods._ppo_attention import quick_attention
from methods._rollout import Rollout, sample
from tests.methods.helpers import Log, make_context, turn


def _dataset(*prompts: str) -> Any:
    import datasets

    return datasets.Dataset.from_list([{"prompt": [turn("user", text)], "n": n} for n, text in enumerate(prompts)])


@pytest.fixture
def writer(tiny_model: Path, tmp_path: Path) -> Any:
    def make(
        dataset: Any = None, precision: Literal["float32", "bfloat16"] = "float32", round_: int = 0, **settings: object
    ) -> tuple[Writer, Inputs, MakingParams, Context]:
        inputs = Inputs({"policy": tiny_model}, lambda _role, path: load_model(path), dataset)
        context = make_context(tmp_path, Log(), precision=precision)
        context.round = round_
        params = MakingParams.model_validate({"max_new_tokens": 6, "prompts": 4, **settings})
        return Writer(inputs, params, context, Tally()), inputs, params, context

    return make


def _taken(made: tuple[Writer, Inputs, MakingParams, Context]) -> list[int]:
    prompts = take_prompts(made[1], made[0], made[2], made[3], "it")
    assert [p.row for p in prompts] == list(range(len(prompts)))
    return [p.source["n"] for p in prompts]


def test_rounds_take_one_prompt_after_the_other_and_then_begin_again(writer: Any) -> None:
    dataset = _dataset(*(f"say {n}" for n in range(10)))
    rounds = [_taken(writer(dataset, round_=number)) for number in range(5)]
    assert all(len(set(taken)) == 4 for taken in rounds)
    assert len(set(rounds[0]) | set(rounds[1])) == 8
    # Twenty places for ten prompts: each has had its two turns.
    assert set(rounds[0] + rounds[1] + rounds[2][:2]) == set(range(10))
    assert set(Counter(n for taken in rounds for n in taken).values()) <= {1, 2, 3}
    assert rounds[0] != sorted(rounds[0])


def test_all_are_taken_where_more_are_wanted_than_there_are(writer: Any) -> None:
    for number in range(3):
        assert sorted(_taken(writer(_dataset("a", "b", "c"), prompts=9, round_=number))) == [0, 1, 2]


def test_prompts_that_do_not_fit_are_passed_over_and_counted(writer: Any) -> None:
    made = writer(_dataset("say a", "", " ", "word " * 200, "<|im_end|> say", "say b"), max_prompt_tokens=64)
    assert sorted(_taken(made)) == [0, 5]
    assert made[0].tally.metrics()["prompts_left_out"] == 4
    with pytest.raises(UserError, match=r"it: none of the 2 prompts has text of 1 to 9 tokens .* raise max_prompt"):
        _taken(writer(_dataset("word " * 200, "word " * 300), max_prompt_tokens=9))


def test_only_prompts_that_are_looked_at_are_tokenized(writer: Any) -> None:
    made = writer(_dataset(*(f"say {n}" for n in range(500))))
    calls = []
    own = made[0].ids
    made[0].ids = lambda turns: calls.append(turns) or own(turns)
    assert len(_taken(made)) == len(calls) == 4


def test_what_is_written_is_what_the_sampler_gives_whatever_the_batches(writer: Any) -> None:
    model, *_ = writer(temperature=0.0)
    chats = [model.ids([turn("user", "say " * n)]) for n in range(1, 6)]
    together = model.write(chats)
    small, *_ = writer(temperature=0.0, batch_size=2)
    assert [t.ids for t in small.write(chats)] == [t.ids for t in together]
    for chat, text in zip(chats, together, strict=True):
        with torch.no_grad():
            first = int(model.model(input_ids=torch.tensor([chat])).logits[0, -1].argmax())
        assert text.ids[0] == first
        assert text.ended == (text.ids[-1] == model.tokenizer.eos_token_id)
        said = text.ids[:-1] if text.ended else text.ids
        assert text.text == model.tokenizer.decode(said).strip()
    assert model.tally.counts["sampled_tokens"] == sum(len(t.ids) for t in together)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("same", [0, 40])
def test_prompts_that_share_their_beginning_are_read_once_with_the_same_result(
    tiny_model: Path, same: int, quick: bool
) -> None:
    model = load_model(tiny_model).model.eval()
    prompts = [[*range(10, 10 + same), *range(100 + n % 3, 105 + 2 * (n % 3))] for n in range(7)]
    read = []

    def said(*, share: bool, temperature: float) -> Rollout:
        counted = model.model.embed_tokens.register_forward_hook(
            lambda _layer, args, _out: read.append(args[0].numel())
        )
        generator = torch.Generator().manual_seed(0)
        with quick_attention(model) if quick else nullcontext():
            found = sample(
                model,
                prompts,
                max_new_tokens=8,
                temperature=temperature,
                eos=2,
                pad=0,
                generator=generator,
                share_prompts=share,
            )
        counted.remove()
        return found

    for temperature in (0.0, 1.0):
        read.clear()
        plain = said(share=False, temperature=temperature)
        tokens = sum(n for n in read if n > 7)
        read.clear()
        once = said(share=True, temperature=temperature)
        assert torch.equal(plain.tokens, once.tokens)
        assert torch.equal(plain.mask, once.mask)
        torch.testing.assert_close(plain.logprobs, once.logprobs, atol=1e-5, rtol=1e-5)
        # Seven prompts, three of them different, are read as three, and what those begin with once.
        assert tokens == 7 * (same + 7)
        assert sum(n for n in read if n > 7) == same + 3 * 7


def test_the_seed_and_the_round_decide_what_is_written(writer: Any) -> None:
    def said(round_: int) -> list[list[int]]:
        model, *_ = writer(round_=round_)
        return [t.ids for t in model.write([model.ids([turn("user", "say")])] * 3)]

    first = said(0)
    assert first == said(0)
    assert first != said(1)
    assert len({str(ids) for ids in first}) == 3


def test_bfloat16_writes_like_float32_but_for_rounding(writer: Any) -> None:
    model, *_ = writer(precision="bfloat16", temperature=0.0)
    (text,) = model.write([model.ids([turn("user", "say apple")])])
    assert text.ids
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16, torch.float32}


def test_a_text_that_would_end_its_turn_is_no_data(writer: Any) -> None:
    model, *_ = writer()
    assert model.plain("a < b | c > d")
    assert not model.plain("so <|im_end|> it ends")
    for text, problem in (
        (Text("", [2], ended=True, plain=True), "empty"),
        (Text("a <|im_end|> b", [5], ended=True, plain=False), "special"),
        (Text("a", [5], ended=False, plain=True), "unfinished"),
        (Text("a", [5], ended=True, plain=True), ""),
    ):
        assert text.problem() == problem
        assert text.problem("keep") == ("" if problem == "unfinished" else problem)


def test_logits_that_are_not_finite_end_the_stage(writer: Any) -> None:
    model, *_ = writer()
    with torch.no_grad():
        model.model.model.norm.weight.fill_(float("inf"))
    with pytest.raises(InfeasibleError, match="logits are not finite"):
        model.write([[5, 6]])


def test_a_model_without_a_chat_template_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    loaded = load_model(tiny_model)
    loaded.tokenizer.chat_template = None
    inputs = Inputs(
        {"policy": tiny_model}, lambda _role, _path: LoadedModel(loaded.model, loaded.tokenizer, tiny_model)
    )
    with pytest.raises(UserError, match="no chat template or no end token"):
        Writer(inputs, MakingParams(), make_context(tmp_path, Log()), Tally())


def test_a_dialogue_is_shown_as_one_text() -> None:
    assert spoken([turn("user", "hello")]) == "hello"
    assert spoken([turn("system", "be kind"), turn("user", "hello")]) == "System: be kind\n\nUser: hello"


def test_choices_of_another_kind_or_round_are_others(tmp_path: Path) -> None:
    context = make_context(tmp_path, Log())
    first = draw(context, "one").random()
    assert first == draw(context, "one").random()
    assert first != draw(context, "other").random()
    context.round = 1
    assert first != draw(context, "one").random()
