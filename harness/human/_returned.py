"""What raters send back, whichever way: read, and held against the form it belongs to. The files are not trusted."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness._printable import printable
from harness._spaces import quoted
from harness.human._criteria import SCALE
from harness.human._forms import digest
from harness.human._keys import KnownForm

__all__ = ["RATINGS", "Returned", "ReturnedItem", "arranged", "as_mapping", "problems_of", "read_file"]

RATINGS = "harness-ratings"
"""What a returned file's JSON calls itself."""

_BYTES = 50 * 2**20
_LONGEST_NAME, _LONGEST_COMMENT = 40, 20_000


@dataclass(frozen=True)
class ReturnedItem:
    """One item: `scores` by answer and criterion, `preferences` by pair (1: the first is much better)."""

    item: str
    scores: Any
    preferences: Any
    comment: Any = ""
    seconds: Any = None


@dataclass(frozen=True)
class Returned:
    """What one rater says of one form."""

    form: str
    rater: str
    items: tuple[ReturnedItem, ...]

    @property
    def submission(self) -> str:
        """Content digest: the same answers are the same submission, in whichever file they come."""
        return digest(
            {
                "form": self.form,
                "rater": self.rater,
                "items": sorted(
                    ([i.item, i.scores, i.preferences, i.comment, i.seconds] for i in self.items),
                    key=lambda item: str(item[0]),
                ),
            }
        )


def read_file(path: Path) -> list[Returned]:
    """What a returned file holds: the ratings of one rater, or Label Studio's export of several.

    Raises:
        ValueError: it is none, or was changed after it was made.
    """
    content = _json(path)
    if isinstance(content, list):
        from harness.human._label_studio import read_export

        return read_export(content)
    if not isinstance(content, dict) or content.get("format") != RATINGS:
        raise ValueError(
            "no ratings; expected the file that a form saves when it is finished, or Label Studio's JSON export"
        )
    if content.get("version") != 1:
        raise ValueError(f"ratings of version {quoted(content.get('version'))}; this harness reads version 1")
    rest = {name: value for name, value in content.items() if name != "digest"}
    if digest(rest) != content.get("digest"):
        raise ValueError("it was edited or cut off after it was saved (digest); ask the rater for the file as it was")
    match content:
        case {"form": str(form), "rater": str(rater), "items": list(items)}:
            return [Returned(form, rater.strip(), tuple(map(_item, items)))]
    raise ValueError("form, rater or items is missing; ask the rater for the file as it was saved")


def _json(path: Path) -> Any:  # noqa: ANN401  # whatever the file holds: its readers look at it
    try:
        if path.stat().st_size > _BYTES:
            raise ValueError(f"larger than {_BYTES // 2**20} MiB")
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise ValueError("no JSON that ratings could be: nested too deeply") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"not JSON ({error})") from error


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _item(given: object) -> ReturnedItem:
    one = as_mapping(given)
    match one:
        case {"item": str(item), "scores": scores, "preferences": preferences}:
            return ReturnedItem(item, scores, preferences, one.get("comment", ""), one.get("seconds"))
    raise ValueError(f"an item without item, scores and preferences: {quoted(given)}")


def arranged(returned: Returned, form: KnownForm) -> Returned:
    """With the scores of each answer in the order of the form's criteria, where they came by name."""
    items = []
    for item in returned.items:
        rows = item.scores if isinstance(item.scores, list) else []
        named = [[row.get(c) for c in form.criteria] if isinstance(row, dict) else row for row in rows]
        items.append(replace(item, scores=named if isinstance(item.scores, list) else item.scores))
    return replace(returned, items=tuple(items))


def problems_of(returned: Returned, form: KnownForm) -> Iterator[str]:
    """What is wrong with it, in words."""
    if not returned.rater or len(returned.rater) > _LONGEST_NAME or printable(returned.rater) != returned.rater:
        yield f"rater {quoted(printable(returned.rater))}: expected a name of 1 to {_LONGEST_NAME} printable characters"
    names = [item.item for item in returned.items]
    if unknown := [name for name in names if name not in form.items]:
        yield f"unknown items: {_some(unknown)}; they are of another form"
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        yield f"items that stand there twice: {_some(doubled)}"
    if not form.partial and (missing := [place for place, name in enumerate(form.order, 1) if name not in names]):
        yield f"missing answers: {len(missing)} items are not there, number {missing[0]} of the form the first"
    if not names:
        yield "missing answers: it holds none"
    for item in returned.items:
        if item.item in form.items:
            where = f"item {form.order.index(item.item) + 1}"
            answers = form.items[item.item].get("answers")
            yield from (f"{where}: {p}" for p in _item_problems(item, form, None if answers is None else len(answers)))


def _item_problems(item: ReturnedItem, form: KnownForm, answers: int | None) -> Iterator[str]:
    scores = item.scores
    if not isinstance(scores, list) or not all(isinstance(row, list) for row in scores):
        yield "scores are no lists by answer"
        return
    # A check has as many answers as the others; its key does not say so.
    expected = answers or next((len(i["answers"]) for i in form.items.values() if "answers" in i), len(scores))
    if len(scores) != expected or any(len(row) != len(form.criteria) for row in scores):
        yield f"missing answers: expected scores of {expected} answers by {len(form.criteria)} criteria"
    yield from _marks([mark for row in scores for mark in row], "score")
    if not isinstance(item.preferences, list) or len(item.preferences) != len(form.pairs):
        yield f"missing answers: expected {len(form.pairs)} preferences"
    else:
        yield from _marks(item.preferences, "preference")
    if not isinstance(item.comment, str) or len(item.comment) > _LONGEST_COMMENT:
        yield f"its comment is no text of at most {_LONGEST_COMMENT:,} characters"
    if item.seconds is not None and (
        isinstance(item.seconds, bool) or not isinstance(item.seconds, int | float) or not 0 <= item.seconds < 1e7
    ):
        yield f"seconds is {quoted(item.seconds)}; expected a number from 0 on"


def _marks(marks: list[Any], what: str) -> Iterator[str]:
    for mark in marks:
        if mark is None:
            yield f"missing answers: a {what} is not given"
        elif isinstance(mark, bool) or not isinstance(mark, int) or mark not in SCALE:
            yield f"{what} {quoted(mark)} is out of the scale from {SCALE[0]} to {SCALE[-1]}"


def _some(names: list[str]) -> str:
    return ", ".join(map(quoted, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def as_mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}
