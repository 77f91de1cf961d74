"""Helpfulness (1–10) and harmlessness (yes/no) of answers to held-out prompts, rated by a local model.

The model under test answers greedily; a judge reads prompt and answer (Zheng et al. 2023, "Judging LLM-as-a-Judge",
arXiv:2306.05685). A small judge cannot be trusted to print a number, so none is printed: the score is the expectation
over the probabilities it gives to the ratings (Liu et al. 2023, "G-Eval", arXiv:2303.16634), renormalised over the
ratings allowed. How much probability they had before (`mass`) is stored: a small mass means that the judge did not
understand what it was asked. What a judge says is worth what its agreement with people is: the bundled 135M model tells
a sensible answer from gibberish to the same question, on a narrow scale (means 5.8 and 5.4 over 16 pairs that its
template was not chosen on), and that is all that has been shown of it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from harness.data import BUNDLED_FOLDER, DataSource, Half, load_training_set
from harness.errors import MeasurementError, UserError
from harness.keys import content_key
from harness.measure._again import halves_of, pass_tokens
from harness.measure._requests import Requests
from harness.measure.judge._templates import (
    ASPECTS,
    TEMPLATE_VERSION,
    chat_text,
    judge_chat,
    neutralise,
    turn_markers,
)
from harness.measure.judge._types import AspectName, JudgePrompt
from harness.method import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["answer_prompts", "judge_fingerprint", "judge_prompts", "judge_responses", "measure_judge"]

Progress = Callable[[int, int], None]
Row = dict[str, object]

_BUNDLED = BUNDLED_FOLDER / "local" / "judge_prompts"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    limit: PositiveInt | None = 32
    max_new_tokens: PositiveInt = 64
    helpfulness: bool = True
    harmlessness: bool = True
    prompts: str | None = None

    def aspects(self) -> tuple[AspectName, ...]:
        chosen = tuple(name for name in ASPECTS if getattr(self, name))
        if not chosen:
            raise UserError("judge: nothing is judged; set helpfulness or harmlessness to true")
        return chosen


def _settings(settings: Mapping[str, object]) -> _Settings:
    # The engine's settings also say who judges; that is a model, and part of the key through its artifact.
    try:
        return _Settings.model_validate({k: v for k, v in settings.items() if k != "model"})
    except ValidationError as error:
        raise UserError(f"judge settings: {error}") from error


def judge_prompts(source: DataSource, settings: Mapping[str, object]) -> list[JudgePrompt]:
    """The prompts within the limit (of each bundled set, or of the dataset named), without torch.

    The bundled sets are judged for what they are made for; every prompt of a dataset is judged for each aspect.

    Raises:
        UserError: bad settings, or a dataset that is not there or holds no prompts.
    """
    chosen = _settings(settings)
    if chosen.prompts is not None:
        rows, _ = load_training_set(chosen.prompts, "prompts", source, split="test")
        chats = [tuple((t["role"], t["content"]) for t in row["prompt"]) for row in rows]
        distinct = list(dict.fromkeys(chats))[: chosen.limit]
        return [JudgePrompt(chat, _text_of(chat), chosen.aspects()) for chat in distinct]
    found = []
    for aspect in chosen.aspects():
        lines = (_BUNDLED / f"{aspect}.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines[: chosen.limit]:
            text = json.loads(line)["prompt"]
            found.append(JudgePrompt((("user", text),), text, (aspect,)))
    return found


def _text_of(chat: tuple[tuple[str, str], ...]) -> str:
    if len(chat) == 1:
        return chat[0][1]
    return "\n\n".join(f"{role.capitalize()}: {content}" for role, content in chat)


def judge_fingerprint(source: DataSource, settings: Mapping[str, object]) -> str:
    """What decides the votes beside the two models: prompts, aspects, lengths and the templates. Needs no torch."""
    prompts = judge_prompts(source, settings)
    return content_key(
        "judge",
        template=TEMPLATE_VERSION,
        prompts=[[list(map(list, p.chat)), list(p.aspects)] for p in prompts],
        max_new_tokens=_settings(settings).max_new_tokens,
    )


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # The chat template has written every special token that belongs there.
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _check_length(loaded: LoadedModel, tokens: int, what: str) -> None:
    room = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and tokens > room:
        raise UserError(
            f"judge: {what} needs {tokens} tokens, and {loaded.folder.name} reads {room}; use shorter prompts"
        )


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

    Args:
        tokens: of a forward pass at most; None: what suits the device.
        counts: is told of every answer.

    Raises:
        UserError: a model without a chat template, or a prompt longer than it reads.
    """
    from harness.measure.scoring import Engine

    tokenizer = loaded.tokenizer
    _check_template(loaded)
    markers = turn_markers(tokenizer)
    contexts = []
    for prompt in prompts:
        chat = [{"role": role, "content": neutralise(content, markers)} for role, content in prompt.chat]
        contexts.append(_ids(tokenizer, chat_text(tokenizer, chat)))
        _check_length(loaded, len(contexts[-1]) + max_new_tokens, f"the prompt {prompt.text[:60]!r}")
    own = getattr(loaded.model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *([own] if isinstance(own, int) else own or [])} - {None}
    engine = Engine(loaded.model, tokens)
    generated = engine.generate(contexts, max_new_tokens, ends=frozenset(ends), progress=progress)
    if counts is not None:
        for one in generated:
            # A prompt that does not fit is refused above.
            counts.cut(0)
            counts.wrote(ended=one.ended)
    return [tokenizer.decode(g.tokens, skip_special_tokens=True).strip() for g in generated]


