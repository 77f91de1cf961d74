"""The tables of the page: every comparison with its verdict, and every recipe with every figure."""

import math
from collections.abc import Sequence

from harness.objectives import ASPECTS
from harness.report._compare import (
    Comparison,
    against_base,
    against_origin,
    aspects,
    compare_recipes,
    estimate,
    main_metrics,
    objective_estimate,
    objective_source,
    over_optimisation,
)
from harness.report._html import Html, Table, join, number, table, tag
from harness.report._judges_quality import quality_note
from harness.report._plot import Estimate, empty
from harness.report._queries import Contender, Facts
from harness.report._rank import places
from harness.report._search import settings_text
from harness.report._words import cost_of, difference_text, duration, span
from harness.stats import detectable

__all__ = ["comparison_tables", "recipe_table"]


def _verdict(found: Comparison) -> Html:
    word = {"higher": "higher", "lower": "lower", "unresolved": "unresolved"}[found.verdict]
    return tag("span", word, class_="verdict" if word == "unresolved" else "verdict resolved")


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _rows(found: Sequence[Comparison]) -> list[list[object]]:
    rows: list[list[object]] = []
    for c in found:
        seeds = f"{c.difference.seeds[0]} / {c.difference.seeds[1]}"
        rows.append(
            [
                f"{c.a.label} − {c.b.label}",
                c.what,
                _difference(c),
                _verdict(c),
                _p(c.adjusted_p),
                detectable(c.difference),
                c.difference.n,
                seeds,
            ]
        )
    return rows


def _difference(found: Comparison) -> Html:
    value, _, interval = difference_text(found).partition(" ")
    return tag("span", value, " ", tag("span", interval, class_="interval"), class_="num")


_HEADERS = ["first − second", "figure", "difference, 95 %", "verdict", "Holm p", "detectable", "documents", "seeds"]


def comparison_tables(facts: Facts) -> Html:
    """The comparisons behind the words: recipes with each other, then each with the base model."""
    objective = next(iter(facts.objectives), None)
    parts: list[Html] = []
    families = []
    if objective is not None and objective_source(facts, objective):
        families.append(("Recipes against each other", compare_recipes(facts, objective)))
        families.append(("Recipes against the base model", against_base(facts, objective)))
    families.append(("Benchmarks and judged quality against the base model", against_base(facts)))
    families.append(("Benchmarks and judged quality against the recipe it begins with", against_origin(facts)))
    for title, found in families:
        if found:
            parts.append(table(Table(_HEADERS, _rows(found), title)))
    if not parts:
        return empty("Comparisons", "No two recipes have final scores of the same documents yet.")
    note = (
        "Paired by document, over all seeds: the documents' part of an interval by bootstrap, the seeds' by Student's "
        "t. A benchmark with five subjects or more goes by subject (cluster-robust). Holm's correction is within each "
        "table. A difference is called resolved where its corrected p is below 0.05; its interval, which stands for "
        "itself alone, is not corrected. Detectable: the true difference that such data would resolve with a chance of "
        "80 %, uncorrected; below it, unresolved says little."
    )
    return join(*parts, tag("p", note, class_="fine"), quality_note(facts))


def _value(found: Estimate | None) -> Html | None:
    if found is None:
        return None
    return tag(
        "span", number(found.value), " ", tag("span", span(found.low, found.high), class_="interval"), class_="num"
    )


def _trials(facts: Facts, who: Contender, phase: str) -> str:
    import polars as pl

    mine = facts.trials.filter((pl.col("label") == who.label) & (pl.col("phase") == phase))
    if mine.is_empty():
        return "–"
    states = [
        (s, mine.filter(pl.col("state") == s).height) for s in ("complete", "running", "failed", "infeasible", "pruned")
    ]
    return ", ".join(f"{n} {s}" for s, n in states if n)


def _chosen(facts: Facts, who: Contender) -> str:
    import polars as pl

    final = facts.trials.filter((pl.col("label") == who.label) & (pl.col("phase") == "final"))
    if final.is_empty():
        return "not chosen yet"
    row = final.row(0, named=True)
    text = settings_text(row["settings"])
    return text if text == "nothing searched" else f"trial {row['trial']}: {text}"


