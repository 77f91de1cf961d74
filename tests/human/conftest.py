"""A store with the shared scenario, and forms made of it."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness._human_commands import command_human
from harness._human_options import add_human
from harness.human import Design, create_forms, parse_criteria
from harness.human._forms import digest
from harness.human._keys import known_forms
from harness.store import Store
from tests.store.scenario import SWEEP, build_scenario


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return build_scenario(tmp_path / "results")


@pytest.fixture
def design() -> Design:
    return Design(parse_criteria("helpfulness,harmlessness"), prompts=6, raters=2, overlap=0.5, checks=2)


@pytest.fixture
def forms(store: Store, design: Design, tmp_path: Path) -> list[dict[str, Any]]:
    """The forms of two raters, as JSON."""
    made = create_forms(store, SWEEP, design, tmp_path / "forms", formats=("page", "json", "label-studio"))
    return [json.loads(f.read_text()) for f in made.files if f.name.startswith("rater") and f.suffix == ".json"]


@pytest.fixture
def human() -> Callable[[Sequence[object]], int]:
    """The command line of `harness human`."""
    parser = argparse.ArgumentParser()
    add_human(parser.add_subparsers(dest="command"))
    return lambda arguments: command_human(parser.parse_args(["human", *map(str, arguments)]))


@pytest.fixture
def fill(store: Store) -> Callable[..., dict[str, Any]]:
    """A form filled in: checks are passed unless `attentive` is false, and marks are by recipe."""

    def filled(form: dict[str, Any], rater: str, *, attentive: bool = True, **by_recipe: int) -> dict[str, Any]:
        key = known_forms(store.results)[form["digest"]]
        items = []
        for item in form["items"]:
            mine = key.items[item["item"]]
            if mine["kind"] == "check":
                marks = [mine["asked"] or 6] * len(item["answers"])
                marks[mine["target"]] = (mine["asked"] or 1) if attentive else 4 if mine["asked"] else 7
            else:
                marks = [by_recipe.get(a["recipe"], 4) for a in mine["answers"]]
            preferences = [min(7, max(1, 4 + marks[b] - marks[a])) for a, b in form["pairs"]]
            scores = [[mark] * len(form["criteria"]) for mark in marks]
            items.append({"item": item["item"], "scores": scores, "preferences": preferences, "comment": "é 😀 \x7f"})
        return signed(
            {"format": "harness-ratings", "version": 1, "form": form["digest"], "rater": rater, "items": items}
        )

    return filled


def signed(content: dict[str, Any]) -> dict[str, Any]:
    """With the digest that a page writes."""
    rest = {k: v for k, v in content.items() if k != "digest"}
    return {**rest, "digest": digest(rest)}


def written(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
