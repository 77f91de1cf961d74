"""What a local judge reads: its chat template around a question, with the proof that no text leaves its turn."""

from collections.abc import Sequence

from harness.errors import MeasurementError
from harness.measure.judge._answers import chat_ids
from harness.measure.judge._templates import TEMPLATES, chat_text, render
from harness.measure.judge._types import Question
from harness.method import LoadedModel

__all__ = ["asked", "start_of"]


def asked(
    judge: LoadedModel, question: Question, markers: Sequence[str], *, words: bool = False
) -> tuple[str, list[int]]:
    """A question as the judge reads it: text, and tokens.

    Raises:
        MeasurementError: a text would leave its turn.
    """
    tokenizer = judge.tokenizer
    nothing = dict.fromkeys(TEMPLATES[question.template].places, "")
    text, plain = (
        chat_text(tokenizer, render(question.template, texts, markers, words=words))
        for texts in (question.texts, nothing)
    )
    ids, special = chat_ids(tokenizer, text), set(tokenizer.all_special_ids)
    # The proof that nothing broke out: the special tokens are those of the same question about empty texts.
    if [i for i in ids if i in special] != [i for i in chat_ids(tokenizer, plain) if i in special]:
        raise MeasurementError(f"a text would break out of the judge's chat turn: {start_of(question)!r}")
    return text, ids


def start_of(question: Question) -> str:
    """The beginning of the prompt that a question is about, to name it by."""
    return question.texts["prompt"][:60]
