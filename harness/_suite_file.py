"""A suite from a YAML file: everything that is wrong is said at once, each with file, line and column."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from harness._overrides import apply_override
from harness._recipes import read_recipes
from harness._secrets import first_secret
from harness._spaces import explain, quoted, suggestion
from harness._suite import Suite
from harness._suite_problems import SuiteProblemsError
from harness.errors import UserError
from harness.yamlmarks import Document, KeyPath, Place, Problem, problems_error, read_text, read_yaml

__all__ = ["load_suite"]


def load_suite(path: Path | str, overrides: Sequence[str] = ()) -> Suite:
    """Read and validate a suite.

    Args:
        path: the YAML file.
        overrides: `key=value` each, as given to `--set`: a dotted path (`budget.trials_per_cell`,
            `recipes.dpo.1.dpo.beta`, `measure.tasks.mmlu.limit`) and a YAML value. Later ones win.

    Raises:
        UserError: everything that is wrong, a line each: `file:line:column: path: message`.
    """
    path = Path(path)
    text = read_text(path)
    _refuse_secrets(text, path, overrides)
    document = read_yaml(text, str(path))
    if document.data is None and document.problems:
        raise problems_error(document, document.problems)
    if document.data is None:
        document.problems.append(Problem((), f"the file is empty; expected the keys {_required()}"))
    elif not isinstance(document.data, dict):
        document.problems.append(Problem((), f"expected a mapping with the keys {_required()}"))
    else:
        for override in overrides:
            apply_override(document, override)
        return _validated(document, path, text, tuple(overrides))
    raise problems_error(document, document.problems)


def _refuse_secrets(text: str, path: Path, overrides: Sequence[str]) -> None:
    # The suite is stored as it was read, and shown in the report.
    found = first_secret(text)
    if found is not None:
        before = text[: found[1]]
        place = Place(str(path), before.count("\n") + 1, len(before) - before.rfind("\n"))
    elif (found := next((f for o in overrides if (f := first_secret(o)) is not None), None)) is not None:
        place = Place("--set …")
    else:
        return
    raise UserError(f"{place}: {found[0]} stands here; take it out: the suite is stored and shown in the report")


def _required() -> str:
    return ", ".join(name for name, field in Suite.model_fields.items() if field.is_required())


def _validated(document: Document, path: Path, text: str, overrides: tuple[str, ...]) -> Suite:
    problems = list(document.problems)
    data = document.data
    try:
        suite = Suite.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        crossed = False
        for e in error.errors(include_url=False):
            inner = e.get("ctx", {}).get("error")
            if isinstance(inner, SuiteProblemsError):
                problems += inner.problems
                crossed = True
            elif e["type"] != "default_factory_not_called":
                problems.append(_problem(e))
        # The recipes are read after the rest; a typo elsewhere must not hide what is wrong in them.
        if not crossed and isinstance(data, dict) and isinstance(data.get("recipes"), dict):
            problems += read_recipes(data["recipes"], _strings(data.get("models")))[2]
        # What the reader could not take was replaced, and what is wrong with that is not the user's doing.
        unread = [p.path for p in document.problems if p.path]
        told = [p for p in problems if p in document.problems or not any(p.path[: len(u)] == u for u in unread)]
        raise problems_error(document, told) from error
    if problems:
        raise problems_error(document, problems)
    suite._source, suite._text, suite._overrides = path, text, overrides
    return suite


def _problem(error: Mapping[str, Any]) -> Problem:
    loc: KeyPath = tuple(error["loc"])
    if loc and loc[-1] == "[key]":
        if error["type"] == "string_pattern_mismatch":
            return Problem(loc[:-1], "expected a name of letters, digits, _ . -", on_key=True)
        return Problem(loc[:-1], explain(error), on_key=True)
    if error["type"] == "extra_forbidden":
        return Problem(loc, f"unknown key{suggestion(loc[-1], _keys_at(Suite, loc[:-1]))}", on_key=True)
    if error["type"] == "missing":
        return Problem(loc[:-1], f"the key {loc[-1]} is required", on_key=True)
    if error["type"] == "string_pattern_mismatch" and loc[-1:] == ("name",):
        return Problem(loc, f"expected a name of letters, digits, _ . -, got {quoted(error['input'])}")
    return Problem(loc, explain(error))


def _keys_at(annotation: object, loc: KeyPath) -> list[str]:
    """The keys that the model at this location of the suite has."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _keys_at(get_args(annotation)[0], loc)
    if origin is Union or (origin is not None and type(None) in get_args(annotation)):
        return [key for a in get_args(annotation) for key in _keys_at(a, loc)]
    if origin in (list, dict) and loc:
        return _keys_at(get_args(annotation)[-1], loc[1:])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        if not loc:
            return list(fields)
        return _keys_at(fields[str(loc[0])].annotation, loc[1:]) if loc[0] in fields else []
    return []


def _strings(found: object) -> list[str]:
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
