"""Whose answers judges prefer: recipe against recipe, and every recipe against the baseline.

A judge saw each pair in both orders. A preference that changes with the order is a tie, and a pair that got no verdict
in an order is in no share: it is counted as unparsed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.errors import UserError
from harness.report._html import Html, Table, join, table, tag
from harness.report._judges_quality import judges_of, percent, quality_note
from harness.report._plot import empty
from harness.report._queries import BASE, Contender, Facts
from harness.stats import Interval, LengthControlled, PairVote, Unknown, bradley_terry, length_controlled, win_rate

__all__ = ["PANEL", "Preferred", "judged_wins", "preferred", "shared", "strengths", "votes_of", "win_rates"]

PANEL: str | None = None
"""In place of a judge: all of them together."""

_STEPS = (0.05, 0.2, 0.5)
_LEVEL = 0.05
_NOTE = (
    "In each cell the share of prompts on which the row's answer is preferred to the column's in both orders, "
    "with its 95 % interval over other prompts and, of several seeds, other trainings, = the share of ties, and "
    "n, the prompts. A preference that changes with the order is a tie. ▲ and ▼ mark a win rate (ties half) that "
    "is resolved from one half after Bonferroni's correction over all pairs. Blue: more wins than losses; orange:"
    " more losses."
)
_PLACES = (
    "Strengths by Bradley and Terry's model, ties half a win each way, of all judges together: on Elo's scale "
    "(1000 is the average), and as the win rate to be expected against an average opponent, with 95 % intervals "
    "from drawing the prompts again; other trainings are not in these intervals and places, but they are in the "
    "win rates'. Places left open are those that the data do not tell apart, all at once."
)


@dataclass(frozen=True)
class Preferred:
    """`a` against `b` by one judge or the panel: shares of prompts that `a` won and that tied, the win rate with ties
    half, whether one is resolved to be preferred, and what was counted."""

    a: str
    b: str
    won: Interval
    tied: float
    rate: Interval
    resolved: bool
    votes: int
    unparsed: int


def votes_of(facts: Facts, judge: str | None = PANEL) -> list[PairVote]:
    """The preferences that are verdicts in both orders, by a judge or by all of them."""
    return facts.once(("pair_votes", judge), lambda: _votes(facts, judge))


def _votes(facts: Facts, judge: str | None) -> list[PairVote]:
    if facts.preferences.is_empty():
        return []
    return [
        PairVote(
            prompt=row["document"],
            a=row["label_a"],
            b=row["label_b"],
            win=float(row["win"]),
            judge=row["judge_key"],
            replicate=f"{row['seed_a']}/{row['seed_b']}",
            a_first=row["verdict_first"],
            b_first=row["verdict_second"],
            length_a=row["length_a"],
            length_b=row["length_b"],
        )
        for row in facts.preferences.iter_rows(named=True)
        if row["win"] is not None and judge in (PANEL, row["judge"])
    ]


def preferred(facts: Facts, judge: str | None = PANEL) -> Mapping[tuple[str, str], Preferred]:
    """(Label, label) → what was preferred, both ways round; {} where nothing was compared."""
    return facts.once(("preferred", judge), lambda: _preferred(facts, judge))


def _preferred(facts: Facts, judge: str | None) -> dict[tuple[str, str], Preferred]:
    pairs: dict[tuple[str, str], list[PairVote]] = {}
    for vote in votes_of(facts, judge):
        pairs.setdefault((vote.a, vote.b), []).append(vote)
    found = {}
    for (a, b), votes in pairs.items():
        asked = _asked(facts, judge, a, b)
        for first, second in ((a, b), (b, a)):
            own = [vote.seen_from(first) for vote in votes]
            # Bonferroni over the pairs, so that of all marks together one in twenty is wrong at most.
            strict = win_rate(own, first, second, 1 - _LEVEL / len(pairs))
            found[first, second] = Preferred(
                first,
                second,
                win_rate([replace(vote, win=float(vote.win == 1)) for vote in own], first, second),
                sum(vote.win == 0.5 for vote in own) / len(own),
                win_rate(own, first, second),
                strict.low > 0.5 or strict.high < 0.5,
                len(own),
                asked - len(own),
            )
    return found


def _asked(facts: Facts, judge: str | None, a: str, b: str) -> int:
    import polars as pl

    mine = facts.preferences.filter((pl.col("label_a") == a) & (pl.col("label_b") == b))
    return mine.height if judge is PANEL else mine.filter(pl.col("judge") == judge).height


def _interval(found: Interval) -> str:
    return "[unknown]" if math.isnan(found.low) else f"[{100 * max(found.low, 0):.0f}, {100 * min(found.high, 1):.0f}]"


def _contenders(facts: Facts, found: Mapping[tuple[str, str], Preferred]) -> dict[str, list[Contender]]:
    """Base model → its contenders that were compared, the base model first."""
    have = {label for pair in found for label in pair}
    models: dict[str, list[Contender]] = {}
    for who in facts.contenders:
        if who.label in have:
            models.setdefault(who.model, []).append(who)
    return models


def judged_wins(facts: Facts) -> Html:
    """Recipe against recipe: by the panel, and by each judge in a fold."""
    judges = judges_of(facts)
    folds: list[Html] = []
    for judge in [PANEL, *judges] if len(judges) > 1 else judges:
        for model, contenders in _contenders(facts, preferred(facts, judge)).items():
            named = "all judges together" if judge is PANEL else f"judge {judge}"
            title = f"{named} · {model}" if len({c.model for c in facts.contenders}) > 1 else named
            content = join(_matrix(preferred(facts, judge), contenders), quality_note(facts, judge and [judge]))
            folds.append(tag("details", tag("summary", title), content, open=not folds, name_="judged-wins"))
    if not folds:
        return empty(None, "No two recipes' answers have been compared yet.")
    return join(tag("p", _NOTE, class_="fine"), *folds)


def _matrix(found: Mapping[tuple[str, str], Preferred], contenders: Sequence[Contender]) -> Html:
    rows = []
    for row in contenders:
        cells = [_cell(found.get((row.label, column.label))) for column in contenders]
        rows.append([tag("strong", row.label), *cells])
    return table(Table(["", *(who.label for who in contenders)], rows))


def _cell(found: Preferred | None) -> Html | None:
    if found is None:
        return None
    net = 2 * found.rate.value - 1
    step = sum(abs(net) >= least for least in _STEPS)
    style = f"win {'up' if net > 0 else 'down'}{step}" if step else "win"
    mark = (" ▲" if net > 0 else " ▼") if found.resolved else ""
    unparsed = f", {found.unparsed} unparsed" if found.unparsed else ""
    return join(
        tag("span", f"{percent(found.won)}{mark}", class_=style),
        tag("span", f" {_interval(found.won)}", class_="interval"),
        tag("span", f"={100 * found.tied:.0f} %, n {found.rate.n}{unparsed}", class_="detail"),
    )


def _baseline(facts: Facts) -> str:
    measure = facts.settings.get("measure")
    judge = measure.get("judge") if isinstance(measure, dict) else None
    pairwise = judge.get("pairwise") if isinstance(judge, dict) else None
    return str(pairwise.get("against", BASE)) if isinstance(pairwise, dict) else BASE


def win_rates(facts: Facts) -> Html:
    """Every recipe against the baseline, by each judge and by all of them."""
    judges = judges_of(facts)
    against = _baseline(facts)
    rows: list[list[object]] = []
    for who in facts.contenders:
        base = next((c for c in facts.contenders if c.recipe == against and c.model == who.model), None)
        for judge in [*judges, PANEL] if len(judges) > 1 else judges:
            one = preferred(facts, judge).get((who.label, base.label)) if base is not None else None
            if one is not None and base is not None:
                said = shared(one.rate)
                alike = _controlled(facts, judge, base.label)[who.label]
                counts = [percent(one.won), percent(one.tied), one.rate.n, one.votes, one.unparsed]
                rows.append([who.label, judge or "all together", said, shared(alike.controlled), *counts])
    if not rows:
        return empty(None, f"No recipe's answers have been compared with those of {against} yet.")
    headers = [
        "recipe",
        "judge",
        "win rate, 95 %",
        "of equal length, 95 %",
        "won",
        "tied",
        "prompts",
        "votes",
        "unparsed",
    ]
    note = (
        f"Win rate against {against}, ties half, with its 95 % interval over other prompts and, of several seeds, "
        "other trainings (two seeds tell little of these); all votes about a prompt, by several judges or on several "
        "seeds, go together. Of equal length: the rate to be expected had both answers been equally long (AlpacaEval "
        "2's model, Dubois et al. 2024, fitted on these prompts); where it is far from the raw rate, the judge went "
        "by length."
    )
    return join(tag("p", note, class_="fine"), table(Table(headers, rows)), quality_note(facts))


def _controlled(facts: Facts, judge: str | None, base: str) -> Mapping[str, LengthControlled]:
    key = ("length_controlled", judge, base)
    return facts.once(key, lambda: length_controlled(votes_of(facts, judge), base))


def shared(found: Interval | Unknown) -> Html:
    """A share with its interval, or why there is none."""
    if isinstance(found, Unknown):
        return tag("span", f"unknown: {found.reason}", class_="interval")
    return tag("span", percent(found), " ", tag("span", _interval(found), class_="interval"), class_="num")


def strengths(facts: Facts) -> Html:
    """How strong each recipe is by all preferences together, with the places that the data leave open to it."""
    rows: list[list[object]] = []
    refused = []
    models = {label: who.model for who in facts.contenders for label in [who.label]}
    for model in dict.fromkeys(models.values()):
        votes = [vote for vote in votes_of(facts) if models.get(vote.a) == model]
        if not votes:
            continue
        try:
            found = bradley_terry(votes)
        except UserError as error:
            # While a sweep runs, some recipes have met nobody yet.
            refused.append(f"{model}: {error}")
            continue
        for label, one in sorted(found.items(), key=lambda pair: (pair[1].rank.rank, pair[0])):
            rank = one.rank
            place = tag(
                "span", f"{rank.rank} ", tag("span", f"[{rank.low}, {rank.high}] of {len(found)}", class_="interval")
            )
            elo = tag("span", f"{one.elo.value:.0f} ", tag("span", _elo(one.elo), class_="interval"), class_="num")
            rows.append([label, model, place, elo, shared(one.win_rate), one.elo.n])
    if not rows:
        return empty(None, " ".join(refused) or "No two recipes' answers have been compared yet.")
    headers = ["recipe", "model", "place, those left open", "Elo, 95 %", "expected win rate, 95 %", "prompts"]
    notes = [tag("p", text, class_="fine") for text in (_PLACES, *refused)]
    return join(*notes, table(Table(headers, rows)), quality_note(facts))


def _elo(found: Interval) -> str:
    return "[unknown]" if math.isnan(found.low) else f"[{found.low:.0f}, {found.high:.0f}]"
