"""Every Eval Ever: an entry as the shared schema of the EvalEval coalition has it, aggregate and by instance.

Schema 0.3, https://github.com/evaleval/every_eval_ever. The folder `every-eval-ever/data` is laid out as the datastore
of that project is: `<collection>/<developer>/<model>/<uuid>.json`, and `<uuid>_samples.jsonl` beside it. The collection
is the suite; the uuid is made of the entry's digest, so that equal scores have equal files.

Left out is what the schema has no place for: latency and memory, and figures of which neither more nor less is better.
"""

import hashlib
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.publish._aggregates import PEOPLE, STATISTICS, range_of
from harness.publish._cards import Card
from harness.publish._names import developer_of, model_id, model_name, packages, recorded, slug

if TYPE_CHECKING:
    import polars as pl

__all__ = ["FOLDER", "SCHEMA", "aggregate_path", "every_eval_ever", "samples_path"]

FOLDER = "every-eval-ever"
SCHEMA = "0.3.0"
_NOT_PUBLISHED = "[text not published]"
_CANONICAL = {"acc": "accuracy", "exact_match": "exact_match", "brier_score": "brier_score", "perplexity": "perplexity"}

_Row = Mapping[str, Any]


def aggregate_path(card: Card) -> str:
    """Where the entry's aggregate lies in an export."""
    return f"{FOLDER}/{_place(card)}.json"


def samples_path(card: Card) -> str:
    """Where the entry's instances lie in an export."""
    return f"{FOLDER}/{_place(card)}_samples.jsonl"


def _place(card: Card) -> str:
    name = uuid.UUID(bytes=hashlib.sha256(f"every eval ever {card.digest}".encode()).digest()[:16], version=4)
    return f"data/{slug(card.suite)}/{developer_of(card)}/{model_name(card)}/{name}"


def every_eval_ever(card: Card, rows: Sequence[_Row], samples: "pl.DataFrame") -> Iterator[tuple[str, Iterator[bytes]]]:
    """The two files of an entry by their paths; the parts of each are to be taken before the next is asked for.

    Args:
        card: the entry.
        rows: its figures.
        samples: all of them, in the columns of `SAMPLES`.
    """
    shown = [row for row in rows if row["better"] != "none"]
    digest, lines = hashlib.sha256(), 0

    def instances() -> Iterator[bytes]:
        nonlocal lines
        for line in _instances(card, shown, samples):
            digest.update(line)
            lines += 1
            yield line

    if shown:
        yield samples_path(card), instances()
        whole = _aggregate(card, shown)
        whole["detailed_evaluation_results"] = {
            "format": "jsonl",
            "file_path": f"{_place(card)}_samples.jsonl",
            "hash_algorithm": "sha256",
            "checksum": digest.hexdigest(),
            "total_rows": lines,
        }
        yield aggregate_path(card), iter([(json.dumps(whole, indent=1, allow_nan=False) + "\n").encode()])


def _evaluation_id(card: Card) -> str:
    # One model on several targets has as many evaluations.
    return f"{slug(card.sweep)}.{slug(card.target)}/{model_id(card)}/{int(recorded(card).timestamp())}"


def _aggregate(card: Card, rows: Sequence[_Row]) -> dict[str, Any]:
    time = str(int(recorded(card).timestamp()))
    return {
        "schema_version": SCHEMA,
        "evaluation_id": _evaluation_id(card),
        "evaluation_timestamp": time,
        "retrieved_timestamp": time,
        "source_metadata": {
            "source_name": f"posttrain-harness leaderboard of {card.suite}",
            "source_type": "evaluation_run",
            "source_organization_name": "not stated",
            # Who trains a model here measures it too; the base model is somebody else's.
            "evaluator_relationship": "first_party" if card.steps else "third_party",
            "additional_details": {
                "entry": card.id,
                "digest": card.digest,
                "sweep": card.sweep,
                "question": card.question,
                "is_correct": "the score is the greatest that its metric can have",
            },
        },
        "eval_library": _library(card),
        "model_info": _model(card),
        "evaluation_results": [_result(card, row) for row in rows],
    }


def _library(card: Card) -> dict[str, Any]:
    found = packages(card)
    version = found.pop("posttrain-harness", "unknown")
    return {"name": "posttrain-harness", "version": version, "additional_details": found}


def _model(card: Card) -> dict[str, Any]:
    details = {
        "deployment_type": "self_deployed",
        "model_availability": "unknown",
        "base_model": card.model,
        "recipe": card.recipe,
        "method": card.method,
        "target": card.target,
        "settings": json.dumps(card.settings, sort_keys=True),
        # Each as the card has it: JSON within JSON within JSON is for nobody's eyes.
        **{f"stage {n}": f"{s.method} v{s.version}, {s.key}, seed {s.seed}" for n, s in enumerate(card.stages)},
        **{f"stage {n} settings": s.params for n, s in enumerate(card.stages)},
        "artifacts": json.dumps(card.artifacts, sort_keys=True),
        "tuning_trials": str(card.budget.trials),
        "device_seconds": repr(card.budget.device_seconds),
    }
    return {
        "name": card.label,
        "id": model_id(card),
        "developer": developer_of(card),
        "inference_engine": {"name": f"posttrain-harness target {card.target}"},
        "additional_details": details,
    }


