"""Critique and revision: the policy answers, criticises its answer by a principle, and writes a better one.

The supervised stage of constitutional AI (SL-CAI): what it makes is for `sft`.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from harness._turns import spoken, turn
from harness.method import Context, Inputs, Record, Turns
from methods._constitution import ConstitutionParams, Principle, constitution_reads, read_constitution
from methods._critique import Critic, request, without_labels
from methods._making import MakingParams, Prompt, Text, Writer, draw
from methods._making_method import Maker, MakingMethod, Part

__all__ = ["CritiqueRevision", "CritiqueRevisionParams"]


class CritiqueRevisionParams(MakingParams, ConstitutionParams):
    """Settings of critique and revision."""

    rounds: int = Field(1, ge=1, le=16, description="times that an answer is criticised and revised")
    examples: int = Field(
        3, ge=0, le=16, description="rounds of criticism that the policy is shown before its own, from the constitution"
    )
    max_critique_tokens: int = Field(64, ge=1, description="length limit of a criticism, tokens")
    critique_temperature: float = Field(
        0.7, ge=0, description="divides the logits when criticisms and revisions are sampled; 0 takes the likeliest"
    )
    revisions: Literal["last", "all"] = Field(
        "last", description="which revisions of an answer go into the dataset, each as a row"
    )


class CritiqueRevision(MakingMethod[CritiqueRevisionParams]):
    """Answers that the policy has revised by a constitution, as instructions.

    Left out and counted: prompts whose answer is `empty` or holds `special` tokens, or whose revision is the answer
    (`unchanged`). A round leaves the answer as it was (`rounds_lost`) where the criticism or the revision is no usable
    text, or the dialogue is `too_long` for the model. Further columns of a row: `answer_before`, `principle`.
    Logged: `revisions` that were fit for data.
    """

    name = "critique_revision"
    version = 3
    summary = "answers revised by the policy itself, by the principles of a constitution"
    paper = "Bai et al. 2022, arXiv:2212.08073"
    params = CritiqueRevisionParams
    makes = "instructions"
    fixed = frozenset({"constitution"})
    counted = ("empty", "special", "too_long", "rounds_lost", "revisions", "unchanged")
    advice = "raise max_new_tokens, so that revisions end, or lower critique_temperature"

    @classmethod
    def reads(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """The constitution's text."""
        return constitution_reads(settings)

    def maker(self, inputs: Inputs, writer: Writer, params: CritiqueRevisionParams, context: Context) -> Maker:
        """See `MakingMethod`."""
        constitution = read_constitution(params.constitution)
        critic = Critic(constitution.examples[-params.examples :] if params.examples else ())

        def make(prompts: Sequence[Prompt]) -> Part:
            answers = writer.write([p.ids for p in prompts])
            courses = [
                _Course(p, a.text, _some(constitution.principles, params.rounds, draw(context, f"principles {p.row}")))
                for p, a in zip(prompts, answers, strict=True)
            ]
            # An answer without an end is no data either way, and can be criticised.
            going = [
                c for c, a in zip(courses, answers, strict=True) if not _counted(a.problem(unfinished="keep"), writer)
            ]
            revised = 0
            for number in range(params.rounds):
                revised += _round(going, number, writer, critic, params)
            rows = [(c.prompt.row, row) for c in courses for row in c.rows(params.revisions)]
            writer.tally.counts["unchanged"] += sum(bool(c.revisions) and not c.changed for c in courses)
            writer.tally.counts["revisions"] += revised
            records = [record for c in courses for record in c.records(params.revisions)]
            return Part(rows, records, answers, {"revisions": float(revised)})

        return make


@dataclass
class _Course:
    """One prompt on its way."""

    prompt: Prompt
    answer: str
    principles: list[Principle]
    said: list[tuple[Literal["critique", "revision"], str, str]] = field(default_factory=list)
    """What was said after the answer: kind, text, the principle's request."""
    revisions: list[int] = field(default_factory=list)
    """Which of that are revisions fit for data."""

    @property
    def text(self) -> str:
        """The newest good version of the answer."""
        return self.said[self.revisions[-1]][1] if self.revisions else self.answer

    @property
    def changed(self) -> bool:
        return self.text != self.answer

    def chosen(self, which: str) -> list[int]:
        """Which of what was said goes into the dataset: texts that are neither the answer nor there already."""
        last = self.revisions if which == "all" else self.revisions[-1:]
        texts = {self.said[i][1]: i for i in reversed(last)}
        return sorted(i for text, i in texts.items() if text != self.answer)

    def rows(self, which: str) -> list[dict[str, Any]]:
        """As instructions, with the row's further columns."""
        return [
            {
                **self.prompt.rest,
                "prompt": list(self.prompt.turns),
                "completion": [turn("assistant", self.said[i][1])],
                "answer_before": self.answer,
                "principle": self.said[i][2],
            }
            for i in self.chosen(which)
        ]

    def records(self, which: str) -> list[Record]:
        """All that was said to the prompt."""
        about, kept = spoken(self.prompt.turns), self.chosen(which)
        records = [Record(self.prompt.row, 0, "answer", about, self.answer)]
        for n, (kind, text, principle) in enumerate(self.said):
            into = n in kept if kind == "revision" else None
            records.append(Record(self.prompt.row, n + 1, kind, about, text, principle, kept=into))
        return records


def _round(
    courses: Sequence[_Course], number: int, writer: Writer, critic: Critic, params: CritiqueRevisionParams
) -> int:
    """One criticism and one revision of each; how many of the revisions are fit for data."""
    asked = [critic.critique(request(c.prompt.turns), c.text, c.principles[number]) for c in courses]
    criticised = []
    for course, text in _written(courses, asked, params.max_critique_tokens, writer, params):
        course.said.append(("critique", text.text, course.principles[number].critique))
        # One that was cut still says something.
        if not text.problem(unfinished="keep"):
            criticised.append((course, text.text))
    asked = [critic.revision(request(c.prompt.turns), c.text, said, c.principles[number]) for c, said in criticised]
    revised = 0
    for course, text in _written([c for c, _ in criticised], asked, params.max_new_tokens, writer, params):
        course.said.append(("revision", text.text, course.principles[number].revision))
        if not text.problem(params.unfinished):
            course.revisions.append(len(course.said) - 1)
            revised += 1
    writer.tally.counts["rounds_lost"] += len(courses) - revised
    return revised


def _written(
    courses: Sequence[_Course],
    asked: Sequence[Turns],
    new: int,
    writer: Writer,
    params: CritiqueRevisionParams,
) -> list[tuple[_Course, Text]]:
    """What the policy says to these dialogues, but for those that the model cannot hold."""
    ids = [writer.ids(turns) for turns in asked]
    fitting = [n for n, one in enumerate(ids) if writer.fits(one, new)]
    writer.tally.counts["too_long"] += len(ids) - len(fitting)
    texts = writer.write([ids[n] for n in fitting], temperature=params.critique_temperature, max_new_tokens=new)
    return [(courses[n], without_labels(text)) for n, text in zip(fitting, texts, strict=True)]


def _counted(problem: str, writer: Writer) -> bool:
    if problem:
        writer.tally.counts[problem] += 1
    return bool(problem)


def _some(principles: Sequence[Principle], count: int, chance: random.Random) -> list[Principle]:
    """As many principles, none twice while there are others."""
    found: list[Principle] = []
    while len(found) < count:
        found += chance.sample(principles, min(count - len(found), len(principles)))
    return found
