"""The judge of a stage: a model that rates answers, or says which of two is better, for those who make data or learn.

It asks what a judge of `measure.judge` is asked, by the same templates, and is trusted no more than that one.
"""

from collections.abc import Sequence

from harness.errors import MeasurementError
from harness.execute._spec import StageSpec
from harness.measure.judge import LocalVoter, Question, text_of_chat
from harness.method import LoadedModel, Turns

__all__ = ["StageJudge"]


class StageJudge:
    """See `harness.method.Judge`."""

    def __init__(self, judge: LoadedModel, spec: StageSpec) -> None:
        self.name = str(spec.params.get("judge"))
        judge.model.eval()
        self._voter = LocalVoter(judge, self.name, spec.inputs["judge"])

    def rate(self, asked: Sequence[tuple[Turns, str]]) -> list[float]:
        """See `Judge`."""
        return self._scores([_rating(prompt, response) for prompt, response in asked])

    def prefer(self, asked: Sequence[tuple[Turns, str, str]], principles: Sequence[str] | None = None) -> list[float]:
        """See `Judge`."""
        by = list(principles) if principles is not None else [""] * len(asked)
        questions = [
            _comparison(prompt, *answers, principle)
            for (prompt, one, other), principle in zip(asked, by, strict=True)
            for answers in ((one, other), (other, one))
        ]
        scores = self._scores(questions)
        return [(scores[i] + 1.0 - scores[i + 1]) / 2.0 for i in range(0, len(scores), 2)]

    def _scores(self, questions: Sequence[Question]) -> list[float]:
        verdicts = self._voter.vote(questions)
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        if len(scores) < len(questions):
            raise MeasurementError(
                f"the judge {self.name} gave {len(questions) - len(scores)} answers without a verdict"
            )
        return scores


def _rating(prompt: Turns, response: str) -> Question:
    asked = {"prompt": prompt[-1]["content"], "response": response}
    if len(prompt) == 1:
        return Question("helpfulness", asked)
    return Question("multi_turn", {"history": _written(prompt[:-1]), **asked})


def _comparison(prompt: Turns, first: str, second: str, principle: str) -> Question:
    texts = {"prompt": _written(prompt), "first": first, "second": second}
    return Question("principle", {"principle": principle, **texts}) if principle else Question("pair", texts)


def _written(turns: Turns) -> str:
    return text_of_chat([(turn["role"], turn["content"]) for turn in turns])
