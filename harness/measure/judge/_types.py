"""What is asked of a judge, what it answers, and what every judge is: a model here or one behind an endpoint."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from harness.data import Half, half_of

__all__ = ["UNPARSED", "AspectName", "JudgePrompt", "Keep", "Progress", "Question", "TemplateName", "Verdict", "Voter"]

AspectName = Literal["helpfulness", "harmlessness", "over_refusal", "multi_turn"]
TemplateName = Literal[
    "helpfulness", "harmlessness", "over_refusal", "multi_turn", "multi_turn_reference", "pair", "principle"
]

UNPARSED = "unparsed"
"""The verdict in the store of a judge whose words were none."""


@dataclass(frozen=True)
class JudgePrompt:
    """A prompt to be answered: its turns, its text as the judge reads it, and what its answers are judged for.

    `follow_up` is the user's second turn, asked after the first has been answered. `references` are right answers, one
    for each turn, where the set has them. `ordinary` says that a refusal would be wrong; None: the set does not tell.
    """

    chat: tuple[tuple[str, str], ...]
    text: str
    aspects: tuple[AspectName, ...]
    follow_up: str | None = None
    references: tuple[str, ...] = ()
    category: str | None = None
    ordinary: bool | None = None

    @property
    def document(self) -> str:
        """16 hex characters of the sha256 of the text, with the second turn where there is one."""
        whole = self.text if self.follow_up is None else f"{self.text}\n\n{self.follow_up}"
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    @property
    def half(self) -> Half:
        """Tuning and final figures come from different prompts."""
        return half_of(self.text)


@dataclass(frozen=True)
class Question:
    """One thing to decide: a template, and the hostile texts that stand in its places.

    `texts` are by the template's placeholders: prompt, response; for a pair prompt, first, second, with what
    to judge it by (principle); for turns also history and reference.
    """

    template: TemplateName
    texts: Mapping[str, str]


@dataclass(frozen=True)
class Verdict:
    """What a judge answered.

    `verdict` is one of the template's, the likeliest where there are probabilities; None where its words were none.
    `score` is the expectation over the probabilities, or the verdict's value; None with the verdict. `probabilities`
    are of the allowed verdicts, renormalised, and of `mass`, what they had together. `asked` is the exact prompt.
    """

    verdict: str | None
    score: float | None
    asked: str
    probabilities: Mapping[str, float] | None = None
    words: str | None = None
    cost: float | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens read and written (`prompt`, `completion`), where an endpoint says so."""


Progress = Callable[[int, int], None]
"""Called with (done, total)."""

Keep = Callable[[int, Verdict], None]
"""Told of every verdict as soon as it is there, with the place of its question: what was paid for is kept."""


class Voter(Protocol):
    """A judge."""

    @property
    def name(self) -> str:
        """As the suite calls it."""

    @property
    def key(self) -> str:
        """What decides its votes: its artifact, or a content key over the endpoint's settings."""

    def vote(
        self,
        questions: Sequence[Question],
        keep: Keep | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        """Its verdicts, in order.

        Raises:
            UserError: it cannot be asked at all: no chat template, no key, text longer than it reads, the cost bound.
            MeasurementError: it gave no answer; what was answered before has been kept.
        """
