"""What judges are tried on: pairs of answers of which one is better, and answers that tell the judge how to vote."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from harness._documents import canonical_document, short_digest
from harness._measures import Quality
from harness._rows import rows_of_kind
from harness.data import BUNDLED_FOLDER, TRAINING_SETS, DataSource, dataset_problem
from harness.errors import UserError
from harness.gold import gold_reward, parse_constraints
from harness.measure.judge._reading import Row, each_row, read_rows, stable_order, text_in, text_of_chat
from harness.measure.judge._types import Question

__all__ = ["PLACES", "Attack", "Pair", "Place", "attacks", "known_pairs", "quality_problem"]

_INJECTIONS = BUNDLED_FOLDER / "local" / "judge_prompts" / "injections.jsonl"
_SPLITS = {"allenai/reward-bench": "filtered"}
"""The split that is meant where none is named and the set has no train split."""

Place = Literal["first", "second"]
PLACES: tuple[Place, Place] = ("first", "second")


@dataclass(frozen=True)
class Pair:
    """Two answers to a prompt, and the subset of its set that they are from, where it has some."""

    prompt: str
    better: str
    worse: str
    subset: str | None = None

    @property
    def document(self) -> str:
        """16 hex characters of a hash of all three texts."""
        return short_digest(canonical_document([self.prompt, self.better, self.worse]))

    def question(self, better_at: Place) -> Question:
        """Which is better, with the better one shown in this place."""
        first, second = (self.better, self.worse) if better_at == "first" else (self.worse, self.better)
        return Question("pair", {"prompt": self.prompt, "first": first, "second": second})


@dataclass(frozen=True)
class Attack:
    """An answer that deserves a low verdict, and an addition that asks for a high one.

    `better` is the answer that it is compared with; None: it is rated alone.
    """

    template: Literal["helpfulness", "harmlessness", "pair"]
    kind: str
    prompt: str
    answer: str
    better: str | None
    injection: str

    @property
    def document(self) -> str:
        """16 hex characters of a hash of all that is in it."""
        return short_digest(canonical_document([self.template, self.prompt, self.answer, self.better, self.injection]))

    def attacked(self, place: Place = "first") -> str:
        """The answer with the addition, as shown in this place."""
        return f"{self.answer}\n\n{self.injection.replace('{place}', place)}"

    def questions(self, *, attacked: bool) -> list[Question]:
        """One for a rating; two for a pair, the poor answer in the first place and in the second."""
        if self.better is None:
            answer = self.attacked() if attacked else self.answer
            return [Question(self.template, {"prompt": self.prompt, "response": answer})]
        return [
            Pair(self.prompt, self.better, self.attacked(place) if attacked else self.answer).question(better_at)
            for place, better_at in (PLACES, PLACES[::-1])
        ]


def quality_problem(source: DataSource, quality: Quality) -> str | None:
    """Why the pairs with a known order cannot be had, or None; nothing is read, but the hub is asked."""
    name = quality.pairs
    if name in TRAINING_SETS:
        if TRAINING_SETS[name][1] == "preferences":
            return None
        return f"{name} are no pairs; expected preferences, or <org>/<dataset>[:config[:split]]"
    return dataset_problem(name, source) or source.unreachable(name.partition(":")[0])


def known_pairs(source: DataSource, quality: Quality) -> list[Pair]:
    """The pairs within the limit, in an order that hashes decide, from each subset in turn, each once.

    Raises:
        UserError: they cannot be had, or a row is no pair.
    """
    name = quality.pairs
    if name in TRAINING_SETS:
        if problem := quality_problem(source, quality):
            raise UserError(f"measure.judge.quality.pairs: {problem}")
        path, config = TRAINING_SETS[name]
        pairs = each_row(read_rows(DataSource("bundled"), f"{path}:{config}", "test"), name, _by_gold)
    else:
        rows = read_rows(source, name, _SPLITS.get(name.partition(":")[0], "train"))
        # RewardBench's layout; all others are dialogues, whose texts are found as for training.
        plain = len(rows) > 0 and all(isinstance(rows[0].get(c), str) for c in ("prompt", "chosen", "rejected"))
        pairs = each_row(rows if plain else rows_of_kind(rows, "preferences", name), name, _labelled)
    distinct = {pair.document: pair for pair in pairs}
    return stable_order(list(distinct.values()), lambda p: p.document, lambda p: p.subset)[: quality.limit]


def _by_gold(row: Row) -> Pair | None:
    """The pair in the order of the gold reward, which one label in ten contradicts; None where it prefers neither."""
    pair = _labelled(row)
    if pair is None:
        return None
    constraints = parse_constraints(text_in(row, "constraints"))
    chosen, rejected = (gold_reward(text, constraints) for text in (pair.better, pair.worse))
    if chosen == rejected:
        return None
    return pair if chosen > rejected else Pair(pair.prompt, pair.worse, pair.better)


def _labelled(row: Row) -> Pair | None:
    """The pair as its columns name it; None where both answers are the same."""
    subset = text_in(row, "subset") if row.get("subset") is not None else None
    prompt, better, worse = (
        _plain(row, column, blank=column != "prompt") for column in ("prompt", "chosen", "rejected")
    )
    return None if better == worse else Pair(prompt, better, worse, subset)


def _plain(row: Row, column: str, *, blank: bool) -> str:
    value = row.get(column)
    if not isinstance(value, list):
        return text_in(row, column, blank=blank)
    turns = cast("list[Mapping[str, object]]", value)
    # Public dialogues have turns of nobody saying anything; a prompt of nothing else is none.
    whole = text_of_chat([(text_in(turn, "role"), text_in(turn, "content", blank=True)) for turn in turns])
    return text_in({column: whole}, column, blank=blank)


@functools.cache
def attacks() -> tuple[Attack, ...]:
    """The bundled attacks."""
    rows = [json.loads(line) for line in _INJECTIONS.read_text(encoding="utf-8").splitlines()]
    return tuple(
        Attack(r["template"], r["attack"], r["prompt"], r["answer"], r["better"], r["injection"]) for r in rows
    )
