"""Searches to put in place of the scenario's, and what the suite says of them."""

import json
from collections.abc import Callable, Mapping, Sequence

import polars as pl

from tests.report.stores import Change

__all__ = ["saying", "tuned"]


def tuned(
    recipe: str,
    reached: Sequence[Mapping[str, float] | str],
    settings: Callable[[int], Mapping[str, object]] = lambda trial: {"dpo.beta": 0.01 * (trial + 1)},
) -> Change:
    """A recipe's tuning trials in the table `trial_events`: what each reached, or the state it ended in."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        mine = (pl.col("recipe") == recipe) & (pl.col("phase") == "tune")
        one = frame.filter(mine & (pl.col("state") == "complete")).row(0, named=True)
        rows = [
            one
            | {
                "trial": trial,
                "settings": json.dumps(settings(trial)),
                "state": found if isinstance(found, str) else "complete",
                "objectives": None if isinstance(found, str) else json.dumps(found),
            }
            for trial, found in enumerate(reached)
        ]
        return pl.concat([frame.filter(~mine), pl.DataFrame(rows, schema=frame.schema)])

    return change


def saying(**suite: object) -> Change:
    """What the suite has besides, in the table `sweep_events`."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        told = [json.dumps(json.loads(text) | suite) for text in frame["suite_json"]]
        return frame.with_columns(pl.Series("suite_json", told))

    return change
