"""An entry as the Hub reads models: a model card with `model-index`, and `.eval_results` for the Hub's leaderboards.

`hub/<entry>/` is what a model's repository would hold beside the weights. Both are made by huggingface_hub itself.
`.eval_results` (https://huggingface.co/docs/hub/eval-results) is written of the Hub's documents only, never of bundled
sets or mirrors, and says in its notes that the documents are a part of the benchmark's. Its `task_id` is to be the one
of the benchmark's `eval.yaml`, which nothing here can see: it is the name that lm-eval has for the task.
"""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.publish._aggregates import PEOPLE, PROFILE
from harness.publish._cards import Card
from harness.publish._frame import as_float, judge_words, places
from harness.publish._markdown import cell, fence, table
from harness.publish._names import is_hub_id, model_name, recorded, slug
from harness.report._html import number
from harness.report._words import duration

__all__ = ["FOLDER", "card_path", "eval_results_paths", "model_card"]

FOLDER = "hub"
_FIRST = ("acc_norm", "acc", "exact_match", "exact_match_flexible", "exact_match_strict")
"""Which metric stands for a benchmark where a leaderboard takes one: the first of these that there is."""

_Row = Mapping[str, Any]


def card_path(key: str) -> str:
    """Where an entry's card lies in an export."""
    return f"{FOLDER}/{key}/README.md"


def eval_results_paths(card: Card, key: str, rows: Sequence[_Row]) -> list[str]:
    """Where an entry's results for leaderboards of the Hub lie; none without the Hub's documents."""
    return [f"{FOLDER}/{key}/.eval_results/{slug(str(row['task']))}.yaml" for row in _of_the_hub(card, rows)]


def model_card(card: Card, key: str, rows: Sequence[_Row]) -> dict[str, bytes]:
    """The files of an entry for the Hub, by their paths in the export.

    Args:
        card: the entry.
        key: its key on the board.
        rows: its figures.
    """
    from huggingface_hub import ModelCard

    head = f"---\n{_metadata(card, rows)}\n---\n\n"
    # What the Hub's own reader does not take is no card.
    text = str(ModelCard(head + _text(card, key, rows)))
    found = {card_path(key): text.encode("utf-8", "replace")}
    for path, row in zip(eval_results_paths(card, key, rows), _of_the_hub(card, rows), strict=True):
        found[path] = _eval_results(card, row).encode("utf-8", "replace")
    return found


def _scored(rows: Sequence[_Row]) -> list[_Row]:
    return [row for row in rows if row["task"] != PROFILE]


def _metadata(card: Card, rows: Sequence[_Row]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            task_name="Text Generation",
            dataset_type=next(iter(card.datasets.get(row["task"], [])), slug(row["task"])),
            dataset_name=f"{row['task']}, {card.data}, the half that tuning never saw",
            # Results of one dataset and configuration would become one, whatever their task.
            dataset_config=row["task"],
            metric_type=row["metric"],
            metric_name=_mean_of(row),
            metric_value=row["value"],
        )
        for row in _scored(rows)
    ]
    data = ModelCardData(
        model_name=model_name(card),
        # The Hub takes ids only.
        base_model=card.model if card.steps and is_hub_id(card.model) else None,
        tags=["posttrain-harness", *dict.fromkeys(slug(s).lower() for s in card.steps)],
        eval_results=results or None,
    )
    return data.to_yaml(line_break="\n")


def _mean_of(row: _Row) -> str:
    if row["task"] == PEOPLE:
        return f"{row['metric']}, mean of {row['raters']} people over {row['n']} prompts"
    return f"{row['metric']}, mean over {row['n']} documents and {row['seeds']} seeds"


def _of_the_hub(card: Card, rows: Sequence[_Row]) -> list[_Row]:
    """The one figure of each task that was measured on documents of the Hub."""
    found: dict[str, _Row] = {}
    for metric in _FIRST:
        for row in rows:
            if row["metric"] == metric and card.datasets.get(row["task"]):
                found.setdefault(row["task"], row)
    return [found[task] for task in sorted(found, key=lambda t: (slug(t), t)) if slug(task) not in _twice(found)]


def _twice(tasks: Mapping[str, _Row]) -> set[str]:
    names = [slug(task) for task in tasks]
    return {name for name in names if names.count(name) > 1}


