"""A model of ours as the judge, in words: it says why, and ends with its verdict, which is read strictly.

What a model of some size says can be looked at, and argued with; a small one is better asked for probabilities
(`_local`), since it seldom ends as it is told to, and every such reply is `unparsed`.
"""

from collections.abc import Callable, Sequence

from harness.measure.judge._answers import check_length, check_template, written
from harness.measure.judge._asking import asked, start_of
from harness.measure.judge._reply import word_votes
from harness.measure.judge._templates import turn_markers
from harness.measure.judge._types import Keep, Question, Verdict
from harness.method import LoadedModel

__all__ = ["SpeakingVoter"]


class SpeakingVoter:
    """A judge that is a loaded model and answers in words, greedily, in batches.

    Args:
        judge: with a chat template.
        name: as the suite calls it.
        key: of its artifact and the length of its replies.
        max_tokens: of a reply.
        tokens: of a forward pass at most; None: what suits the device.
    """

    def __init__(self, judge: LoadedModel, name: str, key: str, max_tokens: int, tokens: int | None = None) -> None:
        self.name = name
        self.key = key
        self._judge = judge
        self._max_tokens = max_tokens
        self._tokens = tokens

    def vote(
        self,
        questions: Sequence[Question],
        keep: Keep | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        """See `Voter`. A reply that holds no verdict has the verdict None.

        Raises:
            UserError: a judge without a chat template, or text longer than it reads.
            MeasurementError: a text would leave its turn.
        """
        check_template(self._judge)
        markers = turn_markers(self._judge.tokenizer)
        put = [asked(self._judge, question, markers, words=True) for question in questions]
        for question, (_, ids) in zip(questions, put, strict=True):
            check_length(self._judge, len(ids) + self._max_tokens, f"judging the answer to {start_of(question)!r}")
        replies = written(self._judge, [ids for _, ids in put], self._max_tokens, progress, self._tokens)
        verdicts = []
        for index, (question, (text, _), reply) in enumerate(zip(questions, put, replies, strict=True)):
            verdict, score, _ = word_votes(question.template, reply.text)
            verdicts.append(Verdict(verdict, score, text, words=reply.text))
            if keep is not None:
                keep(index, verdicts[-1])
        return verdicts
