"""Constant choice: a model that gives one answer whatever it is asked.

Small models prefer an option by its place or letter (Zheng et al. 2023, "Large language models are not robust multiple
choice selectors", arXiv:2309.03882). Their accuracy is then the frequency of that letter among the right answers.
"""

from collections import Counter
from collections.abc import Iterator

from harness.gates._choices import choices_of, is_ranked
from harness.gates._evidence import Asked, Evidence
from harness.gates._types import MATERIAL, Said
from harness.stats import wilson

__all__ = ["constant_choice"]

_GATE = "constant choice"
MOSTLY = 0.5
"""Above one half, more documents get the one answer than all others together. A convention."""


def constant_choice(evidence: Evidence) -> Iterator[Said]:
    """Flag models that choose one answer more often than the right answers explain.

    That is where Wilson's 95 % lower bound of its share is above the upper bound of its share among the right answers.
    A warning where that lower bound is above `MOSTLY`; invalid where all but `MATERIAL` of the answers are this one,
    since the score is then within `MATERIAL` of what a model that reads nothing gets.
    """
    for one in evidence.asked:
        if one.kind == "task":
            yield from _check(evidence, one)


def _check(evidence: Evidence, one: Asked) -> Iterator[Said]:
    ranked = is_ranked(one)
    if ranked and one.graded():
        yield one.unchecked(_GATE, f"{one.metric} is a share of probability over all choices, not one choice")
        return
    choices = choices_of(evidence, one) if ranked else None
    if isinstance(choices, str):
        yield one.unchecked(_GATE, choices)
        return
    for seed, rows in one.of(one.metric).items():
        columns = rows.select("leaf", "document", "response", "expected").iter_rows()
        if choices is None:
            pairs = [(r if r is None else r or "(nothing)", e) for *_, r, e in columns]
        else:
            pairs = [(choices.label(f"{t}/{d}", r), choices.label(f"{t}/{d}", e)) for t, d, r, e in columns]
        if not pairs or any(chosen is None for chosen, _ in pairs):
            yield one.unchecked(_GATE, "some of its answers are not stored, or are none of the choices")
            return
        given, right = Counter(c for c, _ in pairs), Counter(e for _, e in pairs)
        n = len(pairs)
        if right.most_common(1)[0] == (given.most_common(1)[0][0], n):
            yield one.unchecked(_GATE, "the same choice is right in every document, so a constant one looks right")
            return
        top, times = min(given.items(), key=lambda kv: (-kv[1], str(kv[0])))
        share, expected = wilson(times, n), wilson(right[top], n)
        if share.low <= max(MOSTLY, expected.high):
            continue
        constant = times >= (1 - MATERIAL) * n
        shown = str(top) if len(str(top)) <= 40 else f"{str(top)[:40]}…"
        message = (
            f"answers “{shown}” to {times} of {n} documents{evidence.on(one)} ({share.value:.0%}, at least "
            f"{share.low:.0%}), which is right for {right[top]} ({expected.value:.0%}). "
            + (
                "Its score says nothing of what it knows: check the prompt format, or use a task it can do."
                if constant
                else "Its score is mostly that answer's: read it beside another task"
                + (", or shuffle the choices." if ranked else ".")
            )
        )
        figures = {"share": share.value, "low": share.low, "expected": expected.value, "n": float(n)}
        yield one.flag(_GATE, "invalid" if constant else "warning", message, figures, seed)
