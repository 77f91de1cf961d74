"""The verifiable gold reward: how far a response meets the checkable constraints of its instruction.

A learned reward model is a proxy; this score is the truth it stands for. The gap between the two, as a policy is
optimised, is reward over-optimisation (Gao et al. 2023, "Scaling Laws for Reward Model Overoptimization",
arXiv:2210.10760). Constraints in the manner of IFEval (Zhou et al. 2023, arXiv:2311.07911).
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence

__all__ = ["CONSTRAINT_KINDS", "describe", "gold_reward", "parse_constraints"]

Constraint = Mapping[str, object]

_WORD = re.compile(r"[A-Za-z0-9']+")
_CONTRACTION = re.compile(r"\b\w+'(?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number as the constraint's value, got {value!r}")
    return value


def _max_words(text: str, value: object) -> float:
    limit = _number(value)
    return max(0.0, 1.0 - max(0, len(_words(text)) - limit) / limit)


def _min_words(text: str, value: object) -> float:
    return min(1.0, len(_words(text)) / _number(value))


def _include(text: str, value: object) -> float:
    return float(str(value).lower() in {word.lower() for word in _words(text)})


def _end_with(text: str, value: object) -> float:
    return float(text.rstrip().endswith(str(value)))


def _start_with(text: str, value: object) -> float:
    return float(text.lstrip().startswith(str(value)))


def _lowercase(text: str, value: object) -> float:
    letters = [c for c in text if c.isalpha()]
    return float(bool(letters) and not any(c.isupper() for c in letters))


def _bullets(text: str, value: object) -> float:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wanted = _number(value)
    if not lines or not all(line.startswith("- ") for line in lines):
        return 0.0
    return max(0.0, 1.0 - abs(len(lines) - wanted) / wanted)


def _no_comma(text: str, value: object) -> float:
    return float("," not in text)


def _formal(text: str, value: object) -> float:
    return float(not _CONTRACTION.search(text) and "!" not in text)


CONSTRAINT_KINDS: dict[str, tuple[Callable[[str, object], float], str]] = {
    "max_words": (_max_words, "Use at most {value} words."),
    "min_words": (_min_words, "Use at least {value} words."),
    "include": (_include, 'Include the word "{value}".'),
    "end_with": (_end_with, 'End your answer with "{value}".'),
    "start_with": (_start_with, 'Start your answer with "{value}".'),
    "lowercase": (_lowercase, "Write everything in lowercase letters."),
    "bullets": (_bullets, 'Answer with exactly {value} lines, each starting with "- ".'),
    "no_comma": (_no_comma, "Do not use any commas."),
    "formal": (_formal, "Use a formal tone: no contractions and no exclamation marks."),
}
"""Each kind: the check, `(response, value) -> [0, 1]`, and the sentence that asks for it."""


def parse_constraints(text: str) -> list[dict[str, object]]:
    """Read the `constraints` column: a JSON list of `{"kind": …, "value": …}`.

    Raises:
        ValueError: not such a list, or a kind this version does not know.
    """
    parsed = json.loads(text)
    if not isinstance(parsed, list) or not parsed:
        raise ValueError(f"constraints: expected a non-empty JSON list, got {text[:80]!r}")
    for item in parsed:
        if not isinstance(item, dict) or item.get("kind") not in CONSTRAINT_KINDS:
            raise ValueError(f"constraints: expected kinds of {sorted(CONSTRAINT_KINDS)}, got {item!r}")
    return parsed


def describe(constraint: Constraint) -> str:
    """The sentence of an instruction that states this constraint."""
    return CONSTRAINT_KINDS[str(constraint["kind"])][1].format(value=constraint.get("value"))


def gold_reward(response: str, constraints: Sequence[Constraint]) -> float:
    """Mean satisfaction of the constraints, in [0, 1]; an empty response scores 0.

    Shape: one response, its constraints. Constraints that a near-empty response meets for nothing (a length limit, a
    missing comma) need at least three words, so that saying nothing is never the optimum.
    """
    if not constraints:
        raise ValueError("gold_reward needs at least one constraint")
    if len(_words(response)) < 3:
        return 0.0
    scores = [CONSTRAINT_KINDS[str(c["kind"])][0](response, c.get("value")) for c in constraints]
    return sum(scores) / len(scores)