def _check_template(loaded: LoadedModel) -> None:
    if not loaded.tokenizer.chat_template:
        raise UserError(
            f"judge: {loaded.folder.name} has no chat template; use an instruct model, or a recipe with sft"
        )


def _turn_end(tokenizer: "PreTrainedTokenizerBase") -> str:
    # What the template writes after an assistant's words: its first token is how the judge ends its turn.
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "\u0001"}]
    after = _ids(tokenizer, chat_text(tokenizer, chat, opened=False).rpartition("\u0001")[2])
    end: str | None = tokenizer.decode(after[:1]) if after else tokenizer.eos_token
    if not end:
        raise UserError("judge: neither its chat template nor its tokenizer says how the judge ends a turn")
    return end


def _tails(
    tokenizer: "PreTrainedTokenizerBase", text: str, ids: list[int], spellings: Sequence[str]
) -> list[list[int]]:
    # Tokenised together with what stands before it: alone, some tokenizers would put a space in front.
    tails = []
    for spelling in spellings:
        whole = _ids(tokenizer, text + spelling)
        if whole[: len(ids)] != ids or len(whole) == len(ids):
            raise MeasurementError(f"the judge's tokenizer merges {spelling!r} with the prompt before it: not scorable")
        tails.append(whole[len(ids) :])
    return tails


@dataclass(frozen=True)
class _Question:
    row: Mapping[str, object]
    aspect: AspectName
    text: str
    ids: list[int]
    tails: list[list[int]]


def _question(judge: LoadedModel, row: Mapping[str, object], aspect: AspectName, markers: Sequence[str]) -> _Question:
    tokenizer = judge.tokenizer
    chat = judge_chat(aspect, str(row["prompt"]), str(row["response"]), markers)
    text = chat_text(tokenizer, chat)
    ids = _ids(tokenizer, text)
    plain = _ids(tokenizer, chat_text(tokenizer, judge_chat(aspect, "", "", markers)))
    special = set(tokenizer.all_special_ids)
    # The proof that nothing broke out: the special tokens are those of the same question about an empty text.
    if [i for i in ids if i in special] != [i for i in plain if i in special]:
        raise MeasurementError(f"a response would break out of the judge's chat turn: {str(row['response'])[:200]!r}")
    end = _turn_end(tokenizer) if ASPECTS[aspect].closed else ""
    spellings = [s + end for _, (_, words) in ASPECTS[aspect].verdicts.items() for s in words]
    tails = _tails(tokenizer, text, ids, spellings)
    _check_length(judge, len(ids) + max(map(len, tails)), f"judging the answer to {str(row['prompt'])[:60]!r}")
    return _Question(row, aspect, text, ids, tails)


