"""Verifiable rewards: what a function can tell of a response, in place of a model that was trained to.

A verifier is called with the prompt's turns, the response's text and the prompt's whole row, and gives a finite number.
It is named in a suite: one of these two, or `package.module:function`. Its attribute `version` stands for what it
computes; raise it whenever the same response would score otherwise.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Protocol

from harness.gold import gold_reward, parse_constraints
from harness.method import Turns

__all__ = ["VERIFIERS", "Verifier", "constraints", "final_answer", "number_in"]

_NUMBER = re.compile(r"(?:(?<!\w)-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?: ?/ ?\d+)?|\.\d+)")
_FRACTION = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_LONGEST = 100
"""Digits of a number that is read; a model may write any number of them."""
_MARKED = re.compile(r"####\s*([^\n]*)")


class Verifier(Protocol):
    """Scores one response."""

    def __call__(self, prompt: Turns, response: str, row: Mapping[str, object], /) -> float:
        """The reward; higher is better."""


def constraints(prompt: Turns, response: str, row: Mapping[str, object]) -> float:
    """The mean satisfaction of the constraints in the row's column `constraints`, 0 to 1 (`harness.gold`).

    Raises:
        ValueError: the row has none, or they cannot be read.
    """
    given = row.get("constraints")
    if not isinstance(given, str):
        raise ValueError("it has no column constraints; the bundled set `prompts` has one")
    return gold_reward(response, parse_constraints(given))


def final_answer(prompt: Turns, response: str, row: Mapping[str, object]) -> float:
    r"""1 where the response's final number equals that of the row's column `answer`, else 0.

    The final number is the one in the last `\boxed{…}`, else after the last `####` (as GSM8K marks it, Cobbe et al.
    2021, arXiv:2110.14168), else the last one of the text; 1,000 and 1000.0 are equal.

    Raises:
        ValueError: the row has no `answer` with a number in it.
    """
    given = row.get("answer")
    wanted = number_in(str(given)) if isinstance(given, str | int | float) and not isinstance(given, bool) else None
    if wanted is None:
        raise ValueError("its column answer holds no number; final_answer compares with one, such as 42 or #### 42")
    return float(number_in(response) == wanted)


def number_in(text: str) -> Fraction | None:
    r"""The final number of a text, exactly; None where there is none."""
    for place in (_boxed(text), _last(_MARKED, text), text):
        found = _NUMBER.findall(_FRACTION.sub(r"\1/\2", place))
        if found:
            return _value(found[-1])
    return None


def _last(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.findall(text)
    return str(found[-1]) if found else ""


def _boxed(text: str) -> str:
    _, mark, rest = text.rpartition("\\boxed{")
    # Braces may be nested: \boxed{\text{42}}. What is never closed runs to the end of the line.
    depth = 1
    for place, letter in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[:place]
    return rest.partition("\n")[0] if mark else ""


def _value(number: str) -> Fraction | None:
    if len(number) > _LONGEST:
        return None
    above, _, below = number.replace(",", "").replace(" ", "").partition("/")
    if below and int(below) == 0:
        return None
    return Fraction(above) / int(below or 1)


constraints.version = 1  # type: ignore[attr-defined]  # a function's own attribute
final_answer.version = 1  # type: ignore[attr-defined]  # the same

VERIFIERS: Mapping[str, Verifier] = {"constraints": constraints, "final_answer": final_answer}
"""The verifiers that a suite may name as they are."""
