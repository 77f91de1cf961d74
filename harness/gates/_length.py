"""Output length drift: answers that have become much longer or shorter than the base model's.

Judges and learned rewards prefer longer answers, and preference training exploits that (Singhal et al. 2023, "A long
way to go", arXiv:2310.03716; Park et al. 2024, arXiv:2403.19159; Dubois et al. 2024, arXiv:2404.04475); a gain may
then be one of length.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from harness.gates._choices import is_ranked
from harness.gates._evidence import BASE, Asked, Evidence
from harness.gates._types import Said
from harness.stats import paired_difference

__all__ = ["length_drift"]

_GATE = "output length drift"
ALIKE = (0.8, 1.25)
"""Ratios of means within these count as equivalent: the limits of bioequivalence (FDA 2001, "Statistical approaches to
establishing bioequivalence"), symmetric in ratio. Borrowed for want of limits of this field's own."""


def length_drift(evidence: Evidence) -> Iterator[Said]:
    """Flag answers whose mean length, as a ratio to the base model's, has its whole 95 % interval outside `ALIKE`.

    The gold measure's answers are counted in tokens, others in characters. The interval is that of a ratio estimator,
    a - r b by document (Cochran 1977, "Sampling techniques", chapter 6), over documents and seeds.
    """
    for one in evidence.asked:
        if one.recipe != BASE and one.kind in ("task", "gold", "judge") and not is_ranked(one):
            yield from _check(evidence, one)


def _lengths(one: Asked) -> tuple[Mapping[str, Sequence[float]], str]:
    if one.kind == "gold":
        return one.table("length"), "tokens"
    return one.table(one.metric, "characters"), "characters"


def _check(evidence: Evidence, one: Asked) -> Iterator[Said]:
    base = evidence.base_of(one)
    if base is None:
        yield one.unchecked(_GATE, "the base model was not measured on it")
        return
    (mine, unit), (theirs, _) = _lengths(one), _lengths(base)
    shared = sorted(mine.keys() & theirs.keys())
    first = {d: mine[d] for d in shared}
    second = {d: theirs[d] for d in shared}
    before = sum(sum(v) / len(v) for v in second.values()) / len(shared) if shared else 0.0
    if before == 0:
        why = "all answers of the base model are empty" if shared else "no lengths of the same documents are stored"
        yield one.unchecked(_GATE, why)
        return
    after = sum(sum(v) / len(v) for v in first.values()) / len(shared)
    ratio = after / before
    rest = paired_difference(first, {d: [ratio * v for v in values] for d, values in second.items()})
    low, high = ratio + rest.low / before, ratio + rest.high / before
    if math.isnan(low):
        if not ALIKE[0] <= ratio <= ALIKE[1]:
            why = f"{ratio:.2f} times as long as the base model's, but with nothing that varies there is no interval"
            yield one.unchecked(_GATE, why)
        return
    if not (low > ALIKE[1] or high < ALIKE[0]):
        return
    direction = "longer" if ratio > 1 else "shorter"
    message = (
        f"Answers{evidence.on(one)} are {direction} than the base model's: {after:.1f} against {before:.1f} {unit} on "
        f"average, {ratio:.2f} times [{low:.2f}, {high:.2f}] over {len(shared)} documents. Read judged and learned "
        "rewards with this in mind; compare at equal length, or penalise length in training."
    )
    figures = {"ratio": ratio, "low": low, "high": high, "mean": after, "base": before, "n": float(len(shared))}
    yield one.flag(_GATE, "warning", message, figures)