def _result(card: Card, row: _Row) -> dict[str, Any]:
    task, metric = str(row["task"]), str(row["metric"])
    low, high = range_of(task, metric)
    people = task == PEOPLE
    about = "as people rate answers to prompts" if people else f"over the documents of {task}"
    command = {"execution_command": card.command}
    return {
        "evaluation_result_id": f"{task}/{metric}",
        "evaluation_name": task,
        "source_data": _source(card, task),
        "metric_config": {
            "evaluation_description": f"Mean {metric} {about} that tuning never saw, all seeds",
            "metric_id": _CANONICAL.get(metric, f"posttrain-harness.{'people.' if people else ''}{metric}"),
            "metric_name": metric,
            "metric_unit": "proportion" if (low, high) == (0.0, 1.0) else "points",
            "lower_is_better": row["better"] == "lower",
            "score_type": "continuous",
            "min_score": _bound(low),
            "max_score": _bound(high),
        },
        "score_details": {
            "score": row["value"],
            "details": {n: str(row[n]) for n in _DETAILS if row[n] is not None},
            "uncertainty": _uncertainty(row),
        },
        "generation_config": {
            "generation_args": command,
            "additional_details": _judged(card) if task == "judge" else _conditions(card, task),
        },
    }


_DETAILS = (
    *("seeds", "raters", "rank", "rank_low", "rank_high", "ranked"),
    *("difference", "difference_low", "difference_high", "difference_n", "adjusted_p", "verdict"),
)


def _bound(value: float) -> float | str:
    return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _uncertainty(row: _Row) -> dict[str, Any]:
    found: dict[str, Any] = {"num_samples": row["n"]}
    if row["task"] != PEOPLE:
        found["num_bootstrap_samples"] = STATISTICS["resamples"]
    method = str(STATISTICS["people" if row["task"] == PEOPLE else "mean"])
    if row["stderr"] is not None:
        found["standard_error"] = {"value": row["stderr"], "method": method}
    if row["low"] is not None and row["high"] is not None:
        bounds = {"lower": row["low"], "upper": row["high"], "confidence_level": STATISTICS["confidence"]}
        found["confidence_interval"] = {**bounds, "method": method}
    return found


def _source(card: Card, task: str) -> dict[str, Any]:
    """Where the documents came from: of the hub's only where they are the hub's."""
    found: dict[str, Any] = {"dataset_name": f"{task}, {card.data}", "source_type": "other"}
    if datasets := card.datasets.get(task):
        found = {"dataset_name": task, "source_type": "hf_dataset", "hf_repo": datasets[0]}
    return {**found, "additional_details": {"data": card.data, "documents": "the half that tuning never saw"}}


def _conditions(card: Card, task: str) -> dict[str, str]:
    return {c.leaf: json.dumps(c.settings, sort_keys=True) for c in card.conditions if c.task == task}


def _judged(card: Card) -> dict[str, str]:
    """How good the judges are known to be that gave the scores."""
    return {f"judge {n}": one.model_dump_json() for n, one in enumerate(card.judges)}


def _instances(card: Card, rows: Sequence[_Row], samples: "pl.DataFrame") -> Iterator[bytes]:
    shown = {(row["task"], row["metric"]): range_of(str(row["task"]), str(row["metric"]))[1] for row in rows}
    base = {
        "schema_version": SCHEMA,
        "evaluation_id": _evaluation_id(card),
        "model_id": model_id(card),
    }
    for task, metric, seed, document, score, response, prompt, expected in samples.select(
        "task", "metric", "seed", "document", "score", "response", "prompt", "expected"
    ).iter_rows():
        if (task, metric) not in shown:
            continue
        reference = [] if expected is None else [expected]
        mark = None if prompt is None else hashlib.sha256((prompt + "".join(reference)).encode()).hexdigest()
        answer = {"turn_idx": 0, "source": "output.raw", "extraction_method": "custom", "is_terminal": True}
        line = {
            **base,
            "evaluation_name": task,
            "evaluation_result_id": f"{task}/{metric}",
            "sample_id": document,
            "sample_hash": mark,
            "interaction_type": "single_turn",
            "input": {"raw": _NOT_PUBLISHED if prompt is None else prompt, "reference": reference},
            "output": {"raw": [_NOT_PUBLISHED if response is None else response]},
            "answer_attribution": [] if response is None else [{**answer, "extracted_value": response}],
            "evaluation": {"score": score, "is_correct": score == shown[task, metric]},
            "metadata": {"metric": metric, "seed": str(seed), "target": card.target},
        }
        yield (json.dumps(line, allow_nan=False) + "\n").encode()
