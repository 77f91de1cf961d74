"""What a measurement records of its requests, so that the validity gates know it rather than guess it from answers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Fewshot", "Requests", "fewshot_of"]


@dataclass
class Requests:
    """A row of the table `requests` but for the measurement's key; None: not known, or there is none.

    `requests` counts what the model was asked (a request for each choice, or each text to be continued) and `truncated`
    those of which the beginning was cut to fit the window, by `most_cut` tokens at most. `at_limit` of the `generated`
    answers ended only at the token limit. `choices` is the commonest number of choices of a document, `other_choices`
    the number of each document that has another.
    """

    requests: int = 0
    truncated: int = 0
    most_cut: int = 0
    generated: int = 0
    at_limit: int | None = 0
    num_fewshot: int | None = None
    fewshot_pool: int | None = None
    fewshot_split: str | None = None
    fewshot_fixed: bool | None = None
    fewshot_measured: bool | None = None
    choices: int | None = None
    other_choices: dict[str, int] | None = None

    def cut(self, tokens: int) -> None:
        """Count a request that was this many tokens too long; 0 or less: it fitted."""
        self.requests += 1
        self.truncated += tokens > 0
        self.most_cut = max(self.most_cut, tokens)

    def wrote(self, *, ended: bool) -> None:
        """Count an answer: ended by itself, or by the token limit."""
        self.generated += 1
        if self.at_limit is not None:
            self.at_limit += not ended

    def shown(self, fewshot: "Fewshot") -> None:
        """Put down the examples of the prompts."""
        self.num_fewshot, self.fewshot_pool, self.fewshot_split = fewshot.shots, fewshot.pool, fewshot.split
        self.fewshot_fixed, self.fewshot_measured = fewshot.fixed, fewshot.measured

    def chose(self, counts: Mapping[str, int]) -> None:
        """Put down the choices: document → how many it has."""
        if counts:
            self.choices = Counter(counts.values()).most_common(1)[0][0]
            self.other_choices = {document: n for document, n in counts.items() if n != self.choices}

    def row(self) -> dict[str, object]:
        """The row, ready to be stored."""
        return asdict(self)


@dataclass(frozen=True)
class Fewshot:
    """The examples of a task's prompts: how many of how many, and where they are from.

    `split` is None where the task brings examples of its own. `fixed`: which are shown is part of the task's
    definition, not drawn. `measured`: they are from the split whose documents are measured.
    """

    shots: int
    pool: int
    split: str | None
    fixed: bool
    measured: bool


def fewshot_of(task: Any, shots: int) -> Fewshot:  # noqa: ANN401 (lm-eval's Task)
    """The examples of an lm-eval task whose prompts show `shots` of them."""
    config, own = task.config, task.fewshot_cfg
    given = own.split is None and own.samples is not None
    # The order in which lm-eval looks for examples where a task names no split for them.
    split = own.split or config.training_split or config.validation_split or config.test_split
    return Fewshot(
        shots=shots,
        pool=len(task.fewshot_docs() or []),
        split=None if given else split,
        fixed=given or own.sampler == "first_n",
        measured=not given and split == (config.test_split or config.validation_split),
    )
