"""A constitution: principles by which a model criticises, revises and compares answers (Bai et al. 2022,
arXiv:2212.08073), from a YAML file or from the folder of a dataset.
"""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from harness._spaces import explain, suggestion
from harness.data import BUNDLED_FOLDER, DataSource
from harness.errors import UserError
from harness.method import Params
from harness.yamlmarks import Problem, problems_error, read_text, read_yaml

__all__ = ["Constitution", "ConstitutionParams", "Example", "Principle", "constitution_reads", "read_constitution"]

DEFAULT = "default"
_DEFAULT_FILE = BUNDLED_FOLDER / "local" / "constitution" / "constitution.yaml"

_WORDINGS = {
    "critique": "Say how the answer goes against this principle: {}",
    "revision": "Write the answer again so that it keeps to this principle: {}",
    "preference": "{}",
}
"""What is made of a principle that is one text."""
_BY_CRITIQUE = "The better answer is the one in which this finds less to criticise: {}"
"""What to prefer by where a principle only says how to criticise."""
_COLUMNS = {"critic": "critique"} | {name: name for name in (*_WORDINGS, "principle")}
"""Columns of a dataset of principles → ours."""

_LONGEST = 2000
_LENGTHS = ("string_too_short", "string_too_long")
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=_LONGEST, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Principle(_Part):
    """One principle, as three texts."""

    critique: _Text
    """Asks for a criticism of an answer."""
    revision: _Text
    """Asks for a better answer."""
    preference: _Text
    """What the better of two answers does."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:  # noqa: ANN401  # whatever a file holds
        if not isinstance(given, dict):
            raise ValueError("expected a mapping with critique, revision and preference, or with principle")
        texts = dict(given)
        if (whole := texts.pop("principle", None)) is not None:
            if not isinstance(whole, str) or not whole.strip():
                raise ValueError("principle: expected a text")
            return {name: wording.format(whole.strip()) for name, wording in _WORDINGS.items()} | texts
        if isinstance(critique := texts.get("critique"), str):
            texts.setdefault("preference", _BY_CRITIQUE.format(critique.strip()))
        return texts


class Example(_Part):
    """One round of criticism, shown to a model before its own."""

    prompt: _Text
    answer: _Text
    critique_request: _Text
    critique: _Text
    revision_request: _Text
    revision: _Text


def _default_examples() -> tuple[Example, ...]:
    return read_constitution(DEFAULT).examples


class Constitution(_Part):
    """Principles, and examples of how they are used: the constitution's own, or else the default one's."""

    principles: Annotated[tuple[Principle, ...], Field(min_length=1, max_length=1000)]
    examples: Annotated[tuple[Example, ...], Field(max_length=16)] = Field(default_factory=_default_examples)

    @property
    def fingerprint(self) -> str:
        """Of all its texts, 32 hex characters: not of the file, whose comments and order of keys decide nothing."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class ConstitutionParams(Params):
    """The setting of methods that go by a constitution."""

    constitution: str = Field(
        DEFAULT,
        min_length=1,
        description="principles to go by: default, a YAML file (a list of principles, each with critique, revision and "
        "preference, or one text principle), or the folder of a dataset with columns critique and revision",
    )


def constitution_reads(settings: Mapping[str, object]) -> Mapping[str, str]:
    """What `Method.reads` says of the constitution that the settings name.

    Raises:
        UserError: it is none.
    """
    return {"constitution": read_constitution(str(settings.get("constitution", DEFAULT))).fingerprint}


def read_constitution(name: str) -> Constitution:
    """The constitution of this name.

    Args:
        name: `default`, or a path to a YAML file or to the folder `<org>/<dataset>` of a dataset.

    Raises:
        UserError: it is not there, or is no constitution; with the line of what is wrong.
    """
    path = _DEFAULT_FILE if name == DEFAULT else Path(name).expanduser()
    try:
        # Asked at every plan and for every trial; read again only where a file has changed.
        facts = tuple((str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in _files(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"constitution {name!r}: no such file or folder; expected default, a YAML file of principles, or the "
            "folder of a dataset with columns critique and revision"
        ) from error
    return _read(path, facts)


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


@functools.lru_cache(maxsize=64)
def _read(path: Path, _facts: tuple[tuple[str, int, int], ...]) -> Constitution:
    return _of_dataset(path) if path.is_dir() else _of_file(path)


def _of_file(path: Path) -> Constitution:
    document = read_yaml(read_text(path), str(path))
    if document.problems:
        raise problems_error(document, document.problems)
    inside = ("principles",) if isinstance(document.data, list) else ()
    whole = {"principles": document.data} if inside else document.data
    try:
        return Constitution.model_validate(whole)
    except ValidationError as error:
        found = [_problem(one, len(inside)) for one in error.errors(include_url=False)]
        raise problems_error(document, found) from error


def _problem(error: Any, skipped: int) -> Problem:  # noqa: ANN401  # pydantic's own mapping
    """What is wrong, at its place in the file, where the first `skipped` keys do not stand."""
    path = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys(path)
        return Problem(path[skipped:], f"unknown key{suggestion(path[-1], known)}", on_key=True)
    if error["type"] == "missing":
        hint = ", or one text principle" if path[0] == "principles" and len(path) > 1 else ""
        return Problem(path[skipped:-1], f"the key {path[-1]} is required{hint}")
    if error["type"] in _LENGTHS:
        return Problem(path[skipped:], f"expected a text of 1 to {_LONGEST} characters")
    if not path:
        return Problem((), "expected a list of principles, or a mapping with principles and examples")
    return Problem(path[skipped:], explain(error))


def _keys(path: tuple[str | int, ...]) -> list[str]:
    if len(path) == 1:
        return list(Constitution.model_fields)
    return list(Example.model_fields) if path[0] == "examples" else [*Principle.model_fields, "principle"]


def _of_dataset(folder: Path) -> Constitution:
    import datasets

    place = folder.resolve()
    name, source = f"{place.parent.name}/{place.name}", DataSource(str(place.parent.parent))
    if problem := source.lacks(name):
        raise UserError(f"constitution {str(folder)!r}: {problem}")
    datasets.disable_progress_bars()
    try:
        with source.as_hub():
            rows = datasets.load_dataset(name, split="train").to_list()
    except Exception as error:
        # The readers of a dozen formats raise whatever they raise, all for what lies in the files.
        raise UserError(f"constitution {str(folder)!r}: {source.why(error, name)}") from error
    texts = [{_COLUMNS[c]: value for c, value in row.items() if c in _COLUMNS and value is not None} for row in rows]
    try:
        return Constitution.model_validate({"principles": texts})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        row = f", row {int(first['loc'][1]) + 1}" if len(first["loc"]) > 1 else ""
        raise UserError(
            f"constitution {str(folder)!r}{row}: {_problem(first, 0).message}; expected columns critique (or critic) "
            "and revision, or principle"
        ) from error
