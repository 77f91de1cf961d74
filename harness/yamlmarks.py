"""Reading YAML 1.2 strictly, with the place of every value, so that an error can point at its line and column.

Plain scalars follow the core schema of YAML 1.2.2 (section 10.3.2): `1e-6` is a number, `no` and `12:30` are text.
What makes a file mean something else than it says is refused: duplicate keys, keys that are not text, tags, merge
keys, several documents, aliases that unfold without end.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from harness._printable import printable
from harness.errors import UserError

__all__ = ["Document", "KeyPath", "Place", "Problem", "problems_error", "read_text", "read_yaml"]

KeyPath = tuple[str | int, ...]
"""The way from the top of a document to a value: keys of mappings and positions in lists."""

_MAX_BYTES = 128 * 1024
_MAX_NODES = 10_000
_MAX_DEPTH = 40
_MAX_SHOWN = 40

_SHELF: KeyPath = ("\0",)
"""Where keys, and values of refused keys, are built: no path of a document begins like this."""

_UNFINISHED = object()

_WORDS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written: a line and column of a file (both from 1), or `--set …` (line 0)."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the value at `path`; `on_key` points at the key rather than the value."""

    path: KeyPath
    message: str
    on_key: bool = False
    place: Place | None = None
    """Where, if not where `path` was written."""


@dataclass
class Document:
    """Plain data (dict with text keys, list, str, int, float, bool, None), where it was written, and what is wrong."""

    data: object
    source: str
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath, *, on_key: bool = False) -> Place:
        """Where the value (or its key) at this path was written, or the nearest value around it."""
        if on_key and path in self.keys:
            return self.keys[path]
        for end in range(len(path), -1, -1):
            if path[:end] in self.values:
                return self.values[path[:end]]
        return Place(self.source, 1, 1)

    def graft(self, path: KeyPath, value: object, place: Place) -> None:
        """Note that the value at this path, with all that is in it, now comes from `place`."""
        for places in (self.keys, self.values):
            for old in [p for p in places if p[: len(path)] == path]:
                del places[old]
        self.problems = [p for p in self.problems if not path or p.path[: len(path)] != path]
        for below in _paths(value, path):
            self.keys[below] = self.values[below] = place


def _paths(value: object, path: KeyPath) -> Iterator[KeyPath]:
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from _paths(child, (*path, key))


def problems_error(document: Document, problems: list[Problem]) -> UserError:
    """One error with a line `place: path: message` for each of the first 40 problems, in the order of the file."""
    lines: list[tuple[bool, Place, str]] = []
    for problem in problems:
        place = problem.place or document.place(problem.path, on_key=problem.on_key)
        path = ".".join(str(p) for p in problem.path)
        text = f"{place}: {path + ': ' if path else ''}{problem.message}"
        # A key or a value of the file may hold what would drive the terminal.
        lines.append((not place.line, place, printable(re.sub(r"\s*[\r\n]\s*", " ", text))))
    texts = list(dict.fromkeys(text for _, _, text in sorted(lines)))
    more = [f"… and {len(texts) - _MAX_SHOWN} more"] if len(texts) > _MAX_SHOWN else []
    return UserError("\n".join(texts[:_MAX_SHOWN] + more))


