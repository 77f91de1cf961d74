"""What `harness compare` is given: recipes, artifacts and sweeps, found in the store by the names people use."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.report._queries import Contender, Facts, read_facts

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["Entry", "find_entries"]

_KEY = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, eq=False)
class Entry:
    """One model, or the same recipe over its seeds, with the final scores of its sweep."""

    label: str
    facts: Facts
    who: Contender


def find_entries(store: "Store", names: Sequence[str]) -> list[list[Entry]]:
    """The entries that each name stands for: one, or for a sweep all of its recipes.

    A name is a sweep's id, or a suite's (its latest sweep); a recipe, alone or after a sweep or suite and a slash, with
    `@MODEL` where the sweep has several base models; or the key of an artifact, or its first eight characters or more.

    Args:
        store: ingested already.
        names: as they were typed.

    Raises:
        UserError: a name that stands for nothing, or for several things, with what there is.
    """
    finder = _Finder(store)
    return [finder.find(name) for name in names]


class _Finder:
    def __init__(self, store: "Store") -> None:
        self._store = store
        # The latest first, by the order of writing.
        rows = store.query(
            "SELECT sweep, arg_max(suite, (batch, batch_row)) FROM raw.sweep_events GROUP BY sweep "
            "ORDER BY max((batch, batch_row)) DESC"
        ).rows()
        self._suite_of: dict[str, str] = dict(rows)
        self._read: dict[str, Facts] = {}

    def find(self, name: str) -> list[Entry]:
        if (sweep := self._sweep(name)) is not None:
            facts = self._facts(sweep)
            return [self._entry(facts, who) for who in facts.contenders]
        if _KEY.fullmatch(name) and (found := self._artifact(name)):
            return [found]
        place, _, rest = name.rpartition("/")
        recipe, _, model = rest.partition("@")
        if place and (sweep := self._sweep(place)) is not None:
            return [self._one(name, self._matching(sweep, recipe, model))]
        if not place:
            latest = {suite: sweep for sweep, suite in reversed(self._suite_of.items())}
            return [self._one(name, [e for s in latest.values() for e in self._matching(s, recipe, model)])]
        raise self._unknown(name)

    def _sweep(self, name: str) -> str | None:
        if name in self._suite_of:
            return name
        return next((sweep for sweep, suite in self._suite_of.items() if suite == name), None)

    def _facts(self, sweep: str) -> Facts:
        if sweep not in self._read:
            self._read[sweep] = read_facts(self._store, sweep)
        return self._read[sweep]

    def _entry(self, facts: Facts, who: Contender) -> Entry:
        return Entry(f"{facts.sweep}/{who.label}", facts, who)

    def _matching(self, sweep: str, recipe: str, model: str) -> list[Entry]:
        rows = self._store.query(
            "SELECT DISTINCT recipe, model FROM raw.trial_events WHERE sweep = ? AND recipe = ?", [sweep, recipe]
        ).rows()
        if not any(not model or m == model for _, m in rows):
            return []
        facts = self._facts(sweep)
        return [
            self._entry(facts, c) for c in facts.contenders if c.recipe == recipe and (not model or c.model == model)
        ]

    def _one(self, name: str, found: list[Entry]) -> Entry:
        if len(found) == 1:
            return found[0]
        if not found:
            raise self._unknown(name)
        given = ", ".join(f"{e.facts.sweep}/{e.who.recipe}@{e.who.model}" for e in found)
        raise UserError(f"{name!r} is in several places: give one of {given}")

    def _artifact(self, key: str) -> Entry | None:
        rows = self._store.query(
            "SELECT artifact, sweep, recipe, model, list(DISTINCT measurement) FROM raw.measurement_links "
            "WHERE starts_with(artifact, ?) AND phase = 'final' GROUP BY artifact, sweep, recipe, model",
            [key],
        ).rows()
        if not rows:
            return None
        if len(several := {artifact for artifact, *_ in rows}) > 1:
            raise UserError(f"{key!r} begins the keys of {len(several)} artifacts: give more of it")
        # Several sweeps may share an artifact and its measurements: the latest stands for them.
        order = list(self._suite_of)
        artifact, sweep, recipe, model, measurements = min(rows, key=lambda row: (order.index(row[1]), row[2]))
        facts = self._facts(sweep)
        import polars as pl

        mine = replace(
            facts, documents=facts.documents.filter(pl.col("measurement").is_in(list(measurements))), cache={}
        )
        who = next(c for c in mine.contenders if c.recipe == recipe and c.model == model)
        return Entry(f"{artifact[:12]} ({sweep}/{who.label})", mine, who)

    def _unknown(self, name: str) -> UserError:
        sweeps = ", ".join(list(self._suite_of)[:10]) or "none yet"
        return UserError(
            f"{name!r} is no sweep, recipe (SWEEP/RECIPE), artifact key or folder of lm-eval results; the latest "
            f"sweeps here are: {sweeps}. `harness status` lists them with their recipes"
        )
