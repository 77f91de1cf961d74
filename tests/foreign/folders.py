"""Folders as lm-eval 0.4.13 writes them, made by hand: for what a small real run does not show, and for breaking."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DATE = "2026-03-01T10-00-00.123456"


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sample(doc_id: int, doc: object, used: str = "none", prompt: str = "Q", **fields: Any) -> dict[str, Any]:
    """One line: a generated answer unless `resps` and `arguments` say otherwise; metrics are the other fields."""
    given = {
        "target": fields.pop("target", "t"),
        "resps": fields.pop("resps", [["answer"]]),
        "arguments": fields.pop("arguments", {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n"]}}}),
    }
    return {
        "doc_id": doc_id,
        "doc": doc,
        **given,
        "filtered_resps": ["answer"],
        "filter": used,
        "metrics": list(fields),
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": sha256(prompt),
        "target_hash": sha256(given["target"]),
        **fields,
    }


def results(tasks: Mapping[str, Mapping[str, Any]], lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The results of these figures over these samples."""
    return {
        "results": {task: {"alias": task, **figures} for task, figures in tasks.items()},
        "group_subtasks": {},
        "configs": {task: {"task": task, "output_type": "generate_until", "repeats": 1} for task in tasks},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 0),
        "n-samples": {t: {"original": 100, "effective": len({s["doc_id"] for s in lines[t]})} for t in tasks},
        "config": {"model": "hf", "model_args": {"pretrained": "/home/alice/models/tiny"}, "random_seed": 7},
        "date": 1772359200.0,
        "lm_eval_version": "0.4.13",
        "task_hashes": {
            t: sha256("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for s in lines[t])) for t in tasks
        },
        "model_name": "/home/alice/models/tiny",
        "total_evaluation_time_seconds": "3.5",
    }


def write(
    folder: Path, found: Mapping[str, Any], lines: Mapping[str, Sequence[Mapping[str, Any]]], date: str = DATE
) -> Path:
    """Write one run into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"results_{date}.json").write_text(json.dumps(found, indent=2, ensure_ascii=False))
    for task, samples in lines.items():
        text = "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples)
        (folder / f"samples_{task}_{date}.jsonl").write_text(text)
    return folder


def plain(folder: Path, scores: Sequence[float] = (1.0, 0.0, 0.0, 1.0), task: str = "quiz", date: str = DATE) -> Path:
    """A run of one task with these scores under `exact_match`."""
    lines = {task: [sample(i, {"q": f"question {i}"}, exact_match=score) for i, score in enumerate(scores)]}
    figures = {task: {"exact_match,none": sum(scores) / len(scores), "exact_match_stderr,none": 0.1}}
    return write(folder, results(figures, lines), lines, date)
