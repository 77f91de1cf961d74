"""How far each judge can be believed: known pairs, orders, places, lengths, attacks, votes that were none, and cost."""

from collections.abc import Sequence

from harness.report._compare import aspects
from harness.report._html import Html, Table, join, number, table, tag
from harness.report._judges_quality import Known, judges_of, known
from harness.report._judges_wins import shared, votes_of
from harness.report._plot import empty
from harness.report._queries import Facts
from harness.report._words import span
from harness.stats import (
    Interval,
    LengthBias,
    Rating,
    Slope,
    Unknown,
    flip_rate,
    krippendorff_alpha,
    length_bias,
    pairwise_kappa,
    position_bias,
    self_preference,
    verbosity,
)

__all__ = ["answer_name", "diagnostics", "doubts", "figure", "rated"]

_NOTE = (
    "Known pairs: two answers of which one is better for certain; ties count half, chance is 50 %. Flips: verdicts "
    "that change when the answers change places. Of the flips, those that lean to the first place: 50 % has no bias. "
    "Longer preferred: of the decided pairs, those whose longer answer won; where better answers are longer this need "
    "not be a bias. Attacks: answers that tell the judge how to vote, and got what they asked for. A vote that is no "
    "verdict is counted here and in no figure. Intervals are 95 %."
)


def diagnostics(facts: Facts) -> Html:
    """A column a judge, a row a figure; then attacks by kind, agreement of the judges and the answers' lengths."""
    judges = judges_of(facts)
    if not judges:
        return empty(None, facts.why_none("judge", "been judged"))
    columns = [_column(facts, judge) for judge in judges]
    rows = [[tag("strong", name), *(column[i][1] for column in columns)] for i, (name, _) in enumerate(columns[0])]
    return join(
        *doubts(facts),
        table(Table(["", *judges], rows)),
        tag("p", _NOTE, class_="fine"),
        _attacks([known(facts)[judge] for judge in judges]),
        _agreement(facts, judges),
        _lengths(facts),
    )


def doubts(facts: Facts) -> list[Html]:
    """A sentence for each judge that is no better than chance, or of which nothing is known."""
    said = [one.doubt() for one in known(facts).values()]
    return [tag("p", sentence, class_="verdict-words doubt") for sentence in said if sentence is not None]


def _column(facts: Facts, judge: str) -> list[tuple[str, object]]:
    one = known(facts)[judge]
    votes = votes_of(facts, judge)
    lengths = length_bias(votes) if votes else None
    return [
        ("right on known pairs", _share(one.accuracy)),
        ("flips on known pairs", _share(one.flips)),
        ("flips on compared answers", _share(flip_rate(votes) if votes else None)),
        ("of the flips, first place preferred", _share(position_bias(votes) if votes else None)),
        ("longer answer won", _share(None if lengths is None else lengths.longer_won)),
        ("win rate more for an answer twice as long", _slope(lengths)),
        ("own model preferred more than by others", _own(facts, judge)),
        ("attacks that succeeded", _share(one.injections)),
        ("questions of the checks that got no verdict", f"{one.unparsed:,} of {one.asked:,}" if one.asked else None),
        *_spent(facts, judge),
    ]


def _share(found: Interval | Unknown | None) -> Html | None:
    return None if found is None else shared(found)


def _slope(found: LengthBias | None) -> Html | None:
    if found is None:
        return None
    if isinstance(found.slope, Unknown):
        return shared(found.slope)
    return _number(found.slope)


def _own(facts: Facts, judge: str) -> Html | None:
    """Self-preference of a judge that is one of the models compared."""
    who = next((c for c in facts.contenders if judge in (c.label, c.recipe) or (c.is_base and judge == c.model)), None)
    votes = votes_of(facts)
    if who is None or not any(who.label in (vote.a, vote.b) for vote in votes):
        return None
    keys = {vote.judge for vote in votes_of(facts, judge)}
    found = self_preference(votes, min(keys), who.label) if len(keys) == 1 else Unknown("it is several models")
    return figure(found)


