"""Few-shot split too small: prompts that all show the same examples, or examples from the measured documents."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.gates._evidence import Asked, Evidence
from harness.gates._types import Said

if TYPE_CHECKING:
    from harness.measure.tasks import LeafTask

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
        shots = [s.get("num_fewshot") for s in one.settings.values()]
        # Nothing is known where the suite leaves the number to the task.
        if one.kind == "task" and any(s != 0 for s in shots) and (one.model, one.task) not in done:
            done.add((one.model, one.task))
            yield from _check(evidence, one.for_all())


def _check(evidence: Evidence, one: Asked) -> Iterator[Said]:
    documents = evidence.documents(one)
    if isinstance(documents, str):
        yield one.unchecked(_GATE, f"the size of its few-shot split is not known: {documents}")
        return
    for name, leaf in documents.leaves.items():
        if name not in one.settings:
            continue
        # What the measurement was asked to show goes before what the task would show by itself.
        asked = one.settings[name].get("num_fewshot")
        shots = asked if isinstance(asked, int) else int(leaf.task.config.num_fewshot or 0)
        if shots == 0:
            continue
        yield from _judge(one, leaf, shots)


def _judge(one: Asked, leaf: "LeafTask", shots: int) -> Iterator[Said]:
    config = leaf.task.config
    pool = len(leaf.task.fewshot_docs() or [])
    figures = {"shots": float(shots), "split": float(pool)}
    if pool < shots:
        message = f"{leaf.name} shows {shots} examples, its few-shot split has {pool}: ask for {pool} at most."
        yield one.flag(_GATE, "invalid", message, figures)
        return
    own = leaf.task.fewshot_cfg
    # The order in which lm-eval looks for examples where a task names no split for them.
    shown = own.split or config.training_split or config.validation_split or config.test_split
    given = own.split is None and own.samples is not None
    if not given and shown == (config.test_split or config.validation_split):
        message = (
            f"{leaf.name} takes its {shots} examples from {shown}, the split that is measured: prompts give other "
            "documents' answers away. Set num_fewshot to 0, or use a task with a split of its own for examples."
        )
        yield one.flag(_GATE, "warning", message, figures)
    if pool < POOL * shots and not given and own.sampler != "first_n":
        message = (
            f"{leaf.name} draws {shots} examples from {pool}: every two prompts share at least {2 * shots - pool}, and "
            f"no interval covers which. Ask for {pool // POOL} at most, or measure with several numbers of examples."
        )
        yield one.flag(_GATE, "warning", message, figures)
