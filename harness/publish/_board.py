"""The board: entries from here and elsewhere, without duplicates, and every figure computed from their samples."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.publish._aggregates import PROFILE, against, direction, figure, ranks, scores
from harness.publish._cards import Card
from harness.publish._gather import Part
from harness.publish._spool import Samples
from harness.stats import Scores

if TYPE_CHECKING:
    import polars as pl

__all__ = ["MOST_ENTRIES", "ROWS", "Board", "board_of"]

MOST_ENTRIES = 1000
"""Entries on one board: every two of them are compared on every task."""

ROWS = {
    "entry": "String",
    "id": "String",
    "digest": "String",
    "sweep": "String",
    "suite": "String",
    "recipe": "String",
    "method": "String",
    "model": "String",
    "target": "String",
    "task": "String",
    "metric": "String",
    "statistic": "String",
    "better": "String",
    "value": "Float64",
    "stderr": "Float64",
    "low": "Float64",
    "high": "Float64",
    "n": "Int64",
    "seeds": "Int64",
    "raters": "Int64",
    "rank": "Int64",
    "rank_low": "Int64",
    "rank_high": "Int64",
    "ranked": "Int64",
    "base": "String",
    "difference": "Float64",
    "difference_low": "Float64",
    "difference_high": "Float64",
    "difference_n": "Int64",
    "p": "Float64",
    "adjusted_p": "Float64",
    "verdict": "String",
    "trials": "Int64",
    "device_seconds": "Float64",
    "settings": "String",
    "state": "String",
    "recorded_at": "String",
}
"""The columns of the published figures and their polars types; null where unknown. docs: `data/entries.*`."""


@dataclass(frozen=True, eq=False)
class Board:
    """Everything that is published: `cards` by key of the entry, `rows` (`ROWS`), `samples` by key, `texts` or not.

    A key is the entry's id, or where several entries of one id have other scores, for all but the first the id and the
    beginning of the digest; these are in `conflicts`, a list of keys each.
    """

    cards: Mapping[str, Card]
    rows: "pl.DataFrame"
    samples: Mapping[str, Samples]
    conflicts: Sequence[Sequence[str]]

    def rows_of(self, key: str) -> list[dict[str, object]]:
        """The figures of an entry."""
        import polars as pl

        return self.rows.filter(pl.col("entry") == key).to_dicts()


def board_of(parts: Sequence[Part]) -> Board:
    """Put entries together; of equal ones the first stays.

    Raises:
        UserError: none, too many, or a score that is not finite.
    """
    cards: dict[str, Card] = {}
    samples: dict[str, Samples] = {}
    keys: dict[str, list[str]] = {}
    known: set[str] = set()
    for card, own in parts:
        if card.digest in known:
            continue
        known.add(card.digest)
        key = f"{card.id}-{card.digest[:8]}" if card.id in keys else card.id
        keys.setdefault(card.id, []).append(key)
        cards[key], samples[key] = card, own
    if not cards:
        raise UserError("nothing to publish: no sweep has final scores yet; `harness status` says how far each is")
    if len(cards) > MOST_ENTRIES:
        raise UserError(f"{len(cards)} entries are more than a board holds ({MOST_ENTRIES}): publish fewer sweeps")
    rows = _rows(cards, {key: _by_figure(own.scores()) for key, own in samples.items()})
    return Board(cards, rows, samples, [k for k in keys.values() if len(k) > 1])


def _by_figure(samples: "pl.DataFrame") -> dict[tuple[str, str], Scores]:
    return {
        (str(task), str(metric)): scores(str(task), part)
        for (task, metric), part in samples.group_by("task", "metric", maintain_order=True)
    }


def _rows(cards: Mapping[str, Card], entries: Mapping[str, Mapping[tuple[str, str], Scores]]) -> "pl.DataFrame":
    import polars as pl

    figures = sorted({name for found in entries.values() for name in found})
    places = {
        name: ranks(*name, {key: found[name] for key, found in entries.items() if found.get(name)}) for name in figures
    }
    key_of = {card.digest: key for key, card in cards.items()}
    schema = {name: getattr(pl, kind) for name, kind in ROWS.items()}
    rows = [
        row for key, card in cards.items() for row in _rows_of(key, card, key_of.get(card.base or ""), entries, places)
    ]
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col(pl.Float64).fill_nan(None))


def _rows_of(
    key: str,
    card: Card,
    base: str | None,
    entries: Mapping[str, Mapping[tuple[str, str], Scores]],
    places: Mapping[tuple[str, str], Mapping[str, tuple[int, int, int]]],
) -> Iterator[dict[str, object]]:
    differences = against(entries[key], entries[base]) if base is not None else {}
    for name in sorted(entries[key]):
        task, metric = name
        if (found := figure(task, metric, entries[key][name])) is None:
            continue
        rank = places[name].get(key)
        row: dict[str, object] = {
            "entry": key,
            **{c: getattr(card, c) for c in ("id", "digest", "sweep", "suite", "recipe", "method", "model", "target")},
            "task": task,
            "metric": metric,
            "statistic": "median" if task == PROFILE else "mean",
            "better": direction(task, metric),
            **vars(found),
            **dict(zip(("rank", "rank_low", "rank_high"), rank or (None, None, None), strict=True)),
            "ranked": len(places[name]) or None,
            "base": base,
            "trials": card.budget.trials,
            "device_seconds": card.budget.device_seconds,
            "settings": json.dumps(card.settings, sort_keys=True),
            "state": card.state,
            "recorded_at": card.recorded_at,
        }
        if (one := differences.get(name)) is not None:
            row |= {"difference": one.value, "difference_low": one.low, "difference_high": one.high}
            row |= {"difference_n": one.n, "p": one.p, "adjusted_p": one.adjusted_p, "verdict": one.verdict}
        yield row
