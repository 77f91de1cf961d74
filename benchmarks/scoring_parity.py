"""Are the scores of `prefix-tree` those of lm-eval's own `hf` model? On the bundled model and official documents.

    python benchmarks/scoring_parity.py --data ../shared/data

In fp32 every log-likelihood is compared with that of `hf` (`logits_cache=False`: with the cache it gathers wrong places
where equal tokens are split differently), every document's answer, and every greedy text. In bf16, where answers change
with the make-up of a batch for any scorer, the share of documents answered otherwise than in fp32 stands beside that of
`hf`. `--reference` keeps the results of `hf` in a folder: they take most of the time and do not depend on this project.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _scoring_work import WORK, bundled_model, hf, mirror, prefix_tree, requests_of
from lm_eval.api.instance import Instance

from harness.method import LoadedModel

LIMITS = {"mmlu": 40, "gsm8k": 24, "truthfulqa_gen": 48, "wikitext": 6}
DOCUMENTS = 200
TOLERANCE = 1e-3


def _key(request: Instance) -> str:
    return json.dumps(request.args, sort_keys=True)


def _reference(
    loaded: LoadedModel, kind: str, requests: Sequence[Instance], name: str, folder: Path | None, batch: int
) -> list[Any]:
    stored: dict[str, Any] = {}
    file = folder / f"{name}.json" if folder else None
    if file and file.is_file():
        stored = json.loads(file.read_text())
    missing = list({_key(r): r for r in requests if _key(r) not in stored}.values())
    if missing:
        results = getattr(hf(loaded, batch), kind)(missing, disable_tqdm=True)
        stored |= {_key(r): x for r, x in zip(missing, results, strict=True)}
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(stored))
    return [stored[_key(r)] for r in requests]


def _answers(requests: Sequence[Instance], results: Sequence[Any]) -> dict[tuple[str, int], tuple[int, int]]:
    """(task, document) → the choice by log-likelihood and by log-likelihood per character."""
    choices: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for request, (value, _) in zip(requests, results, strict=True):
        length = max(1, len(request.args[1]))
        choices[str(request.task_name), int(request.doc_id or 0)].append((value, value / length))
    return {
        document: (max(range(len(v)), key=lambda i: v[i][0]), max(range(len(v)), key=lambda i: v[i][1]))
        for document, v in choices.items()
    }


def _gap(loaded: LoadedModel, request: Instance, a: str, b: str) -> str:
    """Where two greedy texts part: the difference in nats of the two best tokens there, by a plain forward pass."""
    import torch

    first = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    ids = loaded.tokenizer(request.args[0] + a[:first], return_tensors="pt").input_ids
    with torch.inference_mode():
        best = torch.log_softmax(loaded.model(ids).logits[0, -1].float(), -1).topk(2).values
    return f"{float(best[0] - best[1]):.2g} nats between the two best tokens at character {first}"


def _compare(kind: str, requests: Sequence[Instance], ours: Sequence[Any], theirs: Sequence[Any]) -> dict[str, Any]:
    if kind == "loglikelihood":
        first, second = _answers(requests, ours), _answers(requests, theirs)
        return {
            "documents": len(first),
            "requests": len(requests),
            "largest_difference": max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)),
            "changed_answers": sum(first[d] != second[d] for d in first),
            "changed_greedy": sum(bool(a[1]) != bool(b[1]) for a, b in zip(ours, theirs, strict=True)),
        }
    if kind == "loglikelihood_rolling":
        # Sums over thousands of tokens: what one token differs by is what can be held against a tolerance.
        worst = max(abs(a - b) / max(1, len(r.args[0])) for r, a, b in zip(requests, ours, theirs, strict=True))
        return {
            "documents": len(requests),
            "requests": len(requests),
            "largest_difference": worst,
            "largest_relative": max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)),
        }
    changed = [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    return {"documents": len(requests), "requests": len(requests), "changed_texts": changed}


def main() -> int:
    """Compare, print a table, and end with 1 where fp32 scores differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=mirror(), help="a mirror folder of official documents, or bundled")
    parser.add_argument("--work", default=",".join(WORK), help="which of %(default)s")
    parser.add_argument("--limit", type=int, help=f"documents a task (default {DOCUMENTS}, fewer where they are long)")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="rows a batch of lm-eval's own model")
    parser.add_argument("--reference", type=Path, help="a folder that keeps the results of lm-eval's own model")
    parser.add_argument("--prepare", action="store_true", help="only fill the --reference folder")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    exact: dict[str, tuple[list[Instance], list[Any]]] = {}
    for dtype in options.dtypes.split(","):
        loaded = bundled_model(dtype, options.threads)
        for name in options.work.split(","):
            work = WORK[name].with_limit(options.limit or LIMITS.get(name, DOCUMENTS))
            requests = requests_of(work, options.data)
            began = time.monotonic()
            # Whole windows of text: a batch of them would hold gigabytes of logits.
            batch = 1 if work.kind == "loglikelihood_rolling" else options.batch
            theirs = _reference(loaded, work.kind, requests, f"{work.kind}-{dtype}", options.reference, batch)
            middle = time.monotonic()
            print(f"{name} {dtype}: {len(requests)} requests, hf {middle - began:.0f} s", file=sys.stderr, flush=True)
            if options.prepare:
                continue
            ours = getattr(prefix_tree(loaded), work.kind)(requests)
            row = {"work": name, "dtype": dtype, **_compare(work.kind, requests, ours, theirs)}
            for i in row.get("changed_texts", [])[:3] if dtype == "float32" else []:
                print(f"  {name} document {i}: {_gap(loaded, requests[i], ours[i], theirs[i])}")
            if dtype == "float32":
                exact[name] = (requests, theirs)
            elif name in exact and work.kind == "loglikelihood":
                right = _answers(*exact[name])
                row["flips_ours"] = sum(right[d] != a for d, a in _answers(requests, ours).items())
                row["flips_hf"] = sum(right[d] != a for d, a in _answers(requests, theirs).items())
            rows.append(row)
            print("  " + "  ".join(f"{k} {v:.2g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    return int(any(_differs(r) for r in rows if r["dtype"] == "float32"))


def _differs(row: dict[str, Any]) -> bool:
    changed = row.get("changed_answers", 0) + row.get("changed_greedy", 0) + len(row.get("changed_texts", []))
    return bool(changed or row.get("largest_difference", 0.0) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
