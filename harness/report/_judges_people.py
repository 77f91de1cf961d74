"""What people say of the same answers, beside what the judges say, and how far the two agree."""

from typing import TYPE_CHECKING

from harness.human import HumanFigures, ratings_of
from harness.report._compare import aspects
from harness.report._html import Html, Table, join, table, tag
from harness.report._judges_diagnostics import answer_name, figure, rated
from harness.report._judges_quality import judges_of, quality_note
from harness.report._judges_wins import preferred, shared
from harness.report._queries import Facts
from harness.report._words import counted
from harness.stats import Rating, agreement_with_people

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["people"]

_NOTE = (
    "People rate from 1 to 7; intervals are 95 %, over other prompts and other raters. Whom people prefer stands "
    "beside whom all judges together prefer, ties half."
)
_AGREED = (
    "Of the pairs of answers to one prompt that people rate differently, the share that the judge puts in the same "
    "order (50 % is chance), and Spearman's correlation over all answers."
)


def people(store: "Store", facts: Facts) -> Html | None:
    """Ratings by recipe and criterion, preferences, and agreement with each judge; None where nobody has rated."""
    found = ratings_of(store, facts.sweep)
    if found is None:
        return None
    names = {(c.recipe, c.model): c.label for c in facts.contenders}
    rows: list[list[object]] = [
        [one.criterion, names.get((one.recipe, one.model), one.recipe), figure(one.interval), one.prompts, one.raters]
        for one in found.rated
    ]
    headers = ["criterion", "recipe", "mean of people, 95 %", "prompts", "raters"]
    left = found.left_out
    out = f" {counted(left, 'rater')} failed an attention check and is in no figure." if left else ""
    return join(
        tag("p", _NOTE + out, class_="fine"),
        table(Table(headers, rows)) if rows else None,
        _preferences(facts, found),
        _agreement(store, facts),
        quality_note(facts),
    )


def _preferences(facts: Facts, found: HumanFigures) -> Html | None:
    rows: list[list[object]] = []
    judged = preferred(facts)
    names = {(c.recipe, c.model): c.label for c in facts.contenders}
    for one in found.preferred:
        by_judges = judged.get((names.get((one.a, one.model), one.a), names.get((one.b, one.model), one.b)))
        beside = None if by_judges is None else shared(by_judges.rate)
        rows.append([f"{one.a} − {one.b}", shared(one.win), beside, one.ties, one.prompts, one.raters])
    if not rows:
        return None
    headers = ["first − second", "people, 95 %", "judges, 95 %", "ties of people", "prompts", "raters"]
    return join(tag("h4", "Preferred"), table(Table(headers, rows)))


def _agreement(store: "Store", facts: Facts) -> Html | None:
    said = store.query(
        "SELECT document, recipe, model, seed, rater, criterion, score FROM ratings "
        "WHERE sweep = $sweep AND kind = 'rating' AND checks_failed = 0 ORDER BY ALL",
        {"sweep": facts.sweep},
    ).unique(["document", "recipe", "model", "seed", "rater", "criterion"], keep="last", maintain_order=True)
    names = {(c.recipe, c.model): c.label for c in facts.contenders}
    rows: list[list[object]] = []
    for aspect in aspects(facts):
        theirs = {
            (document, name, rater): Rating(document, name, rater, float(score))
            for document, recipe, model, seed, rater, criterion, score in said.iter_rows()
            if criterion == aspect
            for name in [answer_name(facts, names.get((recipe, model), recipe), seed)]
        }
        for judge in judges_of(facts):
            mine = [one for one in rated(facts, aspect) if one.rater == judge]
            if mine and theirs:
                both = agreement_with_people(mine, list(theirs.values()))
                rows.append([aspect, judge, shared(both.alike), figure(both.spearman)])
    if not rows:
        return None
    content = table(Table(["criterion", "judge", "same order, 95 %", "Spearman, 95 %"], rows))
    return join(tag("h4", "Judges and people"), content, tag("p", _AGREED, class_="fine"))
