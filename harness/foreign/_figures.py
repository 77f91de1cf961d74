"""The figures of a task in lm-eval's results, and which of them are means over the documents."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from harness.errors import UserError
from harness.foreign._folder import ForeignRun, config_of, section
from harness.foreign._reading import brief

__all__ = ["aggregations", "figures_of"]

_MEANS = frozenset({"mean", "nanmean"})
_OTHERWISE = frozenset(
    {"bits_per_byte", "bleu", "brier_score", "bypass", "byte_perplexity", "chrf", "f1", "mcc", "perplexity", "ter"}
    | {"word_perplexity"}
)
"""lm-eval's own metrics whose figure is no mean, where a task does not say how it is made."""
_FUNCTION = re.compile(r"\s*(?:@.*\n\s*)*def (\w+)\(")


def figures_of(run: ForeignRun, task: str) -> Mapping[str, Any]:
    """`metric,filter` → what the results say of it, standard errors included.

    Raises:
        UserError: the results have no figures of the task, though it was configured.
    """
    found = section(run, "results").get(task)
    if not isinstance(found, dict):
        got = "nothing" if found is None else brief(found)
        raise UserError(f"{run.path}: results: {brief(task)}: expected its figures by metric and filter, got {got}")
    return {key: value for key, value in found.items() if "," in key}


def aggregations(run: ForeignRun, task: str, sampled: Collection[str]) -> Callable[[str], bool]:
    """Whether a metric's figure is the mean of its scores, as the task's configuration has it.

    lm-eval takes the mean of a metric that the configuration does not name, unless it is one of several that a named
    one returned: then that one's aggregation holds for it, and where that is no mean, this one's may be none either.
    """
    listed = config_of(run, task).get("metric_list")
    declared: dict[str, bool] = {}
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("metric"), str):
            continue
        match = _FUNCTION.match(entry["metric"])
        name = match[1] if match else entry["metric"]
        declared[name] = entry["aggregation"] in _MEANS if _text(entry, "aggregation") else name not in _OTHERWISE
    returned_several = any(not mean for name, mean in declared.items() if name not in sampled)
    return lambda name: declared.get(name, not returned_several and name not in _OTHERWISE)


def _text(entry: Mapping[str, Any], name: str) -> bool:
    return isinstance(entry.get(name), str)
