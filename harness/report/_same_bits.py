"""Whether training with rounded weights beat rounding them afterwards, for every pair at equal bits."""

import json

from harness.report._compare import compare_recipes, objective_source
from harness.report._html import number
from harness.report._queries import Contender, Facts

__all__ = ["same_bits_sentences"]

_GRID = ("scheme", "granularity", "group_size")
"""The settings of `qat` and `quantize` that decide the bits of a weight."""


def same_bits_sentences(facts: Facts, objective: str) -> list[str]:
    """A sentence for each recipe that ends in `qat` beside one that ends in `quantize`, both from the same model."""
    if not objective_source(facts, objective):
        return []
    ends = {who: _end(facts, who) for who in facts.recipes()}
    sign = -1.0 if facts.objectives.get(objective) == "minimize" else 1.0
    found = []
    for who, (method, grid) in ends.items():
        if method != "qat":
            continue
        for other, end in ends.items():
            if end != ("quantize", grid) or facts.origin_of(other) != facts.origin_of(who):
                continue
            for c in compare_recipes(facts, objective):
                if {c.a.label, c.b.label} != {who.label, other.label}:
                    continue
                lead = sign * c.difference.value * (1 if c.a.label == who.label else -1)
                if c.verdict == "unresolved":
                    verdict = f"the data do not resolve {who.label} from {other.label}"
                else:
                    verdict = f"{who.label} {'beat' if lead > 0 else 'did not beat'} {other.label}"
                gain = f"{'+' if lead > 0 else ''}{number(lead)} in {objective.replace('_', ' ')}"
                found.append(f"At the same bits ({grid}) {verdict}: {gain} for training with rounded weights.")
    return found


def _end(facts: Facts, who: Contender) -> tuple[str, str]:
    """The last method of a recipe's final run, and its grid in words."""
    import polars as pl

    finals = facts.trials.filter((pl.col("label") == who.label) & (pl.col("phase") == "final")).select("trial", "seed")
    mine = facts.lineage.filter(pl.col("label") == who.label).join(finals, on=["trial", "seed"]).sort("position")
    if mine.is_empty():
        return "", ""
    last = mine.row(-1, named=True)
    stage = facts.stages.filter(pl.col("stage") == last["stage"])
    if stage.is_empty():
        return "", ""
    params = json.loads(stage.row(0, named=True)["params"])
    return str(last["step"]), ", ".join(f"{k} {params[k]}" for k in _GRID if params.get(k) is not None)
