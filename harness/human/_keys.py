"""The key to the anonymised answers: one file for each study, below the results folder, where it stays."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness._disk import replace, writing
from harness.errors import UserError
from harness.human._forms import Study

__all__ = ["KnownForm", "human_folder", "keep_key", "known_forms"]


@dataclass(frozen=True)
class KnownForm:
    """A form that was made here: what it asks, and whose answers are in it.

    `partial`: raters do some of its items (Label Studio's), not all.
    """

    digest: str
    sweep: str
    study: str
    partial: bool
    criteria: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    items: Mapping[str, Mapping[str, Any]]
    order: tuple[str, ...]


def human_folder(results: Path) -> Path:
    """Where the keys lie."""
    return results / "human"


def keep_key(results: Path, sweep: str, study: Study) -> Path:
    """Write down whose answers stand where; the same study gives the same file.

    Raises:
        StorageError: the disk refuses.
    """
    folder = human_folder(results)
    content = {
        "sweep": sweep,
        "study": study.name,
        "forms": {
            form.digest: {
                "number": form.number,
                "criteria": [c["name"] for c in form.content["criteria"]],
                "pairs": form.content["pairs"],
                "order": [item["item"] for item in form.content["items"]],
                "items": form.key,
            }
            for form in study.forms
        },
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / f"{study.name}.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    return folder / f"{study.name}.json"


def known_forms(results: Path) -> dict[str, KnownForm]:
    """Every form that was made in this results folder, by digest.

    Raises:
        UserError: a key that cannot be read.
    """
    found = {}
    for file in sorted(human_folder(results).glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            for digest, form in content["forms"].items():
                found[digest] = KnownForm(
                    digest,
                    content["sweep"],
                    content["study"],
                    form["number"] == 0,
                    tuple(form["criteria"]),
                    tuple((a, b) for a, b in form["pairs"]),
                    form["items"],
                    tuple(form["order"]),
                )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} is no key to rating forms ({error}): the same `harness human create` makes it anew"
            ) from error
    return found
