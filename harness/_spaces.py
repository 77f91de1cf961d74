"""One step's settings: plain values and search spaces, checked against the method's `Params`."""

import difflib
import json
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from harness.method import Method, Params
from harness.yamlmarks import KeyPath, Problem

__all__ = ["SPACE_KEYS", "Setting", "SettingsReader", "Space", "default_range", "explain", "quoted", "suggestion"]

Setting = bool | int | float | str | None

SPACE_KEYS = ("values", "min", "max", "log", "step")
_SEARCH = "search"


@dataclass(frozen=True)
class Space:
    """What a setting is searched in: one of `values`, or from `low` to `high` (both included)."""

    values: tuple[Setting, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    integer: bool = False

    def to_json(self) -> dict[str, object]:
        """As a suite writes it: `{values: …}` or `{min, max, log, step}`."""
        if self.values is not None:
            return {"values": list(self.values)}
        return {"min": self.low, "max": self.high, "log": self.log, "step": self.step}


def suggestion(word: object, known: Iterable[str]) -> str:
    """` (did you mean …?)`, or what is known where nothing is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    # `trials` for `trials_per_cell`: too short for a close match, yet plainly meant.
    near = near or [name for name in names if len(str(word)) > 2 and name.startswith(str(word))]
    if near:
        return f" (did you mean {near[0]}?)"
    return f"; expected {'one of ' if len(names) > 1 else ''}{', '.join(names)}" if 0 < len(names) <= 25 else ""


def quoted(value: object) -> str:
    """A value as an error shows it: one short line."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else text[:57] + "…"


def _errors(error: ValidationError) -> list[Any]:
    return list(error.errors(include_url=False))


def explain(error: Mapping[str, Any]) -> str:
    """A pydantic error in this project's words."""
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "expected")
    message = message.replace("expected a valid integer", "expected a whole number")
    message = message.replace("expected a valid dictionary", "expected a mapping")
    message = message.replace("expected an object", "expected a mapping").replace(
        "expected a valid array", "expected a list"
    )
    message = message.replace("expected a valid", "expected a")
    if error["type"] == "literal_error":
        return f"{message}, got {quoted(error['input'])}" + _near_literal(error)
    if error["type"] == "too_short":
        return "expected at least one, got none"
    if error["type"] == "string_pattern_mismatch":
        return f"expected a text of the form {error['ctx']['pattern'].strip('^$')}, got {quoted(error['input'])}"
    if error["type"] in {"value_error", "missing"}:
        return message
    return f"{message}, got {quoted(error['input'])}"


