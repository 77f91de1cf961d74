"""The answer in words, with its uncertainty: what the data resolve, and what they do not."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.objectives import ASPECTS
from harness.report._compare import (
    Comparison,
    against_base,
    compare_recipes,
    estimate,
    objective_estimate,
    objective_source,
    over_optimisation,
    shared_documents,
)
from harness.report._direction import direction
from harness.report._html import number
from harness.report._plot import Estimate
from harness.report._queries import Contender, Facts
from harness.report._same_bits import same_bits_sentences
from harness.report._tradeoffs import front_sentences
from harness.rungs import HopelessError

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Words", "cost_of", "counted", "difference_text", "duration", "listed", "span", "words"]

_SHOWN_PAIRS = 4
_NAMED = 12
"""So many recipes a sentence names."""


@dataclass(frozen=True)
class Words:
    """The paragraph's sentences: what was asked of the data, what else it says, and what it rests on."""

    verdicts: Sequence[str]
    consequences: Sequence[str]
    basis: Sequence[str]

    def text(self) -> str:
        """One paragraph."""
        return " ".join([*self.verdicts, *self.consequences, *self.basis])


@dataclass(frozen=True)
class Cost:
    """Training seconds of a recipe: of one final model with its whole chain (mean over seeds), and of everything."""

    one: float | None
    whole: float
    peak_mb: float | None


