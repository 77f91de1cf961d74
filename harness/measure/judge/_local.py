"""A model of ours as the judge: verdicts by the probabilities that it gives to them.

A small judge cannot be trusted to print a number, so none is printed: the score is the expectation over the
probabilities it gives to the verdicts (Liu et al. 2023, "G-Eval", arXiv:2303.16634), renormalised over those allowed.
How much probability they had before (`mass`) is kept: a small mass means that the judge did not understand what it was
asked. What a judge says is worth what its agreement with people is: the bundled 135M model tells a sensible answer from
gibberish to the same question, on a narrow scale (means 5.8 and 5.4 over 16 pairs that its template was not chosen on),
and that is all that has been shown of it. Which of two answers is better it cannot say (`_pairs`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import MeasurementError, UserError
from harness.measure.judge._answers import chat_ids, check_length, check_template
from harness.measure.judge._asking import asked, start_of
from harness.measure.judge._templates import TEMPLATES, Template, chat_text, turn_markers
from harness.measure.judge._types import Keep, Question, Verdict
from harness.method import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LocalVoter"]


@dataclass(frozen=True)
class _Asked:
    template: Template
    text: str
    ids: list[int]
    tails: list[list[int]]


class LocalVoter:
    """A judge that is a loaded model.

    Args:
        judge: with a chat template.
        name: as the suite calls it.
        key: of its artifact.
        tokens: of a forward pass at most; None: what suits the device.
    """

    def __init__(self, judge: LoadedModel, name: str, key: str, tokens: int | None = None) -> None:
        self.name = name
        self.key = key
        self._judge = judge
        self._tokens = tokens

    def vote(
        self,
        questions: Sequence[Question],
        keep: Keep | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        """See `Voter`. Every question gets a verdict; `asked` is what the model read, special tokens included.

        Raises:
            UserError: a judge without a chat template, or text longer than it reads.
            MeasurementError: a probability is not finite or all are zero, or a text would leave its turn.
        """
        from harness.measure.scoring import Engine

        check_template(self._judge)
        markers = turn_markers(self._judge.tokenizer)
        put = [self._ask(question, markers) for question in questions]
        # The engine computes what questions share (criteria, examples) once, and projects the rated tokens only.
        pairs: list[tuple[Any, int]] = [(a.ids + tail, len(tail)) for a in put for tail in a.tails]

        def told(done: int, total: int) -> None:
            if progress is not None:
                progress(done * len(put) // total, len(put))

        scored = iter(Engine(self._judge.model, self._tokens).score(pairs, told))
        verdicts = []
        for index, one in enumerate(put):
            verdicts.append(_verdict(one, [next(scored)[0] for _ in one.tails]))
            if keep is not None:
                keep(index, verdicts[-1])
        return verdicts

    def _ask(self, question: Question, markers: Sequence[str]) -> _Asked:
        tokenizer = self._judge.tokenizer
        template = TEMPLATES[question.template]
        text, ids = asked(self._judge, question, markers)
        end = _turn_end(tokenizer) if template.closed else ""
        spellings = [s + end for _, words in template.verdicts.values() for s in words]
        tails = _tails(tokenizer, text, ids, spellings)
        check_length(self._judge, len(ids) + max(map(len, tails)), f"judging the answer to {start_of(question)!r}")
        return _Asked(template, text, ids, tails)


def _turn_end(tokenizer: "PreTrainedTokenizerBase") -> str:
    # What the template writes after an assistant's words: its first token is how the judge ends its turn.
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "\u0001"}]
    after = chat_ids(tokenizer, chat_text(tokenizer, chat, opened=False).rpartition("\u0001")[2])
    end: str | None = tokenizer.decode(after[:1]) if after else tokenizer.eos_token
    if not end:
        raise UserError("judge: neither its chat template nor its tokenizer says how the judge ends a turn")
    return end


def _tails(
    tokenizer: "PreTrainedTokenizerBase", text: str, ids: list[int], spellings: Sequence[str]
) -> list[list[int]]:
    # Tokenised together with what stands before it: alone, some tokenizers would put a space in front.
    tails = []
    for spelling in spellings:
        whole = chat_ids(tokenizer, text + spelling)
        if whole[: len(ids)] != ids or len(whole) == len(ids):
            raise MeasurementError(f"the judge's tokenizer merges {spelling!r} with the prompt before it: not scorable")
        tails.append(whole[len(ids) :])
    return tails


def _verdict(asked: _Asked, logs: Sequence[float]) -> Verdict:
    highest = max(logs)
    if not math.isfinite(highest):
        raise MeasurementError(f"the judge gives no verdict any probability: {logs}")
    values = iter(logs)
    verdicts = asked.template.verdicts
    # Relative to the likeliest: the verdicts of a judge that would rather say something else must not underflow.
    weights = {v: sum(math.exp(next(values) - highest) for _ in words) for v, (_, words) in verdicts.items()}
    total = sum(weights.values())
    shares = {v: w / total for v, w in weights.items()}
    return Verdict(
        verdict=max(shares, key=lambda v: shares[v]),
        score=sum(p * verdicts[v][0] for v, p in shares.items()),
        asked=asked.text,
        probabilities={**shares, "mass": total * math.exp(highest)},
    )
