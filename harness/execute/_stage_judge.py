"""The judge of a stage: a model that rates answers, or says which of two is better, for those who make data or learn.

It asks what a judge of `measure.judge` is asked, by the same templates, and is trusted no more than that one.
"""

from collections.abc import Sequence

from harness._turns import spoken
from harness.errors import MeasurementError
from harness.measure.judge import Question, Voter
from harness.method import Turns

__all__ = ["StageJudge"]


_MIDDLE = 5.5
"""Of the ratings from 1 to 10: what an answer gets of a judge whose words held no verdict."""


class StageJudge:
    """See `harness.method.Judge`. Words without a verdict say nothing: a tie, or the middle; how many is counted."""

    def __init__(self, voter: Voter) -> None:
        self._voter = voter
        self.name = voter.name
        self.asked = self.unparsed = 0

    def rate(self, asked: Sequence[tuple[Turns, str]]) -> list[float]:
        """See `Judge`."""
        return self._scores([_rating(prompt, response) for prompt, response in asked], _MIDDLE)

    def prefer(self, asked: Sequence[tuple[Turns, str, str]], principles: Sequence[str] | None = None) -> list[float]:
        """See `Judge`."""
        by = list(principles) if principles is not None else [""] * len(asked)
        questions = [
            _comparison(prompt, *answers, principle)
            for (prompt, one, other), principle in zip(asked, by, strict=True)
            for answers in ((one, other), (other, one))
        ]
        scores = self._scores(questions, 0.5)
        return [(scores[i] + 1.0 - scores[i + 1]) / 2.0 for i in range(0, len(scores), 2)]

    def _scores(self, questions: Sequence[Question], unsaid: float) -> list[float]:
        found = [verdict.score for verdict in self._voter.vote(questions)]
        self.asked += len(found)
        self.unparsed += (silent := found.count(None))
        if found and silent == len(found):
            raise MeasurementError(f"the judge {self.name} gave no verdict in any of {silent} replies")
        return [unsaid if score is None else score for score in found]


def _rating(prompt: Turns, response: str) -> Question:
    asked = {"prompt": prompt[-1]["content"], "response": response}
    if len(prompt) == 1:
        return Question("helpfulness", asked)
    return Question("multi_turn", {"history": spoken(prompt[:-1]), **asked})


def _comparison(prompt: Turns, first: str, second: str, principle: str) -> Question:
    texts = {"prompt": spoken(prompt), "first": first, "second": second}
    return Question("principle", {"principle": principle, **texts}) if principle else Question("pair", texts)