def _near_literal(error: Mapping[str, Any]) -> str:
    expected = re.findall(r"'([^']*)'", str(error["ctx"]["expected"]))
    near = difflib.get_close_matches(str(error["input"]), expected, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


@dataclass
class SettingsReader:
    """Reads one step's settings; what is wrong is appended to `problems`."""

    method: type[Method[Params]]
    path: KeyPath
    problems: list[Problem]

    def read(self, raw: Mapping[str, object]) -> tuple[dict[str, object], dict[str, Space]]:
        """The settled settings (typed, defaults filled in) and the search spaces; both empty if something is wrong."""
        fields = self.method.params.model_fields
        plain: dict[str, object] = {}
        # Each searched setting → the values it may take at its ends, with where each stands.
        candidates: dict[str, list[tuple[object, KeyPath]]] = {}
        for name, value in raw.items():
            here = (*self.path, name)
            if name not in fields:
                self._report(here, f"unknown setting of {self.method.name}{suggestion(name, fields)}", on_key=True)
            elif value == _SEARCH or isinstance(value, dict):
                if ends := self._ends(name, fields[name], value, here):
                    candidates[name] = ends
            else:
                plain[name] = value
        refused = set(raw) - set(plain) - set(candidates)
        typed = self._validate(plain, candidates, refused)
        if typed is None:
            return {}, {}
        values = typed.model_dump(mode="json")
        settings = {k: v for k, v in values.items() if k not in candidates}
        spaces = {name: self._space(name, fields[name], raw[name], candidates[name], plain) for name in candidates}
        return settings, {name: space for name, space in spaces.items() if space is not None}

    def _report(self, path: KeyPath, message: str, *, on_key: bool = False) -> None:
        self.problems.append(Problem(path, message, on_key=on_key))

    def _range(self, field: FieldInfo, raw: object) -> Mapping[str, Any]:
        return (default_range(field) or {}) if raw == _SEARCH else raw if isinstance(raw, dict) else {}

    def _ends(self, name: str, field: FieldInfo, raw: object, here: KeyPath) -> list[tuple[object, KeyPath]]:
        """The values to try a search space with; empty when it is wrong, which is then reported."""
        space = self._range(field, raw)
        if raw == _SEARCH and not space:
            fields = self.method.params.model_fields
            tunable = [n for n, f in fields.items() if default_range(f)]
            have = f"; these have: {', '.join(tunable)}" if tunable else ""
            self._report(here, f"{self.method.name} names no default range for {name}{have}; give {{min, max, log}}")
            return []
        if unknown := [key for key in space if key not in SPACE_KEYS]:
            for key in unknown:
                self._report((*here, key), f"unknown key of a search space{suggestion(key, SPACE_KEYS)}", on_key=True)
            return []
        if "values" in space:
            return self._listed(space, here)
        return self._bounds(name, field, space, here)

    def _listed(self, space: Mapping[str, Any], here: KeyPath) -> list[tuple[object, KeyPath]]:
        values = space["values"]
        if len(space) > 1:
            self._report(here, "give values, or min and max, not both")
        elif not isinstance(values, list) or not values:
            self._report((*here, "values"), f"expected a list of values, got {quoted(values)}")
        elif any(isinstance(v, list | dict) for v in values):
            self._report((*here, "values"), "expected plain values (numbers, words, true, false, null)")
        elif len({quoted(v) for v in values}) < len(values):
            self._report((*here, "values"), "the same value stands here twice")
        else:
            return [(v, (*here, "values", i)) for i, v in enumerate(values)]
        return []

    def _bounds(
        self, name: str, field: FieldInfo, space: Mapping[str, Any], here: KeyPath
    ) -> list[tuple[object, KeyPath]]:
        kinds = _kinds(field.annotation)
        if missing := [key for key in ("min", "max") if key not in space]:
            self._report(here, f"expected {{values: [...]}} or {{min, max, log}}; {' and '.join(missing)} missing")
        elif not kinds & {int, float}:
            self._report(here, f"{name} is no number, so it has no range; list its values: {{values: [...]}}")
        else:
            return self._checked_bounds(space, here, integer=float not in kinds)
        return []

    def _checked_bounds(
        self, space: Mapping[str, Any], here: KeyPath, *, integer: bool
    ) -> list[tuple[object, KeyPath]]:
        before = len(self.problems)
        low, high, log, step = space["min"], space["max"], space.get("log", False), space.get("step")
        for key, value in (("min", low), ("max", high), ("step", 1 if step is None else step)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                self._report((*here, key), f"expected a number, got {quoted(value)}")
            elif integer and isinstance(value, float) and not value.is_integer():
                self._report((*here, key), f"expected a whole number, got {quoted(value)}")
        if not isinstance(log, bool):
            self._report((*here, "log"), f"expected true or false, got {quoted(log)}")
        if len(self.problems) == before:
            if not low < high:
                self._report(here, f"expected min < max, got {quoted(low)} and {quoted(high)}")
            if log and low <= 0:
                self._report((*here, "min"), f"expected min > 0 where log is true, got {quoted(low)}")
            if step is not None and log:
                self._report((*here, "step"), "a logarithmic range has no step; leave out one of log and step")
            elif step is not None and not 0 < step <= high - low:
                self._report((*here, "step"), f"expected a step above 0 and at most max - min, got {quoted(step)}")
        if len(self.problems) > before:
            return []
        kind = int if integer else float
        return [(kind(low), (*here, "min")), (kind(high), (*here, "max"))]

    def _validate(
        self,
        plain: Mapping[str, object],
        candidates: Mapping[str, Sequence[tuple[object, KeyPath]]],
        refused: set[str],
    ) -> Params | None:
        """Try the settings with each search space at its first value, then with each of its other values."""
        first = {name: ends[0][0] for name, ends in candidates.items()}
        where = {name: ends[0][1] for name, ends in candidates.items()}
        typed = settled = self._try({**plain, **first}, where, refused, only=None)
        for name, ends in candidates.items():
            for value, place in ends[1:]:
                # What is wrong with the settings together is said once, not again for each value tried.
                ignored = refused if settled else {*refused, ""}
                ok = self._try({**plain, **first, name: value}, {**where, name: place}, ignored, only=name)
                typed = typed if ok else None
        return typed

    def _try(
        self, values: Mapping[str, object], where: Mapping[str, KeyPath], refused: set[str], only: str | None
    ) -> Params | None:
        try:
            return self.method.params.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            for e in _errors(error):
                loc: tuple[str | int, ...] = tuple(e["loc"])
                name = str(loc[0]) if loc else ""
                if name in refused or (only is not None and name not in ("", only)):
                    continue
                if e["type"] == "missing":
                    self._report(self.path, f"the setting {name} is required", on_key=True)
                    continue
                path = (*where[name], *loc[1:]) if name in where else (*self.path, *loc)
                if not name and only is not None:
                    path = where[only]
                value = values.get(name)
                near = isinstance(value, str) and bool(difflib.get_close_matches(value, [_SEARCH]))
                self._report(path, explain(e) + (" (did you mean search?)" if near else ""))
            return None

    def _space(
        self,
        name: str,
        field: FieldInfo,
        raw: object,
        ends: Sequence[tuple[object, KeyPath]],
        plain: Mapping[str, object],
    ) -> Space:
        space = self._range(field, raw)
        if "values" in space:
            return Space(values=tuple(self._typed(name, field, value) for value, _ in ends))
        low, high = ends[0][0], ends[1][0]
        integer = float not in _kinds(field.annotation)
        return Space(
            low=low if isinstance(low, int | float) else 0.0,
            high=high if isinstance(high, int | float) else 0.0,
            log=bool(space.get("log", False)),
            step=space.get("step"),
            integer=integer,
        )

    def _typed(self, name: str, field: FieldInfo, value: object) -> Setting:
        # 1 and 1.0 are different keys of a stage, so a whole number in a list of floats becomes one.
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and _kinds(field.annotation) & {int, float} == {float}
        ):
            return float(value)
        return value if isinstance(value, bool | int | float | str) else None


def _kinds(annotation: object) -> set[type]:
    """The plain types a field takes, without None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return set().union(*(_kinds(a) for a in get_args(annotation)))
    return {annotation} if isinstance(annotation, type) and annotation is not type(None) else set()


def default_range(field: FieldInfo) -> Mapping[str, Any] | None:
    """The range that the word `search` stands for (`harness.method.tunable`), or None."""
    extra = field.json_schema_extra
    found = extra.get(_SEARCH) if isinstance(extra, dict) else None
    return found if isinstance(found, dict) else None