def _objective_columns(facts: Facts) -> list[tuple[str, dict[str, Estimate | None]]]:
    """The objectives that no column below shows by itself."""
    plain = {"gold_reward", "rm_reward", "kl", *ASPECTS}
    shown = {f"{group}.{metric}" for group, metric in main_metrics(facts)}
    columns = []
    for name in facts.objectives:
        if name not in plain | shown and objective_source(facts, name):
            columns.append((name, {c.label: objective_estimate(facts, c, name) for c in facts.contenders}))
    return columns


def _profile(facts: Facts, who: Contender) -> list[tuple[str, Html | None]]:
    """Latency and memory at the first batch size on the target of the comparison, or on the first profiled."""
    import polars as pl

    mine = facts.profiles.filter(pl.col("label") == who.label).sort("seed")
    targets = mine["target"].to_list()
    wanted = facts.target_of(who)
    target = wanted if wanted in targets else (targets[0] if targets else "")
    found: list[tuple[str, Html | None]] = []
    for metric, name in (("e2e_ms", "latency, ms"), ("peak_rss_mb", "peak memory, MiB"), ("weight_mb", "weights, MiB")):
        rows = mine.filter((pl.col("target") == target) & (pl.col("metric") == metric)).sort("setting")
        if rows.is_empty():
            found.append((name, None))
            continue
        row = rows.row(0, named=True)
        spread = span(row["low"], row["high"]) if row["n"] > 1 else ""
        cell = tag("span", number(row["value"]), " ", tag("span", spread, class_="interval"), class_="num")
        found.append((name, cell))
    return found


def _cells(facts: Facts, who: Contender) -> list[tuple[str, object]]:
    """One recipe: what it scored, what it took, how its runs went."""
    import polars as pl

    cells: list[tuple[str, object]] = []
    if (objective := next(iter(facts.objectives), None)) is not None:
        place = places(facts, objective).get(who.label)
        cells.append((f"rank by {objective}", place and place.text()))
    for metric, name in (
        ("gold_reward", "gold reward"),
        ("rm_reward", "reward model"),
        ("kl", "KL, nats"),
        ("length", "length, tokens"),
    ):
        cells.append((name, _value(estimate(facts, who, "gold", metric))))
    gap = over_optimisation(facts, who)
    cells.append(("over-optimisation gap, SD", _value(gap[2]) if gap else None))
    cells += [(name, _value(values[who.label])) for name, values in _objective_columns(facts)]
    cells += [
        (f"{group}, {metric}", _value(estimate(facts, who, group, metric))) for group, metric in main_metrics(facts)
    ]
    cells += [(f"judge: {aspect}", _value(estimate(facts, who, "judge", aspect))) for aspect in aspects(facts)]
    cells += _profile(facts, who)
    cost = cost_of(facts, who)
    failures = facts.failures.filter(pl.col("label") == who.label).height
    cells += [
        ("training of one model", duration(cost.one) if cost.one else None),
        ("training in all", duration(cost.whole) if cost.whole else None),
        ("peak memory of training, MiB", cost.peak_mb),
        ("tuning trials", _trials(facts, who, "tune")),
        ("final runs", _trials(facts, who, "final")),
        ("failures recorded", failures),
        ("chosen settings", _chosen(facts, who) if not who.is_base else "untouched"),
    ]
    return cells


def _elsewhere(facts: Facts) -> str:
    """The contenders that do not run on the target of the comparison, each with its own."""
    own = {c.label: facts.target_of(c) for c in facts.contenders}
    return "".join(f"; of {label} on {target}" for label, target in own.items() if target not in ("", facts.target))


def recipe_table(facts: Facts) -> Html:
    """A column a recipe, a row a figure: the many figures would not fit side by side."""
    if not facts.contenders:
        return empty("Recipes", "No run has begun yet.")
    columns = [_cells(facts, who) for who in facts.contenders]
    rows: list[list[object]] = []
    for index, (name, _) in enumerate(columns[0]):
        values = [column[index][1] for column in columns]
        if any(v is not None for v in values):
            rows.append([tag("strong", name), *values])
    note = (
        "A rank stands with the ranks that the data leave open. Means are over the final half of the documents and "
        "all seeds, with 95 % intervals; latency and memory are medians with the lowest and highest repeat; training "
        "is wall time. Scores on target "
        f"{facts.target or 'none yet'}{_elsewhere(facts)}."
    )
    whole = table(Table(["", *(c.label for c in facts.contenders)], rows))
    return join(whole, tag("p", note, class_="fine"), quality_note(facts))
