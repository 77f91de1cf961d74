"""How much better tuning scores look than the scores on documents that tuning never saw."""

import math
from statistics import NormalDist

from harness.report._compare import bounds_of, objective_estimate, objective_source
from harness.report._html import Html, Table, join, number, table, tag
from harness.report._plot import Estimate, empty
from harness.report._queries import Contender, Facts
from harness.report._tuning import chosen_trial, ended_trials, first_objective, less_is_better
from harness.report._words import span
from harness.stats import optimism as mean_optimism
from harness.stats import wilson

__all__ = ["optimism"]

_Z = NormalDist().inv_cdf(0.975)


def optimism(facts: Facts) -> Html:
    """Tuning score minus test score of each recipe's chosen settings, with an interval, and the mean over recipes."""
    title = "How far the tuning scores flatter"
    objective = first_objective(facts)
    if objective is None:
        return empty(title, "No trial has reached an objective yet.")
    if not objective_source(facts, objective):
        return empty(title, f"The objective {objective} is no score of documents, so no documents flatter it.")
    sign = -1.0 if less_is_better(facts, objective) else 1.0
    rows: list[list[object]] = []
    tuned: dict[str, float] = {}
    tested: dict[str, float] = {}
    for who in facts.recipes():
        tuning, test = _tuning_score(facts, who, objective), objective_estimate(facts, who, objective)
        if tuning is None or test is None:
            continue
        tuned[who.label], tested[who.label] = tuning.value, test.value
        low, high = _apart(tuning, test) if sign > 0 else _apart(test, tuning)
        gap = sign * (tuning.value - test.value)
        trials = len(ended_trials(facts, who))
        sides = [_value(e.value, e.low, e.high) for e in (tuning, test)]
        rows.append([who.label, trials, *sides, _value(gap, low, high, signed=True), tuning.n, test.n])
    if not rows:
        return empty(title, "No recipe with a tuning trial has final scores of its chosen settings yet.")
    if len(rows) > 1:
        mean = mean_optimism(tuned, tested, minimize=sign < 0)
        rows.append(["mean of the recipes", None, None, None, _value(mean.value, mean.low, mean.high, signed=True)])
        rows[-1] += [None, None]
    less = "test − tuning, as less is better" if sign < 0 else "tuning − test"
    note = (
        "Settings are chosen on tuning documents only; final documents are never seen before. Optimism is the "
        f"{objective} of the chosen settings on the documents they were chosen by, first seed, against final "
        f"documents, all seeds ({less}): above zero is what choosing by a noisy score adds. The two sets of documents "
        "are others, so each recipe's interval joins the intervals of both (square-and-add, Newcombe 1998); the sets' "
        "difference in difficulty is in the figure, alike for all recipes, and the luck of the one tuned training is "
        "not in the interval. The mean has Student's t interval over the recipes."
    )
    headers = [
        "recipe",
        "trials",
        "tuning, 95 %",
        "final, 95 %",
        "optimism, 95 %",
        "tuning documents",
        "final documents",
    ]
    return join(tag("h3", title), table(Table(headers, rows)), tag("p", note, class_="fine"))


def _tuning_score(facts: Facts, who: Contender, objective: str) -> Estimate | None:
    """The chosen trial's score on the tuning documents, with an interval for other documents."""
    import polars as pl

    chosen = chosen_trial(facts, who)
    trial = next((t for t in ended_trials(facts, who) if t.number == chosen and objective in t.values), None)
    if trial is None:
        return None
    mine = facts.scores.filter(
        (pl.col("label") == who.label)
        & (pl.col("trial") == trial.number)
        & (pl.col("seed") == trial.seed)
        & (pl.col("phase") == "tune")
        & (pl.col("split") == "tune")
    )
    variance, documents = 0.0, 0
    pairs = objective_source(facts, objective)
    for group, metric in pairs:
        parts = mine.filter((pl.col("group") == group) & (pl.col("metric") == metric))
        n = int(parts["n"].sum())
        # A group's tasks weigh by their documents, groups alike: as the objective has it.
        for value, stderr, count in parts.select("value", "stderr", "n").iter_rows():
            variance += (count / n * _stderr(value, stderr, count) / len(pairs)) ** 2
        documents += n
    value = trial.values[objective]
    if documents == 0 or math.isnan(variance):
        return Estimate(value, math.nan, math.nan, documents)
    half = _Z * math.sqrt(variance)
    least, most = bounds_of(pairs[0][1]) if len(pairs) == 1 else (-math.inf, math.inf)
    return Estimate(value, max(least, value - half), min(most, value + half), documents)


def _stderr(value: float, stderr: float | None, documents: int) -> float:
    """The standard error of a mean; where all documents scored 0 or 1, half of Wilson's interval, which is not zero."""
    if stderr:
        return stderr
    if stderr is None or value not in (0.0, 1.0):
        return math.nan
    found = wilson(round(value * documents), documents)
    return (found.high - found.low) / (2 * _Z)


def _apart(a: Estimate, b: Estimate) -> tuple[float, float]:
    """The bounds of a - b of other documents each, from the bounds of both."""
    difference = a.value - b.value
    low = difference - math.hypot(a.value - a.low, b.high - b.value)
    return low, difference + math.hypot(a.high - a.value, b.value - b.low)


def _value(value: float, low: float, high: float, *, signed: bool = False) -> Html:
    sign = "+" if signed and value > 0 else ""
    return tag("span", f"{sign}{number(value)} ", tag("span", span(low, high), class_="interval"), class_="num")
