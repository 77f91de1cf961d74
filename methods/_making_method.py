"""The run of every method that makes data: prompts batch by batch, what comes of each, what is logged and counted."""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from harness.errors import UserError
from harness.method import Context, DatasetKind, Inputs, Made, Method, Record
from methods._making import MakingParams, Prompt, Tally, Text, Writer, take_prompts

__all__ = ["Maker", "MakingMethod", "Part"]

P = TypeVar("P", bound=MakingParams)


@dataclass
class Part:
    """What came of a batch of prompts."""

    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """(prompt's number, row of the dataset)."""
    records: list[Record] = field(default_factory=list)
    answers: list[Text] = field(default_factory=list)
    """What the policy said to the prompts: its length and ends are logged."""
    figures: dict[str, float] = field(default_factory=dict)
    """Logged beside them."""


Maker = Callable[[Sequence[Prompt]], Part]


class MakingMethod(Method[P]):
    """A method that lets the policy answer prompts and makes a dataset of what it says.

    Logged for each batch of prompts (training_steps): `rows` (of the dataset so far), `length` (tokens of an answer,
    the end token included), `eos_fraction` (answers that ended before the length limit), and what the method adds.
    """

    needs = frozenset({"policy"})
    dataset_kind: ClassVar[DatasetKind | None] = "prompts"
    produces = "dataset"
    version = 2
    counted: ClassVar[tuple[str, ...]] = ("empty", "unfinished", "special")
    """What it counts of the texts and pairs that it leaves out: a metric each, 0 where there was none."""
    advice: ClassVar[str] = "raise max_new_tokens, so that answers end, or take more prompts"
    """What to change where nothing usable was written."""

    @abstractmethod
    def maker(self, inputs: Inputs, writer: Writer, params: P, context: Context) -> Maker:
        """What treats one batch of prompts, with all models at hand."""

    def answers_each(self, params: P) -> int:
        """How many answers each prompt gets."""
        return 1

    def run(self, inputs: Inputs, params: P, context: Context) -> Made:
        """Make the dataset.

        Raises:
            UserError: no dataset, no prompt that fits, or nothing usable was written.
            InfeasibleError: logits or rewards that are not finite.
            PrunedError: past the deadline.
        """
        tally = Tally()
        writer = Writer(inputs, params, context, tally)
        prompts = take_prompts(inputs, writer, params, context, self.name)
        make = self.maker(inputs, writer, params, context)
        batches = list(_batches(prompts, max(1, params.batch_size // self.answers_each(params))))
        rows: list[tuple[int, dict[str, Any]]] = []
        records: list[Record] = []
        for done, batch in enumerate(batches, start=1):
            context.check()
            part = make(batch)
            rows += part.rows
            records += part.records
            context.log(done, len(batches), {"rows": float(len(rows)), **_of_answers(part.answers), **part.figures})
        metrics = {**dict.fromkeys(self.counted, 0.0), **tally.metrics(), "rows": float(len(rows))}
        if not rows:
            counted = ", ".join(f"{name} {metrics[name]:g}" for name in self.counted)
            raise UserError(f"{self.name} made no row of {len(prompts)} prompts ({counted}); {self.advice}")
        rows.sort(key=lambda one: one[0])
        records.sort(key=lambda one: (one.row, one.turn))
        return Made([row for _, row in rows], records, metrics)


def _batches(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Prompts of like length together: little padding. The longest first: what does not fit in memory shows early."""
    ordered = iter(sorted(prompts, key=lambda p: (-len(p.ids), p.row)))
    while batch := list(itertools.islice(ordered, size)):
        yield batch


def _of_answers(answers: Sequence[Text]) -> dict[str, float]:
    if not answers:
        return {}
    return {
        "length": sum(len(a.ids) for a in answers) / len(answers),
        "eos_fraction": sum(a.ended for a in answers) / len(answers),
    }