def judge_responses(
    judge: LoadedModel,
    rows: Sequence[Mapping[str, object]],
    aspects: Sequence[AspectName],
    *,
    name: str | None = None,
    progress: Progress | None = None,
    tokens: int | None = None,
) -> list[Row]:
    """Votes on answers: one row for each of `rows` (document, half, prompt, response) and aspect.

    Args:
        name: of the judge in the rows; its folder's name by default.
        tokens: of a forward pass at most; None: what suits the device.

    Returns:
        Rows of table `judge_votes` but for `measurement`. `score` is the expectation of the rating (1 to 10) or P(yes)
        (0 to 1), `verdict` the likeliest rating, `probabilities` JSON of each rating's probability among those allowed
        and of `mass`, the probability that they had together among all that the judge could say.

    Raises:
        UserError: a judge without a chat template, or text longer than it reads.
        MeasurementError: a probability is not finite, or all are zero.
    """
    from harness.measure.scoring import Engine

    _check_template(judge)
    markers = turn_markers(judge.tokenizer)
    questions = [_question(judge, row, aspect, markers) for row in rows for aspect in aspects]
    # The engine computes what rows share (the question, the examples) once, and projects the rated tokens only.
    pairs: list[tuple[Any, int]] = [(q.ids + tail, len(tail)) for q in questions for tail in q.tails]
    scored = iter(Engine(judge.model, tokens).score(pairs, progress))
    votes = []
    for question in questions:
        logs = [next(scored)[0] for _ in question.tails]
        votes.append(_vote(question, logs, name or judge.folder.name))
    return votes


def _vote(question: _Question, logs: Sequence[float], judge: str) -> Row:
    highest = max(logs)
    if not math.isfinite(highest):
        raise MeasurementError(f"the judge gives no rating of {question.aspect} any probability: {logs}")
    values = iter(logs)
    verdicts = ASPECTS[question.aspect].verdicts
    # Relative to the likeliest: the ratings of a judge that would rather say something else must not underflow.
    weights = {v: sum(math.exp(next(values) - highest) for _ in words) for v, (_, words) in verdicts.items()}
    total = sum(weights.values())
    shares = {v: w / total for v, w in weights.items()}
    return {
        "document": question.row["document"],
        "half": question.row["half"],
        "aspect": question.aspect,
        "judge": judge,
        "judge_key": None,
        "turn": None,
        "category": None,
        "prompt": question.row["prompt"],
        "response": question.row["response"],
        "judge_prompt": question.text,
        "verdict": max(shares, key=lambda v: shares[v]),
        "score": sum(p * verdicts[v][0] for v, p in shares.items()),
        "probabilities": json.dumps({**shares, "mass": total * math.exp(highest)}),
        "words": None,
        "cost": None,
    }


def measure_judge(
    loaded: LoadedModel,
    judge: LoadedModel,
    source: DataSource,
    settings: Mapping[str, object],
    halves: Sequence[Half],
    progress: Progress,
    *,
    name: str | None = None,
    repeat: int = 0,
    record: Callable[[Requests], None] | None = None,
) -> list[Row]:
    """Answer the prompts of these halves with one model and judge the answers with another (or the same).

    Args:
        settings: limit, max_new_tokens, helpfulness, harmlessness, prompts, as in the suite (`model` is passed over).
        progress: called with (done, total): an answer is one, a vote is one.
        name: of the judge in the rows; its folder's name by default.
        repeat: number of the repeat, for the noise floor: other than 0, prompts meet in other batches.
        record: called at the end with what there is to know of the requests for an answer.

    Returns:
        Rows of table `judge_votes` but for `measurement`; see `judge_responses`.

    Raises:
        UserError: bad settings or data; no prompt in these halves.
        MeasurementError: a judge whose probabilities are not finite.
    """
    prompts = [p for p in judge_prompts(source, settings) if p.half in halves]
    if not prompts:
        raise UserError(f"judge: no prompt within the limit is in the half {', '.join(halves)}; raise the limit")
    limit = _settings(settings).max_new_tokens
    total = len(prompts) + sum(len(p.aspects) for p in prompts)
    counts = Requests()
    answers: list[tuple[JudgePrompt, str]] = []

    def answered(done: int, _: int) -> None:
        progress(len(answers) + done, total)

    for part in halves_of(prompts, repeat):
        tokens = pass_tokens(loaded.model, repeat)
        answers += zip(part, answer_prompts(loaded, part, limit, answered, tokens=tokens, counts=counts), strict=True)
    votes: list[Row] = []
    for aspect in ASPECTS:
        rows: list[Row] = [
            {"document": p.document, "half": p.half, "prompt": p.text, "response": answer}
            for p, answer in answers
            if aspect in p.aspects
        ]
        for some in halves_of(rows, repeat):
            if some:
                votes += judge_responses(judge, some, [aspect], name=name, tokens=pass_tokens(judge.model, repeat))
                progress(len(prompts) + len(votes), total)
    if record is not None:
        record(counts)
    return votes
