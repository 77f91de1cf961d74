"""Self-play (SPIN): the policy's own answer is rejected in favour of the demonstration.

Repeated with a preference loss between, the policy plays against what it was a round before, until its answers cannot
be told from the demonstrations.
"""

from collections.abc import Sequence

from pydantic import Field

from harness._turns import spoken, turn
from harness.method import Context, Inputs, Record
from methods._making import MakingParams, Prompt, Writer
from methods._making_method import Maker, MakingMethod, Part

__all__ = ["SelfPlay", "SelfPlayParams"]


class SelfPlayParams(MakingParams):
    """Settings of self-play."""

    dataset: str = Field("instructions", description="training set of kind instructions (prompt, completion)")


class SelfPlay(MakingMethod[SelfPlayParams]):
    """The demonstration as chosen, the policy's own sample as rejected.

    Left out and counted: samples that are `empty`, `unfinished`, or hold a special token (`special`), and those `equal`
    to the demonstration. Logged: `equal`, the share of the batch's samples that are.
    """

    name = "self_play"
    summary = "demonstrations preferred to the policy's own answers (SPIN)"
    paper = "Chen et al. 2024, arXiv:2401.01335"
    params = SelfPlayParams
    counted = (*MakingMethod.counted, "equal")
    dataset_kind = "instructions"
    makes = "preferences"

    def maker(self, inputs: Inputs, writer: Writer, params: SelfPlayParams, context: Context) -> Maker:
        """See `MakingMethod`."""
        counts = writer.tally.counts

        def make(prompts: Sequence[Prompt]) -> Part:
            answers = writer.write([p.ids for p in prompts])
            part, equal = Part(answers=answers), 0
            for prompt, answer in zip(prompts, answers, strict=True):
                shown = list(prompt.source["completion"])
                if problem := answer.problem():
                    counts[problem] += 1
                same = answer.text == spoken(shown).strip()
                equal += same
                kept = not same and not answer.problem(params.unfinished)
                if kept:
                    pair = {"chosen": shown, "rejected": [turn("assistant", answer.text)]}
                    part.rows.append((prompt.row, {**prompt.rest, "prompt": list(prompt.turns), **pair}))
                about = spoken(prompt.turns)
                part.records += [
                    Record(prompt.row, 0, "demonstration", about, spoken(shown), kept=kept),
                    Record(prompt.row, 1, "sample", about, answer.text, kept=kept),
                ]
            counts["equal"] += equal
            part.figures = {"equal": equal / len(prompts)}
            return part

        return make
