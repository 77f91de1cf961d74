"""A store with made data: the scenario's, its steps having said things on their way into a dataset."""

from collections.abc import Sequence
from pathlib import Path

from harness.execute._generations import generation_rows
from harness.method import Record
from harness.store import Store
from tests.report.stores import derive
from tests.store.scenario import SCRIPT

__all__ = ["PRINCIPLE", "made_store", "revised", "sampled", "stage_of"]

PRINCIPLE = f"Choose the answer that is kinder. {SCRIPT}"


def revised(rows: int) -> list[Record]:
    """An answer, its critique by a principle and its revision, of each prompt; every other revision was kept."""
    records = []
    for row in range(rows):
        prompt = f"What is {row} + {row}? {SCRIPT}"
        records += [
            Record(row, 0, "answer", prompt, f"It is {2 * row}, as any fool knows."),
            Record(row, 1, "critique", f"{prompt}\n\nCriticise it.", f"Number {row} is rude.", principle=PRINCIPLE),
            Record(row, 2, "revision", prompt, f"It is {2 * row}. {SCRIPT}", PRINCIPLE, kept=row % 2 == 0),
        ]
    return records


def sampled(rows: int, each: int) -> list[Record]:
    """`each` samples of every prompt, scored 0, 1, …; the last was kept."""
    return [
        Record(row, turn, "sample", f"Say {row}.", f"{row}, time {turn}", "", "reward", float(turn), turn == each - 1)
        for row in range(rows)
        for turn in range(each)
    ]


def stage_of(store: Store, recipe: str, step: str, seed: int) -> str:
    """The stage of a final run's step."""
    return str(
        store.query(
            "SELECT DISTINCT l.stage FROM lineage l JOIN trials t USING (sweep, recipe, model, trial, seed) "
            "WHERE t.phase = 'final' AND l.recipe = ? AND l.step = ? AND l.seed = ?",
            [recipe, step, seed],
        ).item()
    )


def made_store(source: Store, results: Path, said: Sequence[tuple[str, str, int, Sequence[Record]]]) -> Store:
    """The scenario's store with what these steps said: recipe, step, seed, records."""
    other = derive(source, results, {})
    for recipe, step, seed, records in said:
        other.append("generations", generation_rows(stage_of(source, recipe, step, seed), records))
    other.ingest()
    return other
