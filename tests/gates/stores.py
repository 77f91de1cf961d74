"""The scenario's sweep with answers that a test chooses."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import polars as pl

from harness.data import DataSource
from harness.gates import GATES, Flag, Unchecked
from harness.gates._evidence import Asked, Evidence, read_evidence
from harness.store import Store
from tests.report.stores import Change, derive
from tests.store.scenario import SWEEP

Answer = tuple[str, float, str, str, str]
"""Document, score, response, expected, prompt."""
Answers = Callable[[str, int], Iterator[Answer]]
"""Recipe and seed → answers."""

N = 40


def answers(right: int, response: Callable[[int], str] | None = None) -> Answers:
    """Forty documents with the choices A to D, each right ten times; the first `right` by a shuffle are answered so.

    A wrong answer is the next letter, so that none is given more often than another.
    """

    def make(recipe: str, seed: int) -> Iterator[Answer]:
        for i in range(N):
            expected = "ABCD"[i % 4]
            good = (i * 7 + 3 * seed) % N < right
            given = response(i) if response else expected if good else "ABCD"[(i + 1) % 4]
            yield f"{i:016x}", float(given == expected if response else good), given, expected, f"Question {i}"

    return make


def texts(right: int) -> Answers:
    """The same of a task whose answers are written."""

    def make(recipe: str, seed: int) -> Iterator[Answer]:
        for i in range(N):
            good = (i * 7 + 3 * seed) % N < right
            said = f"It is {2 * i}." if good else f"It may be {i}."
            yield f"{i:016x}", float(good), said, f"#### {2 * i}", f"What is {i} + {i}?"

    return make


def change(
    store: Store,
    results: Path,
    tasks: Mapping[str, tuple[str, Answers]],
    settings: Mapping[str, object] | None = None,
    **others: Change,
) -> Store:
    """A new store in which tasks (name → metric, answers) have these final answers; the rest is as it was.

    Args:
        settings: task → the settings of its measurements.
        others: table → a further change.
    """
    links = store.query(
        "SELECT DISTINCT measurement, recipe, min(seed) AS seed, m.task FROM raw.measurement_links l "
        "JOIN raw.measurements m USING (measurement) WHERE phase = 'final' GROUP BY ALL ORDER BY ALL"
    )
    chosen = links.filter(pl.col("task").is_in(list(tasks)))
    rows = [
        {
            "measurement": key,
            "document": document,
            "half": "final",
            "prompt_hash": document,
            "metric": tasks[task][0],
            "score": score,
            "response": response,
            "expected": expected,
            "prompt": prompt,
        }
        for key, recipe, seed, task in chosen.iter_rows()
        for document, score, response, expected, prompt in tasks[task][1](recipe, seed)
    ]

    def samples(frame: pl.DataFrame) -> pl.DataFrame:
        rest = frame.filter(~pl.col("measurement").is_in(chosen["measurement"].to_list()))
        return pl.concat([rest, pl.DataFrame(rows, schema=frame.schema)]) if rows else rest

    def asked(frame: pl.DataFrame) -> pl.DataFrame:
        new = pl.lit(None, dtype=pl.String)
        for task, given in (settings or {}).items():
            new = pl.when(pl.col("task") == task).then(pl.lit(json.dumps(given))).otherwise(new)
        return frame.with_columns(pl.coalesce(new, pl.col("settings")).alias("settings"))

    also = others.pop("measurements", lambda frame: frame)
    return derive(store, results, {"samples": samples, "measurements": lambda f: also(asked(f)), **others})


def answered(evidence: Evidence, task: str, metric: str, make: Answers) -> Evidence:
    """The same evidence, in memory, with other answers to one task."""

    def rows(one: Asked, seed: int | None) -> pl.DataFrame:
        columns = ("document", "score", "response", "expected")
        frame = pl.DataFrame([a[:4] for a in make(one.recipe, seed or 0)], schema=columns, orient="row")
        return frame.with_columns(
            pl.lit(task).alias("leaf"),
            pl.lit(metric).alias("metric"),
            pl.col("response").str.len_chars().cast(pl.Int64).alias("characters"),
        )

    return replace(
        evidence,
        asked=[
            replace(one, seeds={seed: rows(one, seed) for seed in one.seeds}) if one.task == task else one
            for one in evidence.asked
        ],
    )


def said(evidence: Evidence, gate: str, task: str | None = None) -> tuple[list[Flag], list[Unchecked]]:
    """What one gate says of evidence, or of one task in it."""
    with evidence.store.reading():
        mine = [one for one in GATES[gate](evidence) if task is None or one.task == task]
    return [f for f in mine if isinstance(f, Flag)], [u for u in mine if isinstance(u, Unchecked)]


def ask(
    store: Store, gate: str, task: str | None = None, source: DataSource | None = None, results: Path | None = None
) -> tuple[list[Flag], list[Unchecked]]:
    """What one gate says of the sweep, or of one task in it."""
    return said(read_evidence(store, SWEEP, source, results), gate, task)
