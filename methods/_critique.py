"""How a model is asked to criticise an answer and to write a better one (Bai et al. 2022, arXiv:2212.08073, section 3).

The two are separate dialogues, each opened by whole examples: a small model follows turns that it can imitate, and in
one dialogue it would repeat its criticism in place of the answer. The request stands last before the revision, so that
what follows answers it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from harness._turns import spoken, turn
from harness.method import Turns
from methods._constitution import Example, Principle
from methods._making import Text

__all__ = ["Critic", "request", "without_labels"]

_CRITIQUE = "Request: {prompt}\n\nAnswer: {answer}\n\n{asked}"
_REVISION = "First answer: {answer}\n\nCriticism: {critique}\n\n{asked}\n\nRequest: {prompt}"
_LABELS = re.compile(r"\n+\s*(?:Request|Answer|First answer|Criticism|New answer):")
_OWN_LABEL = re.compile(r"^(?:Criticism|Answer|New answer|Revision):\s*")


class Critic:
    """The dialogues in which one model criticises and revises, opened by these examples."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._critiques: list[dict[str, str]] = []
        self._revisions: list[dict[str, str]] = []
        for one in examples:
            about = {"prompt": one.prompt, "answer": one.answer}
            asked = _CRITIQUE.format(**about, asked=one.critique_request)
            self._critiques += [turn("user", asked), turn("assistant", one.critique)]
            asked = _REVISION.format(**about, critique=one.critique, asked=one.revision_request)
            self._revisions += [turn("user", asked), turn("assistant", one.revision)]

    def critique(self, prompt: str, answer: str, principle: Principle) -> Turns:
        """Asks what is wrong with an answer."""
        asked = _CRITIQUE.format(prompt=prompt, answer=answer, asked=principle.critique)
        return [*self._critiques, turn("user", asked)]

    def revision(self, prompt: str, answer: str, critique: str, principle: Principle) -> Turns:
        """Asks for a better answer."""
        asked = _REVISION.format(prompt=prompt, answer=answer, critique=critique, asked=principle.revision)
        return [*self._revisions, turn("user", asked)]


def request(turns: Turns) -> str:
    """What was asked, as a critic sees it: a system message stands before the only question without labels.

    Small models begin their revisions with the labels that they see.
    """
    if [t["role"] for t in turns] == ["system", "user"]:
        return "\n\n".join(t["content"] for t in turns)
    return spoken(turns)


def without_labels(written: Text) -> Text:
    """What was written, without a label before it and without what a model went on to write under the next label.

    A text that was cut there has ended, whatever became of the rest.
    """
    text = _OWN_LABEL.sub("", written.text)
    head = _LABELS.split(text, maxsplit=1)[0].strip()
    return replace(written, text=head, ended=written.ended or head != text.strip())
