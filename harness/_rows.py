"""Rows of a dataset in TRL's conversational columns: what the common layouts mean, and which row is wrong how."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness._turns import turn
from harness.errors import UserError
from harness.method import DatasetKind

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["rows_of_kind"]

Turn = dict[str, str]

_COLUMNS = {
    "instructions": "prompt+completion, messages, or instruction+output",
    "preferences": "chosen+rejected, with prompt or without",
    "prompts": "prompt, instruction or question",
    "text": "text",
}
_ASKED = ("prompt", "instruction", "question")
"""The columns that a prompt may stand in; the first that is there counts."""


def rows_of_kind(rows: "Dataset", kind: DatasetKind, name: str) -> "Dataset":
    """The rows as this kind has them (`harness.method.Inputs`).

    Raises:
        UserError: the columns do not make the kind, or a row does not, with its number (from 1).
    """
    import datasets

    converted = []
    for number, row in enumerate(rows, start=1):
        try:
            new = _row(row, kind)
        except ValueError as error:
            if number == 1 and not _has_columns(row, kind):
                raise UserError(
                    f"dataset {name!r}: its columns {', '.join(row)} do not make {kind}; expected {_COLUMNS[kind]}"
                ) from error
            raise UserError(f"dataset {name!r}, row {number}: {error}; mend or remove the row") from error
        if new is not None:
            if kind == "prompts":
                new = {**_further(row), **new}
            elif isinstance(row.get("constraints"), str):
                new["constraints"] = row["constraints"]
            converted.append(new)
    if not converted:
        raise UserError(f"dataset {name!r} has no rows that make {kind}; expected {_COLUMNS[kind]}")
    return datasets.Dataset.from_list(converted)


def _further(row: Mapping[str, object]) -> dict[str, object]:
    """The columns by which a response may be checked, such as `answer`: those that JSON can hold."""
    return {name: value for name, value in row.items() if name not in _ASKED and _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, str | int | float)


def _has_columns(row: Mapping[str, object], kind: DatasetKind) -> bool:
    have = set(row)
    layouts: Mapping[DatasetKind, Sequence[set[str]]] = {
        "instructions": [
            {"prompt", "completion"},
            {"messages"},
            {"instruction", "output"},
            {"instruction", "response"},
        ],
        "preferences": [{"chosen", "rejected"}],
        "prompts": [{name} for name in _ASKED],
        "text": [{"text"}],
    }
    return any(layout <= have for layout in layouts[kind])


def _row(row: Mapping[str, object], kind: DatasetKind) -> dict[str, object] | None:
    """The row as its kind; None for a dialogue without an answer, which some sets have and which teaches nothing.

    Raises:
        ValueError: it makes none.
    """
    if kind == "text":
        return {"text": _text(row, "text")}
    if kind == "instructions":
        return _instruction(row)
    if kind == "preferences":
        return _preference(row)
    column = next((name for name in _ASKED if name in row), "prompt")
    if column == "prompt" and isinstance(row.get("prompt"), list):
        return {"prompt": _turns(row, "prompt")}
    return {"prompt": [turn("user", _text(row, column))]}


def _instruction(row: Mapping[str, object]) -> dict[str, object]:
    if isinstance(row.get("prompt"), list) and "completion" in row:
        return {"prompt": _turns(row, "prompt"), "completion": _turns(row, "completion")}
    if "messages" in row:
        messages = _turns(row, "messages")
        if len(messages) < 2:
            raise ValueError("messages has one turn; expected a question and its answer at least")
        return {"prompt": messages[:-1], "completion": messages[-1:]}
    context = row.get("input") or row.get("context") or ""
    answer = _text(row, "output" if row.get("output") is not None or "response" not in row else "response")
    instruction = _text(row, "instruction")
    prompt = f"{instruction}\n\n{context}" if context else instruction
    return {"prompt": [turn("user", prompt)], "completion": [turn("assistant", answer)]}


def _preference(row: Mapping[str, object]) -> dict[str, object] | None:
    if isinstance(row.get("chosen"), list):
        chosen, rejected = _turns(row, "chosen"), _turns(row, "rejected")
        prompt = _turns(row, "prompt") if isinstance(row.get("prompt"), list) else chosen[:-1]
        if not prompt:
            raise ValueError("chosen has one turn and there is no prompt; expected a question and its answer")
        return {"prompt": prompt, "chosen": chosen[-1:], "rejected": rejected[-1:]}
    good, bad = _dialogue(_text(row, "chosen")), _dialogue(_text(row, "rejected"))
    if not good and not bad:
        raise ValueError("chosen is a text without turns; expected a list of turns, or Human: … and Assistant: … in it")
    return {"prompt": good[:-1], "chosen": good[-1:], "rejected": bad[-1:]} if len(good) > 1 and len(bad) > 1 else None


def _text(row: Mapping[str, object], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"{column} is {_kind(value)}; expected a text")
    return value


def _turns(row: Mapping[str, object], column: str) -> list[Turn]:
    value = row.get(column)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{column} is {_kind(value)}; expected turns {{role, content}}")
    for given in value:
        match given:
            case {"role": str(role), "content": str()} if role:
                continue
        raise ValueError(f"{column} has a turn that is not {{role: a word, content: a text}}")
    return value


def _kind(value: object) -> str:
    if value is None or value == []:
        return "nothing" if value is None else "an empty list"
    named = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a mapping",
    }
    return named.get(type(value), f"of type {type(value).__name__}")


def _dialogue(text: str) -> list[Turn]:
    # hh-rlhf writes a dialogue as one string: "\n\nHuman: …\n\nAssistant: …".
    turns = []
    for part in text.split("\n\nHuman: ")[1:]:
        human, *answers = part.split("\n\nAssistant: ")
        turns.append(turn("user", human.strip()))
        turns += [turn("assistant", a.strip()) for a in answers]
    return turns
