"""What the files in the formats of others say of the figures, whichever version of the harness wrote them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.publish._cards import Card
from harness.publish._every_eval_ever import aggregate_path
from harness.publish._lm_eval import FOLDER as LM_EVAL
from harness.publish._model_card import card_path
from harness.publish._reading import Export, read_json, read_text

__all__ = ["Told", "told"]


@dataclass(frozen=True)
class Told:
    """The value of a figure in a file; without a task the file cannot be read, and `value` is why."""

    file: str
    entry: str
    task: str
    metric: str
    value: object


def told(folder: Path, export: Export) -> Iterator[Told]:
    """The figures that an export tells in the formats of others, each file on its own."""
    by_entry: dict[str, list[str]] = {}
    for name in export.manifest.files:
        if name.startswith(f"{LM_EVAL}/") and "/results_" in name:
            by_entry.setdefault(name.split("/")[1], []).append(name)
    for key, card in export.cards.items():
        for name in (aggregate_path(card), card_path(key), *by_entry.get(key, [])):
            if name in export.manifest.files and (folder / name).is_file():
                yield from _file(folder, name, key, card)


def _file(folder: Path, name: str, key: str, card: Card) -> Iterator[Told]:
    try:
        if name == card_path(key):
            found = list(_of_card(read_text(folder, name)))
        elif name == aggregate_path(card):
            found = list(_of_every_eval_ever(read_json(folder, name)))
        else:
            found = list(_of_lm_eval(read_json(folder, name)))
    except (UserError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        yield Told(name, key, "", "", f"{type(error).__name__}: {error}")
        return
    yield from (Told(name, key, str(task), str(metric), value) for task, metric, value in found)


def _of_card(text: str) -> Iterator[tuple[object, object, object]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        head = YAML(typ="safe").load(text.split("\n---\n", 1)[0])
    except YAMLError as error:
        raise ValueError(str(error)) from error
    for index in head.get("model-index", []):
        for result in index["results"]:
            for metric in result["metrics"]:
                yield result["dataset"]["config"], metric["type"], metric["value"]


def _of_every_eval_ever(found: Mapping[str, Any]) -> Iterator[tuple[object, object, object]]:
    for result in found["evaluation_results"]:
        task, _, metric = result["evaluation_result_id"].rpartition("/")
        yield task, metric, result["score_details"]["score"]


def _of_lm_eval(found: Mapping[str, Any]) -> Iterator[tuple[object, object, object]]:
    for row in found["posttrain_harness"]["figures_over_all_seeds"]:
        yield row["task"], row["metric"], row["value"]
