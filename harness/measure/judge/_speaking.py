"""A model of ours as the judge, in words: it says why, and ends with its verdict, which is read strictly.

What a model of some size says can be looked at, and argued with; a small one is better asked for probabilities
(`_local`), since it seldom ends as it is told to, and every such reply is `unparsed`.
"""

from collections.abc import Callable, Sequence

from harness.errors import MeasurementError
from harness.measure.judge._answers import chat_ids, check_length, check_template, written
from harness.measure.judge._reply import word_votes
from harness.measure.judge._templates import TEMPLATES, chat_text, render, turn_markers
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
        texts = [self._asked(question, markers) for question in questions]
        contexts = [chat_ids(self._judge.tokenizer, text) for text in texts]
        for question, ids in zip(questions, contexts, strict=True):
            what = f"judging the answer to {question.texts['prompt'][:60]!r}"
            check_length(self._judge, len(ids) + self._max_tokens, what)
        replies = written(self._judge, contexts, self._max_tokens, progress, self._tokens)
        verdicts = []
        for index, (question, text, reply) in enumerate(zip(questions, texts, replies, strict=True)):
            verdict, score, _ = word_votes(question.template, reply.text)
            verdicts.append(Verdict(verdict, score, text, words=reply.text))
            if keep is not None:
                keep(index, verdicts[-1])
        return verdicts

    def _asked(self, question: Question, markers: Sequence[str]) -> str:
        tokenizer = self._judge.tokenizer
        nothing = dict.fromkeys(TEMPLATES[question.template].places, "")
        text, plain = (
            chat_text(tokenizer, render(question.template, texts, markers, words=True))
            for texts in (question.texts, nothing)
        )
        special = set(tokenizer.all_special_ids)
        # As in `_local`: the special tokens are those of the same question about empty texts.
        kept, wanted = ([i for i in chat_ids(tokenizer, t) if i in special] for t in (text, plain))
        if kept != wanted:
            raise MeasurementError(
                f"a text would break out of the judge's chat turn: {question.texts['prompt'][:60]!r}"
            )
        return text