def counted(count: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def span(low: float, high: float) -> str:
    """An interval as text; unknown where one document or value says nothing of its spread."""
    return "[unknown]" if math.isnan(low) or math.isnan(high) else f"[{number(low)}, {number(high)}]"


def _estimated(value: Estimate) -> str:
    return f"{number(value.value)} {span(value.low, value.high)}"


def difference_text(found: Comparison) -> str:
    """`+0.080 [0.031, 0.129]`, the sign always shown."""
    d = found.difference
    return f"{'+' if d.value > 0 else ''}{number(d.value)} {span(d.low, d.high)}"


def _p(value: float) -> str:
    return "p unknown" if math.isnan(value) else "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def duration(seconds: float | None) -> str:
    """Seconds as one reads them."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _plain(name: str) -> str:
    return name.replace("_", " ")


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _foremost(parts: Sequence[tuple[object, str]]) -> list[str]:
    """The texts; of many the `_NAMED` whose rank is highest, and how many more there are."""
    if len(parts) <= _NAMED:
        return [text for _, text in parts]
    order = sorted(parts, key=lambda part: part[0], reverse=True)  # type: ignore[arg-type,return-value]  # one kind each
    return [*(text for _, text in order[:_NAMED]), f"{len(parts) - _NAMED} more, which the tables have"]


def cost_of(facts: Facts, who: Contender) -> Cost:
    """What training a recipe took. A stage that several recipes share counts in each that needs it."""
    import polars as pl

    mine = facts.lineage.filter(pl.col("label") == who.label)
    finals = facts.trials.filter((pl.col("label") == who.label) & (pl.col("phase") == "final")).select("trial", "seed")
    chains = mine.join(finals, on=["trial", "seed"]).group_by("trial", "seed").agg(pl.col("seconds").sum())
    # Seconds of each stage once, however many trials used it; a stage that never finished has none.
    whole = mine.unique("stage")["seconds"].sum()
    peak = mine["peak_rss_mb"].max()
    return Cost(
        one=float(chains["seconds"].mean()) if chains.height else None,  # type: ignore[arg-type]  # a column of floats
        whole=float(whole or 0.0),
        peak_mb=float(peak) if isinstance(peak, int | float) else None,
    )


def _verdict(found: Comparison, family: int) -> str:
    d, first, second = found.difference, found.a.label, found.b.label
    # Where less is better the winner's difference is negative; in words it is a lead all the same.
    value, interval = number(abs(d.value)), span(d.low, d.high) if d.value >= 0 else span(-d.high, -d.low)
    correction = f", Holm-corrected over {family} comparisons" if family > 1 else ""
    on = f"{_plain(found.what)} (95 % interval {interval}{correction}, {_p(found.adjusted_p)})"
    if found.verdict == "unresolved":
        lead = f"{first} is ahead by {value} in {on}" if d.value else f"no difference in {on}"
        return f"The data do not resolve {first} from {second}: {lead}."
    return f"{first} beat {second} by {value} in {on}."


def _verdicts(facts: Facts, objective: str | None) -> list[str]:
    if objective is None:
        return ["No trial has reached an objective yet: there is no answer so far."]
    if not objective_source(facts, objective):
        return [
            f"The first objective, {_plain(objective)}, is not a score of documents: its values are among the latency "
            "and memory figures, and differences in it are not tested here."
        ]
    found = compare_recipes(facts, objective)
    if not found:
        have = [c.label for c in facts.recipes() if objective_estimate(facts, c, objective) is not None]
        if len(have) == 1:
            return [
                f"Only {have[0]} has final figures of {_plain(objective)}: there is nothing to compare it with yet."
            ]
        return [f"No recipe has final figures of {_plain(objective)} yet: there is no answer so far."]
    ranked = sorted(found, key=lambda c: (c.verdict == "unresolved", -abs(c.difference.value)))
    sentences = [_verdict(c, len(found)) for c in ranked[:_SHOWN_PAIRS]]
    if len(ranked) > _SHOWN_PAIRS:
        open_ = sum(c.verdict == "unresolved" for c in ranked)
        sentences.append(
            f"Of all {len(ranked)} pairs of recipes {len(ranked) - open_} are resolved; the table has each."
        )
    for c in found:
        shared, either = shared_documents(facts, c.a, c.b, objective)
        if shared < either:
            sentences.append(
                f"{c.a.label} and {c.b.label} share {shared} of {either} documents; only these are compared."
            )
    return sentences


def _base_sentence(facts: Facts, objective: str) -> list[str]:
    found = against_base(facts, objective)
    if not found:
        return []
    parts = [
        (
            (c.verdict != "unresolved", abs(c.difference.value)),
            f"{c.a.label} {difference_text(c)}{' (unresolved)' if c.verdict == 'unresolved' else ''}",
        )
        for c in found
    ]
    return [f"Against the base model, {_plain(objective)} changed: {'; '.join(_foremost(parts))}."]


def _benchmark_sentences(facts: Facts) -> list[str]:
    found = against_base(facts)
    if not found:
        return []
    sentences = []
    for better, verb in ((False, "lost"), (True, "gained")):
        parts = [
            (abs(c.difference.value), f"{c.a.label} {verb} on {c.what} ({difference_text(c)}{_less(c)})")
            for c in found
            if c.verdict != "unresolved" and _is_better(c) == better
        ]
        if parts:
            sentences.append(f"Against base, {listed(_foremost(parts))}.")
    unresolved = [c for c in found if c.verdict == "unresolved"]
    if unresolved:
        scope = "all" if len(unresolved) == len(found) else f"{len(unresolved)} of"
        sentence = f"On benchmarks and judged quality {scope} {len(found)} differences from base are unresolved"
        # Ratings have other scales: only benchmarks, all in [0, 1], can be ranked by their loss.
        scored = [c for c in unresolved if c.what not in ASPECTS and c.difference.low < 0]
        if scored:
            widest = min(scored, key=lambda c: c.difference.low)
            worst = f"{number(-widest.difference.low)} ({widest.a.label} on {widest.what})"
            sentence += f"; the largest benchmark loss they leave open is {worst}"
        sentences.append(sentence + ".")
    return sentences


def _less_is_better(found: Comparison) -> bool:
    # A figure is called by its task and metric, or by its aspect alone.
    return direction(found.what.rpartition(" ")[2]) == "lower"


def _is_better(found: Comparison) -> bool:
    return (found.verdict == "lower") == _less_is_better(found)


def _less(found: Comparison) -> str:
    return ", less is better" if _less_is_better(found) else ""


def _kl_sentence(facts: Facts) -> list[str]:
    found = [(c, e) for c in facts.recipes() if (e := estimate(facts, c, "gold", "kl")) is not None]
    if not found:
        return []
    parts = _foremost([(e.value, f"{c.label} {_estimated(e)} nats a response") for c, e in found])
    return [f"KL from the base model: {'; '.join(parts)}."]


def _gap_sentence(facts: Facts) -> list[str]:
    parts = []
    for who in facts.recipes():
        found = over_optimisation(facts, who)
        if found is not None:
            learned, gold, gap = found
            state = (
                "the reward model overstates the gain"
                if gap.low > 0
                else "it understates it"
                if gap.high < 0
                else "unresolved"
            )
            gains = f"{number(learned.value, 2)} by the reward model and {number(gold.value, 2)} by gold"
            interval = f"[{number(gap.low, 2)}, {number(gap.high, 2)}]"
            said = (
                f"{who.label} gained {gains}, an over-optimisation gap of {number(gap.value, 2)} {interval} ({state})"
            )
            parts.append((gap.value, said))
    if not parts:
        return []
    return [f"In standard deviations of the base model's scores, {'; '.join(_foremost(parts))}."]


def _cost_sentence(facts: Facts) -> list[str]:
    parts = []
    for who in facts.recipes():
        cost = cost_of(facts, who)
        if cost.whole:
            one = f"{duration(cost.one)} to train one model, " if cost.one else ""
            parts.append((cost.whole, f"{who.label} {one}{duration(cost.whole)} in all"))
    return [f"Training compute: {'; '.join(_foremost(parts))} (shared stages count in each recipe)."] if parts else []


def _failure_sentence(facts: Facts) -> str:
    import polars as pl

    bad = facts.trials.filter(pl.col("state").is_in(["failed", "infeasible", "pruned"]))
    if bad.is_empty():
        return "No trial failed."
    hopeless = facts.failures.filter(pl.col("message").str.starts_with(HopelessError.__name__))
    stopped = bad.join(hopeless, on=["label", "trial", "seed"], how="semi").filter(pl.col("state") == "pruned").height
    counts = {state: bad.filter(pl.col("state") == state).height for state in ("failed", "infeasible", "pruned")}
    counts |= {"stopped early as hopeless": stopped, "pruned": counts["pruned"] - stopped}
    kinds = [f"{n} {state}" for state, n in counts.items() if n]
    return f"{counted(bad.height, 'run')} did not finish ({listed(kinds)}); the reasons are under failures."


def _finals(facts: Facts) -> "pl.DataFrame":
    import polars as pl

    return facts.trials.filter((pl.col("phase") == "final") & (pl.col("state") == "complete"))


def _basis(facts: Facts, objective: str | None) -> list[str]:
    import polars as pl

    names = {c.label for c in facts.recipes()}
    finals = _finals(facts).filter(pl.col("label").is_in(list(names)))
    seeds = [facts_n for (_,), part in finals.group_by("label") if (facts_n := part["seed"].n_unique())]
    tuning = facts.trials.filter(pl.col("phase") == "tune").group_by("label").len()
    counts = sorted(set(tuning["len"].to_list()))
    documents = max((c.difference.n for c in compare_recipes(facts, objective)), default=0) if objective else 0
    parts = []
    if seeds:
        parts.append(f"{_range(seeds)} final seed{'' if max(seeds) == 1 else 's'} a recipe")
    if documents:
        parts.append(f"{counted(documents, 'document')} that tuning never saw")
    if counts:
        parts.append(f"{_range(counts)} tuning trial{'' if max(counts) == 1 else 's'} a recipe")
    sentences = [f"This rests on {listed(parts)}."] if parts else []
    if seeds and max(seeds) == 1:
        sentences.append("With one seed the intervals cannot hold the variation from training again.")
    elif seeds and min(seeds) == 2:
        sentences.append(
            "With two seeds they are wider than they need be, since two trainings tell little of how trainings vary; a "
            "third narrows them most."
        )
    if "bundled" in facts.data.lower():
        sentences.append(
            "Benchmark figures come from small bundled sets in their formats, not the official benchmarks."
        )
    elif facts.data:
        sentences.append(f"Data source: {facts.data}.")
    sentences.append(_failure_sentence(facts))
    if left := facts.left_out():
        sentences.append(f"Left out on this machine: {'; '.join(f'{what} ({why})' for what, why in left.items())}.")
    if missing := facts.not_done():
        sentences.append(f"The budget ended before all trials were run: {'; '.join(missing)}.")
    return sentences


def _range(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def words(facts: Facts) -> Words:
    """The answer to the suite's question, as far as the data go."""
    objective = next(iter(facts.objectives), None)
    state = {
        "running": ["The sweep is still running; these figures are partial."],
        "interrupted": ["The sweep was interrupted; these figures are partial."],
        "failed": ["The sweep ended with failures; some figures may be missing."],
    }.get(facts.state, [])
    consequences: list[str] = []
    if objective is not None:
        consequences += _base_sentence(facts, objective) if objective_source(facts, objective) else []
        consequences += [*front_sentences(facts), *same_bits_sentences(facts, objective)]
    consequences += [
        *_benchmark_sentences(facts),
        *_kl_sentence(facts),
        *_gap_sentence(facts),
        *_cost_sentence(facts),
    ]
    return Words([*state, *_verdicts(facts, objective)], consequences, _basis(facts, objective))
