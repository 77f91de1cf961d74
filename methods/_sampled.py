"""What methods share that sample several answers to each prompt and choose among them by a reward."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar

from pydantic import Field

from harness._turns import spoken
from harness.method import Context, Inputs, Record, Role
from methods._making import MakingParams, Prompt, Tally, Text, Writer
from methods._making_method import Maker, MakingMethod, Part
from methods._rewards import REWARD_FIXED, RewardParams, make_rewarder, reward_needs, reward_reads

__all__ = ["Choice", "Sample", "SampledMethod", "SampledParams"]


class SampledParams(MakingParams, RewardParams):
    """Settings of sampling and choosing."""

    n: int = Field(4, ge=2, le=256, description="answers sampled to each prompt")


@dataclass(frozen=True)
class Sample:
    """One answer that could be data."""

    number: int
    """In the order of sampling."""
    text: str
    reward: float


@dataclass
class Choice:
    """What was made of a prompt's samples."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    """The samples in them, by number."""
    rewards: list[float] = field(default_factory=list)
    """Of those that the policy is to learn."""


S = TypeVar("S", bound=SampledParams)


class SampledMethod(MakingMethod[S]):
    """A method that samples `n` answers to each prompt and makes rows of those that a reward prefers.

    Counted as metrics: `samples`; of these the `empty`, `unfinished` and `special` (that hold a special token), and
    those `equal` to an earlier one, which are left out. Logged beside what `MakingMethod` logs: `reward` (mean over all
    samples), `kept_reward` (mean over the answers to learn).
    """

    counted = (*MakingMethod.counted, "equal")
    fixed = REWARD_FIXED

    @classmethod
    def needs_with(cls, settings: Mapping[str, object]) -> frozenset[Role]:
        """The policy, and the model that scores."""
        return cls.needs | reward_needs(settings)

    @classmethod
    def reads(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """The verifier, where one scores."""
        return reward_reads(settings)

    @abstractmethod
    def choose(self, prompt: Prompt, samples: Sequence[Sample], params: S, tally: Tally) -> Choice:
        """Rows of one prompt, from its samples: usable, none equal to another, the highest reward first."""

    def seen(self, rewards: Sequence[Sequence[float]], tally: Tally) -> dict[str, float]:
        """What to log of a batch's rewards [prompts, n], usable or not."""
        return {}

    def answers_each(self, params: S) -> int:
        """How many answers each prompt gets."""
        return params.n

    def maker(self, inputs: Inputs, writer: Writer, params: S, context: Context) -> Maker:
        """See `MakingMethod`."""
        rewarder, tally, n = make_rewarder(inputs, params, context), writer.tally, params.n
        total, kept_total, kept_count = 0.0, 0.0, 0

        def make(prompts: Sequence[Prompt]) -> Part:
            nonlocal total, kept_total, kept_count
            answers = writer.write([p.ids for p in prompts for _ in range(n)])
            with tally.timed("scoring"):
                scores = rewarder.score([p.source for p in prompts for _ in range(n)], [a.ids for a in answers])
            part = Part(answers=answers)
            kept: list[float] = []
            for place, prompt in enumerate(prompts):
                own = slice(place * n, (place + 1) * n)
                samples = _usable(answers[own], scores[own], params, tally)
                choice = self.choose(prompt, samples, params, tally)
                part.rows += [(prompt.row, {**prompt.rest, "prompt": list(prompt.turns), **row}) for row in choice.rows]
                part.records += _records(prompt, answers[own], scores[own], choice.kept, rewarder.name)
                kept += choice.rewards
            tally.counts["samples"] += len(answers)
            total, kept_total, kept_count = total + sum(scores), kept_total + sum(kept), kept_count + len(kept)
            tally.figures["reward"] = total / tally.counts["samples"]
            part.figures = {"reward": fmean(scores)}
            if kept:
                tally.figures["kept_reward"] = kept_total / kept_count
                part.figures["kept_reward"] = fmean(kept)
            part.figures |= self.seen([scores[i : i + n] for i in range(0, len(scores), n)], tally)
            return part

        return make


def _usable(answers: Sequence[Text], scores: Sequence[float], params: SampledParams, tally: Tally) -> list[Sample]:
    found: dict[str, Sample] = {}
    for number, (answer, score) in enumerate(zip(answers, scores, strict=True)):
        problem = answer.problem()
        if problem:
            tally.counts[problem] += 1
        if answer.problem(params.unfinished):
            continue
        if answer.text in found:
            tally.counts["equal"] += 1
        found.setdefault(answer.text, Sample(number, answer.text, score))
    return sorted(found.values(), key=lambda s: (-s.reward, s.number))


def _records(
    prompt: Prompt, answers: Sequence[Text], scores: Sequence[float], kept: Sequence[int], by: str
) -> list[Record]:
    about = spoken(prompt.turns)
    return [
        Record(prompt.row, n, "sample", about, answer.text, by=by, score=score, kept=n in kept)
        for n, (answer, score) in enumerate(zip(answers, scores, strict=True))
    ]
