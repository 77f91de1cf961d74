"""What an endpoint replied, its words or the probabilities of its first token: checked before it is used."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.measure.judge._parse import parse_verdict
from harness.measure.judge._templates import TEMPLATES
from harness.measure.judge._types import TemplateName

__all__ = ["GarbageError", "Position", "Reply", "Usage", "Votes", "read_reply", "token_votes", "word_votes"]

Votes = tuple[str | None, float | None, dict[str, float] | None]
"""Verdict, score and probabilities, as of `Verdict`."""

_SAID_NOTHING = ("length", "content_filter")
"""Why a reply may be one without words: they went into thoughts, or a filter stands before the judge."""

_LONG, _STARTS = "10", "1"


class GarbageError(Exception):
    """What came is no reply. `usage` is what it cost all the same, where it says so."""

    def __init__(self, message: str, usage: "Usage | None" = None) -> None:
        super().__init__(message)
        self.usage = usage


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Usage(_Part):
    """Tokens read and written."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(default=0, ge=0)


class _Token(_Part):
    token: str
    # A little above 0 by rounding; minus infinity is a probability of 0.
    logprob: Annotated[float, Field(le=0.01)]


class Position(_Token):
    """A token of the reply, and what else could have stood there."""

    top_logprobs: list[_Token] = []

    def shares(self) -> list[tuple[str, float]]:
        """Tokens and their probabilities: the likeliest, and the one that was taken."""
        listed = [(t.token, t.logprob) for t in self.top_logprobs]
        if all(token != self.token for token, _ in listed):
            listed.append((self.token, self.logprob))
        return [(token, math.exp(min(logprob, 0.0))) for token, logprob in listed]


class _Logprobs(_Part):
    content: list[Position] | None = None


class _Message(_Part):
    content: str | None = None
    refusal: str | None = None


class _Choice(_Part):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Body(_Part):
    choices: list[_Choice] | None = None
    usage: Usage | None = None


class Reply(_Part):
    """A reply that is one: `words` may be empty. `positions` is None where the endpoint gives no probabilities."""

    words: str
    finish: str | None
    positions: list[Position] | None
    usage: Usage | None


def read_reply(body: bytes) -> Reply:
    """The reply in the body of a response.

    Raises:
        GarbageError: it is no JSON, not of the form, or holds no choice or no words.
    """
    try:
        found = _Body.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise GarbageError(f"a reply that is none ({at + ': ' if at else ''}{first['msg']})") from error
    if not found.choices:
        raise GarbageError("a reply without a choice", found.usage)
    choice = found.choices[0]
    words = choice.message.content if choice.message.content is not None else choice.message.refusal
    if words is None and choice.finish_reason not in _SAID_NOTHING:
        raise GarbageError("a reply without words", found.usage)
    positions = None if choice.logprobs is None else choice.logprobs.content
    return Reply(words=words or "", finish=choice.finish_reason, positions=positions, usage=found.usage)


def word_votes(template: TemplateName, words: str) -> Votes:
    """What the words say; (None, None, None) where they hold no verdict."""
    verdict = parse_verdict(template, words)
    return verdict, None if verdict is None else TEMPLATES[template].verdicts[verdict][0], None


def token_votes(template: TemplateName, positions: Sequence[Position], finish: str | None) -> Votes:
    """The expectation over the verdicts' spellings at the reply's first token that is not blank (Liu et al. 2023,
    "G-Eval", arXiv:2303.16634), among the tokens that the endpoint lists.

    Many tokenizers have no token for "10": then the probability of "1" is that of 1 and of 10 together. Where "1" was
    said, the next position divides it: "0" after it is 10, no digit after it is 1. Where "1" was said and the turn
    ended, with nothing shown of the next position, all of it is 1. Where another token was said, what "1" stands for
    cannot be known: it counts for neither, and is missing in `mass`.

    Returns:
        Likeliest verdict, expectation, probabilities with `mass`; three times None where no listed token is a verdict.
    """
    rest = list(positions)
    before = 1.0
    while rest and not rest[0].token.strip():
        before *= math.exp(min(rest.pop(0).logprob, 0.0))
    if not rest:
        return None, None, None
    first: dict[str, float] = {}
    for token, share in rest[0].shares():
        first[token.strip()] = first.get(token.strip(), 0.0) + share
    verdicts = TEMPLATES[template].verdicts
    if _LONG in verdicts and _LONG not in first:
        first.update(_divided(first.get(_STARTS, 0.0), rest, finish))
    masses = {v: before * sum(first.get(word, 0.0) for word in words) for v, (_, words) in verdicts.items()}
    total = sum(masses.values())
    if total <= 0:
        return None, None, None
    shares = {v: mass / total for v, mass in masses.items()}
    score = sum(share * verdicts[v][0] for v, share in shares.items())
    return max(shares, key=lambda v: shares[v]), score, {**shares, "mass": min(total, 1.0)}


def _divided(share: float, positions: Sequence[Position], finish: str | None) -> Mapping[str, float]:
    """What of the probability of "1" is a 1, and what a 10."""
    if positions[0].token.strip() != _STARTS:
        return {_STARTS: 0.0, _LONG: 0.0}
    if len(positions) == 1:
        return {_STARTS: share if finish == "stop" else 0.0, _LONG: 0.0}
    after = positions[1].shares()
    zero = sum(p for token, p in after if token[:1] == "0" and not token[1:2].isdigit())
    digits = sum(p for token, p in after if token[:1].isdigit())
    return {_STARTS: share * max(1 - digits, 0.0), _LONG: share * zero}
