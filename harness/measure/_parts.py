"""Scoring an lm-eval task part by part, with the prompts that it has as a whole.

lm-eval draws the examples of a prompt from one stream of random numbers, document after document. A part that built its
own prompts would draw others: so all are built at once, and each part takes its own.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["PartedTask", "restrict"]


def restrict(task: Any, documents: Sequence[Mapping[str, object]]) -> None:  # noqa: ANN401 (lm-eval's Task)
    """Make these the documents that lm-eval evaluates a task on."""
    # Handing over the documents themselves, and not their places (`samples=`), spares lm-eval a walk over the whole
    # split for every task and filter.
    if task.has_test_docs():
        task.test_docs = lambda: documents
    else:
        task.validation_docs = lambda: documents


class PartedTask:
    """A task, already restricted to its documents and seeded, whose next evaluation is of the part that was taken."""

    def __init__(self, task: Any, documents: Sequence[Mapping[str, object]]) -> None:  # noqa: ANN401 (lm-eval's Task)
        self._task, self._documents = task, documents
        task.build_all_requests(rank=0, world_size=1)
        self._requests: dict[int, list[Any]] = defaultdict(list)
        for request in task.instances:
            self._requests[request.doc_id].append(request)

    def take(self, places: Sequence[int]) -> None:
        """Let the next evaluation be of the documents at these places; each document is taken once."""
        taken = []
        for number, place in enumerate(places):
            for request in self._requests.pop(place):
                request.doc_id = number
                taken.append(request)
        restrict(self._task, [self._documents[place] for place in places])

        def build(**_: object) -> None:
            self._task._instances = taken

        self._task.build_all_requests = build
