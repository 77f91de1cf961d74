"""How far each judge agrees with people on the very answers that people have rated."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.human._ratings import read_people
from harness.stats import PeopleAgreement, Rating, agreement_with_people

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["JudgeBeside", "judges_beside"]

# People saw the first turn. A judge that is each model itself goes by one name, and is taken as one.
_VOTES = """
    SELECT v.judge, v.aspect, v.document, v.measurement, avg(v.score) AS score
    FROM raw.judge_votes v
    WHERE v.half = 'final' AND coalesce(v.turn, 1) = 1 AND v.score IS NOT NULL AND list_contains($keys, v.measurement)
    GROUP BY ALL ORDER BY ALL
"""


@dataclass(frozen=True)
class JudgeBeside:
    """A judge beside people on one criterion, over so many `answers` that both have rated."""

    judge: str
    criterion: str
    answers: int
    agreement: PeopleAgreement


def judges_beside(store: "Store", sweep: str, *, failed: bool = False) -> list[JudgeBeside]:
    """Every judge beside people, by criterion, where the judge judges what people rate by; [] for none.

    Args:
        store: ingested already.
        sweep: the sweep's id.
        failed: count raters who failed an attention check too.
    """
    people = read_people(store, sweep, failed=failed)
    if people is None or not people.marks:
        return []
    rated: dict[str, list[Rating]] = {}
    answers: dict[tuple[str, str], set[str]] = {}
    for mark in people.marks:
        rating = Rating(mark.document, mark.answer, mark.rater, float(mark.score))
        rated.setdefault(mark.criterion, []).append(rating)
        # Two recipes may share one measurement, and each is an answer of its own to people.
        answers.setdefault((mark.measurement, mark.document), set()).add(mark.answer)
    judged: dict[tuple[str, str], list[Rating]] = {}
    rows = store.query(_VOTES, {"keys": sorted({mark.measurement for mark in people.marks})})
    for judge, aspect, document, measurement, score in rows.iter_rows():
        for answer in sorted(answers.get((measurement, document), ())):
            judged.setdefault((aspect, judge), []).append(Rating(document, answer, judge, score))
    found = []
    for (aspect, judge), mine in sorted(judged.items()):
        if theirs := rated.get(aspect):
            both = {(r.prompt, r.model) for r in mine} & {(r.prompt, r.model) for r in theirs}
            found.append(JudgeBeside(judge, aspect, len(both), agreement_with_people(mine, theirs)))
    return found
