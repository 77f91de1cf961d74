"""What training took: operations, the time of a step, the memory it needed, beside the settings that trade them."""

from collections.abc import Mapping
from typing import Any

from harness.report._html import Html, Table, join, table, tag
from harness.report._queries import Facts, mapping

__all__ = ["training_cost"]

_OPTIONS = (
    "batch_size",
    "gradient_accumulation",
    "gradient_checkpointing",
    "optimizer",
    "offload_optimizer",
    "lora_rank",
    "adapter",
    "adapter_targets",
    "prompt_tokens",
)
"""The settings that trade memory for time; one left out of a stage's settings has its default."""

_STAGES = 400
"""Rows at most."""

_MEASURED = {
    "trained_parameters": "weights trained",
    "train_tokens": "tokens trained on",
    "train_flops": "operations of training, 10¹²",
    "step_ms": "step, ms",
    "train_peak_mb": "peak beside the model, MiB",
    "optimizer_state_mb": "optimizer state, MiB",
    "cuda_peak_mb": "GPU peak allocated, MiB",
    "cuda_reserved_mb": "GPU peak reserved, MiB",
}

_COUNTS = ("trained_parameters", "train_tokens")


def training_cost(facts: Facts) -> Html | None:
    """A row a stage that measured its steps; None where none did."""
    users: dict[str, list[str]] = {}
    for stage, label in facts.lineage.select("stage", "label").unique().sort("label").iter_rows():
        users.setdefault(stage, []).append(label)
    rows: list[list[object]] = []
    shown: set[str] = set()
    measured = 0
    for row in facts.stages.iter_rows(named=True):
        metrics, params = mapping(row["metrics"]), mapping(row["params"])
        if "step_ms" not in metrics:
            continue
        measured += 1
        if measured > _STAGES:
            continue
        shown |= {name for name in _MEASURED if name in metrics}
        options = ", ".join(f"{k} {_plain(params[k])}" for k in _OPTIONS if params.get(k) not in (None, False, 0))
        used = ", ".join(users.get(row["stage"], []))
        rows.append([row["method"], used, row["seed"], options, *(_figure(name, metrics) for name in _MEASURED)])
    if not rows:
        return None
    keep = [i for i, name in enumerate(_MEASURED) if name in shown]
    first = ["method", "used by", "seed", "batch and memory settings"]
    headers = [*first, *(list(_MEASURED.values())[i] for i in keep)]
    cells = [[*row[: len(first)], *(row[len(first) + i] for i in keep)] for row in rows]
    note = (
        "The median step after the first, and the highest resident memory over what the model took before, as each "
        "stage measured them while others may have run beside it. Operations are estimated from the matrices that a "
        "token passes and those that learn; adapters and training in full are compared fairly where they are equal."
    )
    if measured > _STAGES:
        note += f" The first {_STAGES} of {measured:,} stages; the store's view stages has all of them."
    return join(tag("h3", "What training took"), tag("p", note, class_="fine"), table(Table(headers, cells)))


def _figure(name: str, metrics: Mapping[str, Any]) -> object:
    value = metrics.get(name)
    if value is None:
        return None
    return float(value) / 1e12 if name == "train_flops" else int(value) if name in _COUNTS else value


def _plain(value: object) -> str:
    return "on" if value is True else str(value)
