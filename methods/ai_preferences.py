"""Preferences by AI feedback (RLAIF): a judge prefers one of two samples by a principle of a constitution.

The second stage of constitutional AI: what it makes is for a preference loss, or for a reward model and PPO.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from harness._turns import spoken, turn
from harness.errors import InfeasibleError
from harness.method import Context, Inputs, Judge, Record
from methods._constitution import ConstitutionParams, Principle, constitution_reads, read_constitution
from methods._making import MakingParams, Prompt, Text, Writer, draw
from methods._making_method import Maker, MakingMethod, Part

__all__ = ["AIPreferences", "AIPreferencesParams"]


class AIPreferencesParams(MakingParams, ConstitutionParams):
    """Settings of AI feedback."""

    judge: str = Field("self", description="who prefers: self (the policy), base, a recipe, or a model of the suite")
    margin: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="pairs of which the judge prefers one with a probability within this of 0.5 are left out",
    )


class AIPreferences(MakingMethod[AIPreferencesParams]):
    """Pairs of the policy's samples, each labelled by a judge and a principle drawn for it.

    The judge sees both orders, and the mean is its probability. Left out and counted: samples that are `empty`,
    `unfinished`, or hold a special token (`special`), pairs of `equal` samples, and those that are `undecided`. Further
    columns of a row: `probability` (that the chosen one is better), `principle`. Logged: `confidence`, the mean
    distance of the probabilities from 0.5.
    """

    name = "ai_preferences"
    summary = "pairs of samples, labelled by a judge with the principles of a constitution"
    paper = "Bai et al. 2022, arXiv:2212.08073"
    params = AIPreferencesParams
    needs = frozenset({"policy", "judge"})
    makes = "preferences"
    fixed = frozenset({"constitution", "judge"})
    counted = (*MakingMethod.counted, "equal", "undecided")
    advice = "lower margin, or raise max_new_tokens, so that answers end"

    @classmethod
    def reads(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """The constitution's text."""
        return constitution_reads(settings)

    def answers_each(self, params: AIPreferencesParams) -> int:
        """Two."""
        return 2

    def maker(self, inputs: Inputs, writer: Writer, params: AIPreferencesParams, context: Context) -> Maker:
        """See `MakingMethod`."""
        principles = read_constitution(params.constitution).principles
        judge, tally = inputs.judge(), writer.tally

        def make(prompts: Sequence[Prompt]) -> Part:
            answers = writer.write([p.ids for p in prompts for _ in range(2)])
            pairs = [
                _Pair(p, answers[2 * i], answers[2 * i + 1], draw(context, f"principles {p.row}").choice(principles))
                for i, p in enumerate(prompts)
            ]
            for answer in answers:
                if problem := answer.problem():
                    tally.counts[problem] += 1
            usable = [p for p in pairs if not any(a.problem(params.unfinished) for a in (p.first, p.second))]
            asked = [p for p in usable if p.first.text != p.second.text]
            tally.counts["equal"] += len(usable) - len(asked)
            with tally.timed("judging"):
                _label(asked, judge)
            part = Part(answers=answers)
            for pair in pairs:
                row = pair.row(params.margin)
                if row is not None:
                    part.rows.append((pair.prompt.row, row))
                part.records += pair.records(judge.name, kept=row is not None)
            decided = len(part.rows)
            tally.counts["undecided"] += len(asked) - decided
            if asked:
                part.figures = {"confidence": sum(abs(p.probability - 0.5) for p in asked) / len(asked)}
            return part

        return make


@dataclass
class _Pair:
    """Two samples of a prompt, and what the judge says of them."""

    prompt: Prompt
    first: Text
    second: Text
    principle: Principle
    probability: float = 0.5
    """That the first is better."""
    labelled: bool = False

    def row(self, margin: float) -> dict[str, Any] | None:
        """As a preference; None where the judge prefers neither, or was not asked."""
        if abs(self.probability - 0.5) <= margin:
            return None
        first = self.probability > 0.5
        chosen, rejected = (self.first, self.second) if first else (self.second, self.first)
        return {
            **self.prompt.rest,
            "prompt": list(self.prompt.turns),
            "chosen": [turn("assistant", chosen.text)],
            "rejected": [turn("assistant", rejected.text)],
            "probability": self.probability if first else 1.0 - self.probability,
            "principle": self.principle.preference,
        }

    def records(self, judge: str, *, kept: bool) -> list[Record]:
        """Both samples, and the label where there is one."""
        number, about = self.prompt.row, spoken(self.prompt.turns)
        said = [
            Record(number, n, "sample", about, text.text, kept=kept) for n, text in enumerate((self.first, self.second))
        ]
        if not self.labelled:
            return said
        label = "first" if self.probability > 0.5 else "second" if self.probability < 0.5 else "neither"
        principle = self.principle.preference
        return [*said, Record(number, 2, "label", about, label, principle, judge, self.probability, kept)]


def _label(pairs: Sequence[_Pair], judge: Judge) -> None:
    found = judge.prefer(
        [(p.prompt.turns, p.first.text, p.second.text) for p in pairs], [p.principle.preference for p in pairs]
    )
    for pair, probability in zip(pairs, found, strict=True):
        if not 0.0 <= probability <= 1.0:
            raise InfeasibleError(f"the judge {judge.name} gave a probability of {probability}")
        pair.probability, pair.labelled = probability, True