def read_text(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        UserError: missing, not a file, unreadable, larger than 128 KiB, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: this is a folder; expected a YAML file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path}: larger than {_MAX_BYTES // 1024} KiB: this is no suite")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise UserError(
            f"{path}:{line}:{column}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def read_yaml(text: str, source: str) -> Document:
    """Read one YAML document. Never raises on bad text: what is wrong stands in `problems`.

    After a syntax error `data` is None; after other problems it holds what could be read (of duplicate keys the
    first).

    Args:
        text: at most 128 KiB, unfolding to at most 10,000 values in at most 40 levels.
        source: how places name the text, usually the file's path.
    """
    document = Document(None, source)
    if len(text.encode(errors="surrogatepass")) > _MAX_BYTES:
        document.problems.append(Problem((), f"larger than {_MAX_BYTES // 1024} KiB: this is no suite"))
        return document
    builder = _Builder(document)
    # A parser that stops early keeps the reader's state, so each text gets its own.
    events = YAML(typ="safe", pure=True).parse(text)
    try:
        document.data = builder.build(events)
    except _GiveUpError as error:
        document.data = None
        document.problems.append(error.problem)
    except MarkedYAMLError as error:
        document.data = None
        document.problems.append(_syntax(document, error))
    except ReaderError as error:
        before = text[: error.position]
        place = Place(source, before.count("\n") + 1, error.position - before.rfind("\n"))
        document.data = None
        document.problems.append(
            Problem((), f"the character U+{error.character:04X} is not allowed in YAML", place=place)
        )
    except (YAMLError, ValueError, OverflowError, AssertionError) as error:
        # Bad escapes and version directives leave ruamel.yaml as these, without a mark.
        document.data = None
        document.problems.append(Problem((), f"not valid YAML: {error}", place=builder.last))
    return document


def _syntax(document: Document, error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = Place(document.source, mark.line + 1, mark.column + 1) if mark else None
    what = ", ".join(str(t) for t in (error.context, error.problem) if t)
    hint = " (indent with spaces, not tabs)" if r"'\t'" in what else ""
    return Problem((), f"not valid YAML: {what}{hint}", place=place)


class _GiveUpError(Exception):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


@dataclass
class _Builder:
    document: Document
    last: Place | None = None
    _anchors: dict[str, object] = field(default_factory=dict)
    _nodes: int = 0
    _depth: int = 0

    def build(self, events: Iterator[Event]) -> object:
        data: object = None
        documents = 0
        for event in events:
            self.last = self._place(event)
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise _GiveUpError(Problem((), "a second document begins here; expected one", place=self.last))
                if event.version not in (None, (1, 2)):
                    self._report((), "expected YAML 1.2; remove the %YAML line")
            elif isinstance(event, NodeEvent):
                data = self._node(event, events, ())
        for places in (self.document.keys, self.document.values):
            for path in [p for p in places if p[:1] == _SHELF]:
                del places[path]
        return data

    def _place(self, event: Event) -> Place:
        return Place(self.document.source, event.start_mark.line + 1, event.start_mark.column + 1)

    def _report(self, path: KeyPath, message: str) -> None:
        if path[:1] != _SHELF:
            self.document.problems.append(Problem(path, message, place=self.last))

    def _next(self, events: Iterator[Event]) -> Event:
        event = next(events)
        self.last = self._place(event)
        return event

    def _count(self, place: Place) -> None:
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            raise _GiveUpError(Problem((), f"unfolds to more than {_MAX_NODES:,} values", place=place))
        if self._depth > _MAX_DEPTH:
            raise _GiveUpError(Problem((), f"nested deeper than {_MAX_DEPTH} levels", place=place))

    def _node(self, event: NodeEvent, events: Iterator[Event], path: KeyPath) -> object:
        place = self._place(event)
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                raise _GiveUpError(Problem(path, f"no anchor &{event.anchor} before this", place=place))
            value = self._anchors[event.anchor]
            if value is _UNFINISHED:
                raise _GiveUpError(Problem(path, f"*{event.anchor} stands inside the value it names", place=place))
            return self._copy(value, path, place)
        if event.anchor is not None:
            self._anchors[event.anchor] = _UNFINISHED
        if isinstance(event, ScalarEvent | CollectionStartEvent) and event.ctag is not None:
            self._report(path, f"tags are not supported; remove {event.ctag}")
        self.document.values[path] = place
        self._depth += 1
        self._count(place)
        if isinstance(event, ScalarEvent):
            value = self._scalar(event, path)
        elif isinstance(event, SequenceStartEvent):
            value = self._sequence(events, path)
        else:
            value = self._mapping(events, path)
        self._depth -= 1
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _copy(self, value: object, path: KeyPath, place: Place) -> object:
        # A copy, not the same object: `--set` may change one use of an anchor and must not change the other.
        self._depth += 1
        self._count(place)
        self.document.values[path] = place
        copy: object = value
        if isinstance(value, list):
            copy = [self._copy(v, (*path, i), place) for i, v in enumerate(value)]
        elif isinstance(value, dict):
            self.document.keys.update({(*path, k): place for k in value})
            copy = {k: self._copy(v, (*path, k), place) for k, v in value.items()}
        self._depth -= 1
        return copy

    def _sequence(self, events: Iterator[Event], path: KeyPath) -> list[object]:
        items: list[object] = []
        while isinstance(event := self._next(events), NodeEvent):
            items.append(self._node(event, events, (*path, len(items))))
        return items

    def _mapping(self, events: Iterator[Event], path: KeyPath) -> dict[str, object]:
        mapping: dict[str, object] = {}
        while isinstance(event := self._next(events), NodeEvent):
            place = self._place(event)
            key = self._node(event, events, _SHELF)
            problem = ""
            if not isinstance(key, str):
                shown = "a list or mapping" if isinstance(key, list | dict) else json.dumps(key)
                problem = f"keys are text, not {shown}; put it in quotes if text is meant"
            elif key == "<<" and isinstance(event, ScalarEvent) and event.implicit[0]:
                problem = "merge keys (<<) are not part of YAML 1.2; write the settings out"
            elif key in mapping:
                problem = f"duplicate key {key!r}, first given in line {self.document.keys[(*path, key)].line}"
            value_event = self._next(events)
            if not isinstance(value_event, NodeEvent):
                raise _GiveUpError(Problem(path, "this key has no value", place=place))
            if problem or not isinstance(key, str):
                if path[:1] != _SHELF:
                    self.document.problems.append(Problem(path, problem, place=place))
                self._node(value_event, events, _SHELF)
                continue
            self.document.keys[(*path, key)] = place
            mapping[key] = self._node(value_event, events, (*path, key))
            if isinstance(value_event, ScalarEvent) and value_event.start_mark.index == value_event.end_mark.index:
                # A value that was left out stands, to the parser, where the next thing begins.
                self.document.values[(*path, key)] = place
        return mapping

    def _scalar(self, event: ScalarEvent, path: KeyPath) -> str | int | float | bool | None:
        text: str = event.value
        if not event.implicit[0]:
            if bad := _CONTROL.search(text):
                self._report(path, f"the character U+{ord(bad.group()):04X} is not allowed")
                return _CONTROL.sub("?", text)
            return text
        if text in _WORDS:
            return _WORDS[text]
        number: int | float
        if _INT.fullmatch(text):
            base = 0 if text[:2] in ("0o", "0x") else 10
            # Python refuses to read integers of thousands of digits, and no setting is that large.
            number = int(text, base) if len(text) < 100 else math.inf
        elif _FLOAT.fullmatch(text):
            number = float(text)
        elif _NOT_FINITE.fullmatch(text):
            number = math.inf
        else:
            return text
        if (isinstance(number, float) and not math.isfinite(number)) or (
            isinstance(number, int) and abs(number) >= 2**63
        ):
            self._report(path, f"the number {text[:40]} is out of range")
            return 0
        return number
