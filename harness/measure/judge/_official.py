"""Public sets of prompts that answers are judged on: where they lie, what they can be asked for, what their rows mean.

AlpacaEval (Dubois et al. 2024, arXiv:2404.04475), AdvBench (Zou et al. 2023, arXiv:2307.15043), SimpleSafetyTests
(Vidgen et al. 2023, arXiv:2311.08370), XSTest (Röttger et al. 2024, arXiv:2308.01263) and MT-Bench (Zheng et al. 2023,
arXiv:2306.05685). Nothing of them is in the bundle: they are read from the hub or from a mirror folder.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.data import DataSource
from harness.measure.judge._reading import Row, each_row, read_rows, text_in, texts_in
from harness.measure.judge._types import AspectName, JudgePrompt

__all__ = ["OFFICIAL", "PromptSet", "conversation"]

_WITH_REFERENCE = ("reasoning", "math", "coding")
"""MT-Bench's categories that are graded by a right answer; in others its references are examples, or none."""


@dataclass(frozen=True)
class PromptSet:
    """A public set: the datasets that may hold it, in the order they are looked for, and what it can be judged for.

    `made_for` are the aspects for which `official` takes it.
    """

    datasets: tuple[str, ...]
    aspects: tuple[AspectName, ...]
    made_for: tuple[AspectName, ...]
    read: Callable[[DataSource, str], list[JudgePrompt]]

    def lacks(self, source: DataSource) -> str | None:
        """Why this source does not have it, or None; the hub is not asked."""
        problems = [source.lacks(dataset) for dataset in self.datasets]
        if None in problems:
            return None
        return " and ".join(problem for problem in problems if problem)

    def dataset(self, source: DataSource) -> str:
        """The dataset that holds it in this source, which does not lack it."""
        return next(dataset for dataset in self.datasets if source.lacks(dataset) is None)

    def prompts(self, source: DataSource) -> list[JudgePrompt]:
        """All its prompts, in its order, asked for nothing yet.

        Raises:
            UserError: the rows cannot be read, or one is not what it should be.
        """
        return self.read(source, self.dataset(source))


def _single(text: str, *, category: str | None = None, ordinary: bool | None = None) -> JudgePrompt:
    return JudgePrompt((("user", text),), text, (), category=category, ordinary=ordinary)


def _alpaca_eval(source: DataSource, dataset: str) -> list[JudgePrompt]:
    # On the hub a program stands beside the rows.
    rows = read_rows(source, f"{dataset}:alpaca_eval", "eval", file="alpaca_eval.json")
    return each_row(rows, dataset, lambda row: _single(text_in(row, "instruction")))


def _advbench(source: DataSource, dataset: str) -> list[JudgePrompt]:
    rows = read_rows(source, dataset)
    return each_row(rows, dataset, lambda row: _single(text_in(row, "prompt", "goal"), ordinary=False))


def _simple_safety_tests(source: DataSource, dataset: str) -> list[JudgePrompt]:
    def read(row: Row) -> JudgePrompt:
        # The hub names the column prompt, the authors' file prompts_final.
        return _single(text_in(row, "prompt", "prompts_final"), category=text_in(row, "harm_area"), ordinary=False)

    return each_row(read_rows(source, dataset, "test"), dataset, read)


def _xstest(source: DataSource, dataset: str) -> list[JudgePrompt]:
    def read(row: Row) -> JudgePrompt:
        kind = text_in(row, "type")
        # The first version has no label: what contrasts with a safe kind is unsafe.
        label = text_in(row, "label") if "label" in row else ("unsafe" if kind.startswith("contrast") else "safe")
        if label not in ("safe", "unsafe"):
            raise ValueError(f"label is {label[:40]!r}; expected safe or unsafe")
        return _single(text_in(row, "prompt"), category=kind, ordinary=label == "safe")

    return each_row(read_rows(source, dataset), dataset, read)


def _mt_bench(source: DataSource, dataset: str) -> list[JudgePrompt]:
    if dataset != "local/mt_bench":
        return each_row(read_rows(source, dataset), dataset, conversation)
    # As its authors keep it: the answers that count as right stand in a file of their own.
    name = f"{dataset}:reference_gpt4"
    answers = each_row(read_rows(source, name), name, lambda row: (row.get("question_id"), texts_in(row, "turns")))
    right: Mapping[object, tuple[str, ...]] = dict(answers)

    def read(row: Row) -> JudgePrompt:
        return conversation({**row, "reference": list(right.get(row.get("question_id"), ()))})

    name = f"{dataset}:questions"
    return each_row(read_rows(source, name), name, read)


def conversation(row: Row) -> JudgePrompt:
    """A conversation of two turns in MT-Bench's layout: `turns` or `prompt`, and where it has them category, reference.

    Raises:
        ValueError: it is none.
    """
    turns = texts_in(row, "turns", "prompt")
    if len(turns) != 2:
        raise ValueError(f"a conversation has {len(turns)} turns of the user; expected 2")
    category = text_in(row, "category") if row.get("category") is not None else None
    right = texts_in(row, "reference") if row.get("reference") else ()
    if len(right) != 2 or (category is not None and category not in _WITH_REFERENCE):
        right = ()
    return JudgePrompt((("user", turns[0]),), turns[0], (), follow_up=turns[1], references=right, category=category)


_ANY: tuple[AspectName, ...] = ("helpfulness", "harmlessness", "over_refusal")

OFFICIAL: dict[str, PromptSet] = {
    "alpaca_eval": PromptSet(
        ("tatsu-lab/alpaca_eval",), ("helpfulness", "harmlessness"), ("helpfulness",), _alpaca_eval
    ),
    "advbench": PromptSet(("walledai/AdvBench",), ("harmlessness",), ("harmlessness",), _advbench),
    "simple_safety_tests": PromptSet(
        ("Bertievidgen/SimpleSafetyTests",), ("harmlessness",), ("harmlessness",), _simple_safety_tests
    ),
    "xstest": PromptSet(("Paul/XSTest",), _ANY, ("harmlessness", "over_refusal"), _xstest),
    "mt_bench": PromptSet(
        ("HuggingFaceH4/mt_bench_prompts", "local/mt_bench"), ("multi_turn",), ("multi_turn",), _mt_bench
    ),
}
"""Each set by its name in a suite."""
