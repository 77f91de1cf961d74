"""The answers of the model under test: greedy, through its chat template; a follow-up is asked after its own answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.measure._requests import Requests
from harness.measure.judge._templates import chat_text, neutralise, turn_markers
from harness.measure.judge._types import JudgePrompt
from harness.method import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Written", "answer_prompts", "answer_turns", "chat_ids", "check_length", "check_template", "written"]

Progress = Callable[[int, int], None]
Turns = Sequence[tuple[str, str]]


def answer_prompts(
    loaded: LoadedModel,
    prompts: Sequence[JudgePrompt],
    max_new_tokens: int,
    progress: Progress | None = None,
    *,
    tokens: int | None = None,
    counts: Requests | None = None,
) -> list[str]:
    """The model's greedy answers through its chat template, in order, without special tokens.

    Follow-ups are not asked; see `answer_turns`.

    Args:
        tokens: of a forward pass at most; None: what suits the device.
        counts: is told of every answer.

    Raises:
        UserError: a model without a chat template, or a prompt longer than it reads.
    """
    return _answer(loaded, [p.chat for p in prompts], max_new_tokens, progress, tokens, counts)


def answer_turns(
    loaded: LoadedModel,
    prompts: Sequence[JudgePrompt],
    max_new_tokens: int,
    progress: Progress | None = None,
    *,
    tokens: int | None = None,
    counts: Requests | None = None,
) -> list[tuple[str, ...]]:
    """As `answer_prompts`, the answers of each prompt: one, or two where it has a follow-up.

    The follow-up is asked of a model that has its own first answer before it (Zheng et al. 2023, MT-Bench).
    """
    total = len(prompts) + sum(p.follow_up is not None for p in prompts)

    def told(done: int, _: int) -> None:
        if progress is not None:
            progress(done, total)

    first = _answer(loaded, [p.chat for p in prompts], max_new_tokens, told, tokens, counts)
    found: list[tuple[str, ...]] = [(answer,) for answer in first]
    places = [i for i, p in enumerate(prompts) if p.follow_up is not None]
    chats = [[*prompts[i].chat, ("assistant", first[i]), ("user", prompts[i].follow_up or "")] for i in places]
    second = _answer(loaded, chats, max_new_tokens, lambda d, t: told(len(prompts) + d, t), tokens, counts)
    for i, answer in zip(places, second, strict=True):
        found[i] = (first[i], answer)
    return found


def _answer(
    loaded: LoadedModel,
    chats: Sequence[Turns],
    max_new_tokens: int,
    progress: Progress | None,
    tokens: int | None,
    counts: Requests | None,
) -> list[str]:
    if not chats:
        return []
    tokenizer = loaded.tokenizer
    check_template(loaded)
    markers = turn_markers(tokenizer)
    contexts = []
    for turns in chats:
        chat = [{"role": role, "content": neutralise(content, markers)} for role, content in turns]
        contexts.append(chat_ids(tokenizer, chat_text(tokenizer, chat)))
        check_length(loaded, len(contexts[-1]) + max_new_tokens, f"the prompt {turns[-1][1][:60]!r}")
    replies = written(loaded, contexts, max_new_tokens, progress, tokens)
    if counts is not None:
        for one in replies:
            # A prompt that does not fit is refused above.
            counts.cut(0)
            counts.wrote(ended=one.ended)
    return [one.text for one in replies]


@dataclass(frozen=True)
class Written:
    """What a model wrote, without special tokens, and whether it ended by itself."""

    text: str
    ended: bool


def written(
    loaded: LoadedModel,
    contexts: Sequence[list[int]],
    max_new_tokens: int,
    progress: Progress | None = None,
    tokens: int | None = None,
) -> list[Written]:
    """The model's greedy replies to chats in tokens, in order, generated in batches."""
    from harness.measure.scoring import Engine

    own = getattr(loaded.model.generation_config, "eos_token_id", None)
    ends = {loaded.tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])} - {None}
    engine = Engine(loaded.model, tokens)
    generated = engine.generate(contexts, max_new_tokens, ends=frozenset(ends), progress=progress)
    return [Written(loaded.tokenizer.decode(g.tokens, skip_special_tokens=True).strip(), g.ended) for g in generated]


def chat_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """The tokens of what a chat template wrote: every special token that belongs there is in it already."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def check_template(loaded: LoadedModel) -> None:
    """Refuse a model that cannot be talked to.

    Raises:
        UserError: it has no chat template.
    """
    if not loaded.tokenizer.chat_template:
        raise UserError(
            f"judge: {loaded.folder.name} has no chat template; use an instruct model, or a recipe with sft"
        )


def check_length(loaded: LoadedModel, tokens: int, what: str) -> None:
    """Refuse what is longer than the model reads: cut, it would be another question.

    Raises:
        UserError: it is.
    """
    room = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and tokens > room:
        raise UserError(
            f"judge: {what} needs {tokens} tokens, and {loaded.folder.name} reads {room}; use shorter prompts"
        )
