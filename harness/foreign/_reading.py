"""Reading JSON that anybody may have written: bounded in size, and every complaint with its file and line."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness._printable import printable
from harness.errors import UserError

__all__ = ["Line", "Lines", "brief", "cut_off", "finite_number", "read_object"]

_LARGEST_OBJECT = 2**28
_LARGEST_FILE = 2**32
_LONGEST_LINE = 2**26
_SHOWN = 60


def brief(value: object) -> str:
    """A value from such a file as an error may show it: printable, in a line, not long."""
    text = printable(value if isinstance(value, str) else repr(value)).replace("\n", "\\n").replace("\t", "\\t")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def finite_number(value: object) -> float | None:
    """The number that a JSON value is (true is 1); None for anything else, NaN and infinity included."""
    if not isinstance(value, bool | int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _check_file(path: Path, largest: int) -> None:
    """Raises:
    UserError: it is no ordinary file (a link could lead anywhere, a pipe would never end), or too large.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if path.is_symlink() or not path.is_file():
        raise UserError(f"{path}: expected an ordinary file, not a link, a folder or a pipe; copy the file itself here")
    if status.st_size > largest:
        raise UserError(f"{path}: has {status.st_size} bytes; expected at most {largest}")


def _parse(raw: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte 0x{raw[error.start]:02x} is not UTF-8") from error
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        raise UserError(f"{place}: not JSON ({error.msg}, {at}): cut off or edited; copy the file again") from error
    except RecursionError as error:
        raise UserError(f"{place}: nested too deeply; expected what lm-eval writes") from error
    except ValueError as error:
        # A number of more digits than Python converts.
        raise UserError(f"{place}: {brief(str(error))}") from error
    if not isinstance(found, dict):
        raise UserError(f"{place}: expected a JSON object, got {brief(found)}")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        UserError: it is no ordinary file, too large, not UTF-8, not JSON or no object.
    """
    _check_file(path, _LARGEST_OBJECT)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not raw.strip():
        raise UserError(f"{path}: the file is empty; expected a JSON object; copy the file again")
    return _parse(raw, str(path))


@dataclass(frozen=True)
class Line:
    """One JSON object of a file of lines; `place` is its file and line."""

    place: str
    fields: Mapping[str, Any]

    def bad(self, name: str, expected: str) -> UserError:
        """The error that says what a field should be."""
        got = brief(self.fields[name]) if name in self.fields else "nothing"
        return UserError(f"{self.place}: {name}: expected {expected}, got {got}")

    def text(self, name: str) -> str:
        """A field that is a text.

        Raises:
            UserError: it is none, or holds half of a character.
        """
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise self.bad(name, "a text")
        return self.sound(value, name)

    def sound(self, text: str, name: str) -> str:
        """The same text.

        Raises:
            UserError: half of a character (a lone surrogate) stands in it, which no file can hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.bad(name, "whole characters (a lone surrogate cannot be stored)") from error
        return text


class Lines:
    """A file of one JSON object a line.

    The lines end at newlines alone, whatever other separators stand in their texts. `digest` is the sha256 of all that
    was read: of the very bytes whose content was taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """sha256 (hex) of what was read so far."""
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Line]:
        """Raises:
        UserError: as `read_object`, with the line.
        """
        _check_file(self._path, _LARGEST_FILE)
        try:
            with self._path.open("rb") as file:
                number = 0
                while raw := file.readline(_LONGEST_LINE + 1):
                    number += 1
                    place = f"{self._path}:{number}"
                    if len(raw) > _LONGEST_LINE:
                        raise UserError(f"{place}: longer than {_LONGEST_LINE} bytes; expected one sample a line")
                    self._hash.update(raw)
                    if raw.strip():
                        yield Line(place, _parse(raw, place))
        except OSError as error:
            raise UserError(f"{self._path}: {error.strerror}") from error


def cut_off(path: Path, found: int, expected: int) -> UserError:
    """The error for a file that holds another number of documents than its results say."""
    return UserError(
        f"{path}: scores of {found} documents, the results are over {expected}: cut off or edited; copy the file again"
    )
