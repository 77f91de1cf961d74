"""At chance: a multiple-choice score that guessing explains."""

from collections.abc import Iterator

from harness.gates._choices import choices_of, is_ranked, recorded_counts
from harness.gates._evidence import Asked, Evidence
from harness.gates._types import Said
from harness.stats import crossed_interval

__all__ = ["at_chance"]

_GATE = "at chance"


def at_chance(evidence: Evidence) -> Iterator[Said]:
    """Flag accuracies whose 95 % interval over documents and seeds holds the chance level, or lies below it.

    Chance is the mean over the documents of 1 / number of choices. At chance two models cannot be told apart, however
    different they are; that is a limit of the task for this model and no defect of the measurement, so a warning. Below
    chance something is systematically wrong: the order of the choices, the key, the prompt format.
    """
    for one in evidence.asked:
        if is_ranked(one):
            yield from _check(evidence, one)


def _check(evidence: Evidence, one: Asked) -> Iterator[Said]:
    scores = one.table(one.metric)
    if one.graded():
        yield one.unchecked(_GATE, f"{one.metric} is not right or wrong, so chance is not 1 / choices")
        return
    counts, seen = recorded_counts(one), ""
    if not counts:
        choices = choices_of(evidence, one)
        if isinstance(choices, str):
            yield one.unchecked(_GATE, choices)
            return
        counts, seen = dict(choices.counts), " seen in the answers" if choices.seen else ""
    if not scores:
        yield one.unchecked(_GATE, "no document was answered with every seed")
        return
    chance = sum(1 / counts[d] for d in scores) / len(scores)
    if len({counts[d] for d in scores}) == 1:
        found = crossed_interval(scores)
        low, high = found.low, found.high
    else:
        above = crossed_interval({d: [s - 1 / counts[d] for s in v] for d, v in scores.items()})
        low, high = above.low + chance, above.high + chance
    low, high = max(low, 0.0), min(high, 1.0)
    value = sum(sum(v) / len(v) for v in scores.values()) / len(scores)
    if not low <= chance and not high < chance:
        return
    numbers = sorted({counts[d] for d in scores})
    listed = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    what = (
        f"{one.metric} {value:.3f} [{low:.3f}, {high:.3f}] over {len(scores)} documents{evidence.on(one)}, chance is "
        f"{chance:.3f} ({listed} choices{seen})"
    )
    message = (
        f"Below chance: {what}. Check the prompt format and the answer key."
        if high < chance
        else f"Not told from guessing: {what}. Compare models on a task that they can do, or on more documents."
    )
    figures = {"value": value, "low": low, "high": high, "chance": chance, "n": float(len(scores))}
    yield one.flag(_GATE, "warning", message, figures)
