"""Few-shot split too small: prompts that all show the same examples, or examples from the measured documents."""

from collections.abc import Iterator, Mapping

from harness.gates._evidence import Asked, Evidence
from harness.gates._types import Said
from harness.measure._requests import Fewshot, Requests, fewshot_of

__all__ = ["small_fewshot_split"]

_GATE = "few-shot split"
POOL = 2
"""Below twice as many examples as a prompt shows, any two prompts share some: which examples were drawn is then the
same accident for every document, and no interval over documents covers it."""


def small_fewshot_split(evidence: Evidence) -> Iterator[Said]:
    """Flag tasks whose examples come from a split that is too small, or that holds the measured documents.

    Invalid where a prompt is to show more examples than there are. A warning where they are drawn from fewer than
    `POOL` times as many, or from the split that is measured: there a prompt gives other documents' answers away. A task
    that fixes its examples by its definition (MMLU's first five) is as the literature has it, and is not flagged.
    """
    done: set[tuple[str, str]] = set()
    for one in evidence.asked:
        if one.kind == "task" and (one.model, one.task) not in done:
            done.add((one.model, one.task))
            shown = _recorded(one.recorded) or _found(evidence, one)
            if isinstance(shown, str):
                yield one.for_all().unchecked(_GATE, shown)
                continue
            for name, fewshot in shown.items():
                if fewshot.shots:
                    yield from _judge(one.for_all(), name, fewshot)


def _recorded(requests: Mapping[str, Requests]) -> dict[str, Fewshot]:
    """Leaf → its examples as the measurements recorded them; {} where they did not."""
    return {
        name: Fewshot(r.num_fewshot, r.fewshot_pool, r.fewshot_split, bool(r.fewshot_fixed), bool(r.fewshot_measured))
        for name, r in requests.items()
        if r.num_fewshot is not None and r.fewshot_pool is not None
    }


def _found(evidence: Evidence, one: Asked) -> dict[str, Fewshot] | str:
    """The same from the task's definition and documents, or why that is not known."""
    # Nothing is known of the number where the suite leaves it to the task.
    if all(s.get("num_fewshot") == 0 for s in one.settings.values()):
        return {}
    documents = evidence.documents(one)
    if isinstance(documents, str):
        return f"the size of its few-shot split is not known: {documents}"
    found = {}
    for name, leaf in documents.leaves.items():
        if name not in one.settings:
            continue
        # What the measurement was asked to show goes before what the task would show by itself.
        asked = one.settings[name].get("num_fewshot")
        shots = asked if isinstance(asked, int) else int(leaf.task.config.num_fewshot or 0)
        found[name] = fewshot_of(leaf.task, shots)
    return found


def _judge(one: Asked, name: str, fewshot: Fewshot) -> Iterator[Said]:
    shots, pool = fewshot.shots, fewshot.pool
    figures = {"shots": float(shots), "split": float(pool)}
    if pool < shots:
        message = f"{name} shows {shots} examples, its few-shot split has {pool}: ask for {pool} at most."
        yield one.flag(_GATE, "invalid", message, figures)
        return
    if fewshot.measured:
        message = (
            f"{name} takes its {shots} examples from {fewshot.split}, the split that is measured: prompts give other "
            "documents' answers away. Set num_fewshot to 0, or use a task with a split of its own for examples."
        )
        yield one.flag(_GATE, "warning", message, figures)
    if pool < POOL * shots and not fewshot.fixed:
        message = (
            f"{name} draws {shots} examples from {pool}: every two prompts share at least {2 * shots - pool}, and "
            f"no interval covers which. Ask for {pool // POOL} at most, or measure with several numbers of examples."
        )
        yield one.flag(_GATE, "warning", message, figures)