def _eval_results(card: Card, row: _Row) -> str:
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from ruamel.yaml import YAML

    task = str(row["task"])
    asked = [c.settings.get("num_fewshot") for c in card.conditions if c.task == task]
    shots = sorted({str(number) for number in asked if number is not None})
    notes = [
        str(row["metric"]),
        *(f"{s}-shot" for s in shots),
        f"{row['n']} documents (a part of the benchmark)",
        f"{row['seeds']} seeds",
        *([] if row["low"] is None else [f"95% interval {row['low']:.4f} to {row['high']:.4f}"]),
    ]
    entry = EvalResultEntry(
        dataset_id=card.datasets[task][0],
        task_id=task,
        value=row["value"],
        date=recorded(card).isoformat(),
        notes=", ".join(notes),
    )
    yaml, stream = YAML(), io.StringIO()
    yaml.width = 10_000
    yaml.dump(eval_result_entries_to_yaml([entry]), stream)
    return stream.getvalue()


def _span(row: _Row, value: str = "value", low: str = "low", high: str = "high") -> str | None:
    if row[value] is None:
        return None
    bounds = "unknown" if row[low] is None else f"{number(as_float(row[low]))}, {number(as_float(row[high]))}"
    return f"{number(as_float(row[value]))} [{bounds}]"


def _text(card: Card, key: str, rows: Sequence[_Row]) -> str:
    base = card.model if card.steps else f"{card.model} (this is it, untouched)"
    facts = [
        ("Base model", base),
        ("Method", card.method),
        ("Recipe", card.recipe),
        ("Target of the measurements", card.target),
        ("Data of the measurements", card.data),
        ("Sweep", f"{card.sweep}, {card.state}, recorded {card.recorded_at} UTC"),
        ("Entry", f"{key}, digest of its scores {card.digest}"),
    ]
    parts = [
        f"# {cell(card.label)}",
        *([cell(card.question)] if card.question else []),
        table(["", ""], facts),
        "## Scores",
        "Means over the documents that tuning never saw and over all seeds, with 95 % intervals. The rank is the range "
        "of places on its board that the data leave open. Differences are paired by document, Holm-corrected over the "
        "figures of this model.",
        _scores(rows),
        *_judges(card, rows),
        *_people(rows),
        *_profile(rows),
        "## Hyper-parameters",
        *_settings(card),
        "## What it took",
        f"{card.budget.trials} tuning trials; {cell(duration(card.budget.device_seconds))} of workers for training, "
        "measuring and runs that failed.",
        "## Repeat it",
        f"Save the suite below as {cell(card.suite)}.yaml and run:",
        fence(card.command, "sh"),
        *([] if not card.scrubbed else ["Paths, names or secrets were taken out of the suite."]),
        *([] if not card.notes else ["\n".join(f"- {cell(n)}" for n in card.notes)]),
        fence(card.yaml, "yaml"),
    ]
    return "\n\n".join(parts) + "\n"


def _scores(rows: Sequence[_Row]) -> str:
    lines = [
        [
            row["task"],
            row["metric"],
            _span(row),
            row["n"],
            row["seeds"],
            places(dict(row)),
            _span(row, "difference", "difference_low", "difference_high"),
            row["verdict"],
        ]
        for row in _scored(rows)
        if row["task"] != PEOPLE
    ]
    headers = ["task", "metric", "value, 95 %", "documents", "seeds", "rank, 95 %", "against the base model", "verdict"]
    return table(headers, lines)


def _judges(card: Card, rows: Sequence[_Row]) -> list[str]:
    if not card.judges or not any(row["task"] == "judge" for row in rows):
        return []
    said = "\n".join(f"- {cell(judge_words(one))}" for one in card.judges)
    return ["The task judge is what these judges say, who are known to be this good:", said]


def _people(rows: Sequence[_Row]) -> list[str]:
    lines = [
        [
            row["metric"],
            _span(row),
            row["n"],
            row["raters"],
            _span(row, "difference", "difference_low", "difference_high"),
            row["verdict"],
        ]
        for row in rows
        if row["task"] == PEOPLE
    ]
    if not lines:
        return []
    lead = (
        "What people say of its answers, from 1 to 7, and how often they prefer them to another recipe's, ties half. "
        "Intervals are 95 %, over other prompts and other raters; differences are paired by prompt and rater."
    )
    headers = ["criterion", "mean, 95 %", "prompts", "raters", "against the base model", "verdict"]
    return [lead, table(headers, lines)]


def _profile(rows: Sequence[_Row]) -> list[str]:
    lines = [[row["metric"], _span(row), row["n"]] for row in rows if row["task"] == PROFILE]
    if not lines:
        return []
    return ["Latency and memory: the median, with the least and the most.", table(["what", "value", "repeats"], lines)]


def _settings(card: Card) -> list[str]:
    chosen = [[name, json.dumps(value)] for name, value in sorted(card.settings.items())]
    stages = [[s.method, s.seed, s.precision, s.params] for s in card.stages]
    found = [table(["searched setting", "chosen"], chosen)] if chosen else ["Nothing was searched."]
    return [*found, table(["stage", "seed", "precision", "settings"], stages)] if stages else found
