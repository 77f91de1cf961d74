"""Returned files into the store: all files of a call or none, each rater's answers to a form once."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError
from harness.human._checks import passes
from harness.human._keys import KnownForm, human_folder, known_forms
from harness.human._returned import Returned, ReturnedItem, arranged, problems_of, read_file

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["Taken", "import_ratings"]

_BEFORE = "SELECT form, rater, submission, max(batch) AS batch FROM raw.human_ratings GROUP BY ALL ORDER BY batch"


@dataclass(frozen=True)
class Taken:
    """A submission that is in the store now."""

    file: Path
    sweep: str
    rater: str
    items: int
    checks: int
    failed: int
    replaced: bool


def import_ratings(store: "Store", files: Sequence[Path], *, replace: bool = False) -> list[Taken]:
    """Store what raters sent back.

    A call takes all of its files or, if one is refused, none: so the same command, once the file is mended or left
    out, says of no other file that it is there already. All rows are written in one batch.

    Args:
        store: the results folder whose `harness human create` made the forms.
        replace: a rater's newer answers to a form take the place of the earlier, which stay in the raw table.

    Raises:
        UserError: a file is refused; every one is named with its reasons, and nothing is stored.
        StorageError: the disk refuses.
    """
    from harness.lock import only_one

    forms = known_forms(store.results)
    if not forms:
        raise UserError(f"no forms were made in {store.results}: run `harness human create SWEEP`, or give --results")
    with only_one(human_folder(store.results), "harness human import"):
        store.ingest()
        before = {(form, rater): submission for form, rater, submission, _ in _before(store)}
        ever = {submission for _, _, submission, _ in _before(store)}
        refused: list[str] = []
        rows: list[dict[str, object]] = []
        taken: list[Taken] = []
        at = datetime.datetime.now(datetime.UTC)
        seen: dict[tuple[str, str], Path] = {}
        for file in files:
            try:
                found = read_file(file)
            except ValueError as error:
                refused.append(f"{file}: {error}")
                continue
            for given in found:
                form = forms.get(given.form)
                if form is None:
                    refused.append(f"{file}: of a form that was not made in {store.results} (another study or folder?)")
                    continue
                one = arranged(given, form)
                who = (one.form, one.rater)
                problems = [*problems_of(one, form), *_doubled(one, who, seen, before, ever, replace=replace)]
                seen.setdefault(who, file)
                refused += [f"{file}: {problem}" for problem in problems]
                if not problems:
                    made = _rows(one, form, before.get(who), at)
                    checks = [row["passed"] for row in made if row["kind"] == "check"]
                    rows += made
                    failed = checks.count(False)
                    taken.append(Taken(file, form.sweep, one.rater, len(one.items), len(checks), failed, who in before))
        if refused:
            raise UserError(f"nothing was stored; {len(refused)} problem(s):\n  " + "\n  ".join(refused))
        store.append("human_ratings", rows)
        store.ingest()
    return taken


def _before(store: "Store") -> list[tuple[Any, ...]]:
    return store.query(_BEFORE).rows() if store.ready() else []


def _doubled(
    one: Returned,
    who: tuple[str, str],
    seen: Mapping[tuple[str, str], Path],
    before: Mapping[tuple[str, str], str],
    ever: set[str],
    *,
    replace: bool,
) -> list[str]:
    if who in seen:
        return [f"doubled: {seen[who]} has the answers of {one.rater} to the same form; give one of the two"]
    if before.get(who) == one.submission:
        return [f"doubled: these answers of {one.rater} are in the store already"]
    if one.submission in ever:
        return [f"doubled: these answers of {one.rater} were in the store, and newer ones have taken their place"]
    if who in before and not replace:
        return [f"doubled: {one.rater} has answered this form before, otherwise; with --replace these take their place"]
    return []


def _rows(one: Returned, form: KnownForm, replaces: str | None, at: datetime.datetime) -> list[dict[str, object]]:
    from harness.store import TABLES

    nothing: dict[str, object] = dict.fromkeys(TABLES["human_ratings"].names)
    whole = nothing | {
        "submission": one.submission,
        "sweep": form.sweep,
        "study": form.study,
        "form": one.form,
        "rater": one.rater,
        "replaces": replaces,
        "at": at,
    }
    rows: list[dict[str, object]] = []
    for item in one.items:
        key = form.items[item.item]
        # Half a character, which a broken keyboard driver can leave, has no UTF-8.
        comment = item.comment.encode("utf-8", "replace").decode("utf-8").strip() or None
        seconds = None if item.seconds is None else float(item.seconds)
        shared = {"item": item.item, "shown": form.order.index(item.item) + 1, "comment": comment, "seconds": seconds}
        if key["kind"] == "check":
            passed = passes(key["target"], key["asked"], item.scores, form.criteria)
            rows.append(whole | shared | {"kind": "check", "passed": passed})
        else:
            rows += [whole | shared | {"document": key["document"]} | row for row in _decided(item, form, key)]
    return rows


def _decided(item: ReturnedItem, form: KnownForm, key: Mapping[str, Any]) -> list[dict[str, object]]:
    answers = [{**answer, "position": place} for place, answer in enumerate(key["answers"], start=1)]
    rows: list[dict[str, object]] = [
        {**answer, "kind": "rating", "criterion": criterion, "score": score}
        for answer, scores in zip(answers, item.scores, strict=True)
        for criterion, score in zip(form.criteria, scores, strict=True)
    ]
    for (first, second), mark in zip(form.pairs, item.preferences, strict=True):
        other = {f"other_{n}": answers[second][n] for n in ("recipe", "seed", "artifact", "measurement", "position")}
        rows.append({**answers[first], **other, "kind": "preference", "preference": 4 - mark})
    return rows
