"""Each entry in the formats that others read: its files and what they hold, one entry in memory at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.publish._board import Board
from harness.publish._cards import Card
from harness.publish._every_eval_ever import FOLDER as EVERY_EVAL_EVER
from harness.publish._every_eval_ever import aggregate_path, every_eval_ever, samples_path
from harness.publish._lm_eval import FOLDER as LM_EVAL
from harness.publish._lm_eval import lm_eval
from harness.publish._model_card import FOLDER as HUB
from harness.publish._model_card import card_path, eval_results_paths, model_card

__all__ = ["FOLDERS", "downloads", "formats"]

FOLDERS = (EVERY_EVAL_EVER, HUB, LM_EVAL)
"""Where they lie in an export."""


def formats(board: Board) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Path in the export → its parts, which are to be taken before the next file is asked for."""
    for key, card in board.cards.items():
        rows, samples = board.rows_of(key), board.samples[key].frame()
        yield from ((path, iter([raw])) for path, raw in model_card(card, key, rows).items())
        yield from every_eval_ever(card, rows, samples)
        yield from lm_eval(card, key, rows, samples)


def downloads(card: Card, key: str, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Path in the export and what it is, of an entry's files but those of lm-eval (see `lm_eval_paths`)."""
    found = []
    if any(row["better"] != "none" for row in rows):
        found += [
            (aggregate_path(card), "Every Eval Ever 0.3, aggregate: figures with their uncertainty"),
            (samples_path(card), "Every Eval Ever 0.3, by instance: a line per document, metric and seed"),
        ]
    found.append((card_path(key), "model card for the Hub, with its model-index"))
    return found + [(p, "for the model's repository on the Hub") for p in eval_results_paths(card, key, rows)]