def _spent(facts: Facts, judge: str) -> list[tuple[str, object]]:
    import polars as pl

    said: list[tuple[str, object]] = []
    cost = 0.0
    priced = False
    for kind in ("ratings", "pairs"):
        mine = facts.spent.filter((pl.col("judge") == judge) & (pl.col("kind") == kind))
        votes, unparsed = int(mine["votes"].sum()), int(mine["unparsed"].sum())
        said.append((f"votes that are no verdict, {kind}", f"{unparsed:,} of {votes:,}" if votes else None))
        priced = priced or mine["cost"].drop_nulls().len() > 0
        cost += float(mine["cost"].sum())
    checks = facts.checks.filter(pl.col("judge") == judge)["cost"].drop_nulls()
    cost += float(checks.sum())
    said.append(("cost, in the currency of its prices", f"{cost:.4g}" if priced or checks.len() else None))
    return said


def _attacks(judges: Sequence[Known]) -> Html | None:
    kinds = sorted({kind for one in judges for kind in one.attacks})
    if not kinds:
        return None
    rows: list[list[object]] = [
        [
            kind,
            *(f"{one.attacks[kind][0]} of {one.attacks[kind][1]}" if kind in one.attacks else None for one in judges),
        ]
        for kind in kinds
    ]
    content = table(Table(["attack", *(one.judge for one in judges)], rows))
    return tag("details", tag("summary", "Attacks by their kind"), content)


_SIDES = {1.0: 2.0, 0.5: 1.0, 0.0: 0.0}


def _agreement(facts: Facts, judges: Sequence[str]) -> Html | None:
    """How far the judges agree on pairs and on ratings: alpha of all of them, kappa of every two."""
    if len(judges) < 2:
        return None
    # A judge that is several models may have voted on one pair several times: one of its votes stands for it.
    one_each = {(v.prompt, f"{v.a} against {v.b}, {v.replicate}", j): v.win for j in judges for v in votes_of(facts, j)}
    pairs = [Rating(*place, _SIDES[win]) for place, win in one_each.items()]
    rows: list[list[object]] = []
    if pairs:
        rows.append(
            ["which is better", "all", "Krippendorff's alpha, nominal", figure(krippendorff_alpha(pairs, "nominal"))]
        )
        rows += [
            ["which is better", f"{a} and {b}", "Cohen's kappa", figure(found)]
            for (a, b), found in pairwise_kappa(pairs).items()
        ]
    for aspect in aspects(facts):
        given = rated(facts, aspect)
        if len({one.rater for one in given}) > 1:
            alpha = krippendorff_alpha(given, "interval")
            rows.append([aspect, "all", "Krippendorff's alpha, interval", figure(alpha)])
    if not rows:
        return None
    headers = ["what", "judges", "agreement", "value, 95 %"]
    note = "1 is full agreement, 0 what chance gives; below about 0.67 little can be concluded (Krippendorff 2004)."
    return join(tag("h4", "Agreement of the judges"), table(Table(headers, rows)), tag("p", note, class_="fine"))


def figure(found: Interval | Unknown) -> Html:
    """A value with its interval, or why there is none."""
    return shared(found) if isinstance(found, Unknown) else _number(found)


def _number(found: Interval | Slope) -> Html:
    interval = tag("span", span(found.low, found.high), class_="interval")
    return tag("span", number(found.value), " ", interval, class_="num")


def answer_name(facts: Facts, label: str, seed: int) -> str:
    """Whose answers these are: of a seed, but for the base model, which has one under every seed."""
    base = any(c.is_base and c.label == label for c in facts.contenders)
    return label if base else f"{label}, seed {seed}"


def rated(facts: Facts, aspect: str) -> list[Rating]:
    """What each judge gave each answer on its own: the mean over the turns."""
    import polars as pl

    if facts.votes.is_empty():
        return []
    own = {c.label: facts.target_of(c) for c in facts.contenders}
    mine = facts.votes.filter(
        (pl.col("aspect") == aspect)
        & pl.col("score").is_not_null()
        & (pl.col("target") == pl.col("label").replace_strict(own, default=facts.target))
    )
    means = mine.group_by("document", "label", "seed", "judge", maintain_order=True).agg(pl.col("score").mean())
    return [
        Rating(d, answer_name(facts, label, seed), judge, score) for d, label, seed, judge, score in means.iter_rows()
    ]


def _lengths(facts: Facts) -> Html | None:
    """How long the compared answers are: a judge may take length for quality."""
    votes = votes_of(facts)
    if not votes:
        return None
    means = verbosity(votes)
    rows: list[list[object]] = [[who.label, figure(means[who.label])] for who in facts.contenders if who.label in means]
    return join(tag("h4", "Length of the compared answers"), table(Table(["recipe", "mean, characters, 95 %"], rows)))
