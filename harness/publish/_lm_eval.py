"""An entry's benchmark scores as lm-evaluation-harness (0.4) writes its results, for whatever reads those.

Layout: `lm-eval/<entry>/seed-<n>/results_<date>.json` and `samples_<task>_<date>.jsonl` beside it, as `--output_path`
with `--log_samples` gives them. A run of lm-eval is of one model, and each seed of an entry trained its own: so there
is a folder for each. Its figures are that seed's means with lm-eval's standard error; those of the board, over all
seeds, are in the section `posttrain_harness` of each results file.

An export does not know all that lm-eval logs. Of a document, `doc` holds the id, and `doc_hash` begins with it, by
which `harness import lm-eval` pairs it with our own measurements again. There are no log-likelihoods: `resps` holds
what the model said, or the choice that it preferred, whatever the kind of the task. The gold reward, the judge, people
and profiles are no tasks of lm-eval and are left out.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.publish._aggregates import PEOPLE, PROFILE
from harness.publish._cards import Card
from harness.publish._names import COMPONENT, model_id, packages, recorded

if TYPE_CHECKING:
    import polars as pl

__all__ = ["FOLDER", "lm_eval", "lm_eval_paths"]

FOLDER = "lm-eval"
_DOMAIN = "domain."
_NO_TASKS = ("gold", "judge", PEOPLE, PROFILE)
_FILTERS = {"strict": "strict-match", "flexible": "flexible-extract"}
_OURS = re.compile(r"[0-9a-f]{16}")

_Row = Mapping[str, Any]


def lm_eval_paths(card: Card, key: str, samples: "pl.DataFrame") -> list[str]:
    """An entry's files, those of a seed together; none where it has no scores on tasks of lm-eval."""
    found: dict[str, list[str]] = {}
    for seed, leaf in _of_tasks(samples).select("seed", "leaf").unique(maintain_order=True).iter_rows():
        of_seed = found.setdefault(_folder(key, seed), [f"{_folder(key, seed)}/results_{_date(card)}.json"])
        of_seed.append(f"{_folder(key, seed)}/samples_{leaf}_{_date(card)}.jsonl")
    return [path for paths in found.values() for path in paths]


def lm_eval(
    card: Card, key: str, rows: Sequence[_Row], samples: "pl.DataFrame"
) -> Iterator[tuple[str, Iterator[bytes]]]:
    """The files of an entry by their paths; the parts of each are to be taken before the next is asked for.

    Args:
        card: the entry.
        key: its key on the board.
        rows: its figures.
        samples: all of them, in the columns of `SAMPLES`.
    """
    for (seed,), own in _of_tasks(samples).group_by("seed", maintain_order=True):
        hashes: dict[str, str] = {}
        for (leaf,), part in own.group_by("leaf", maintain_order=True):
            path = f"{_folder(key, seed)}/samples_{leaf}_{_date(card)}.jsonl"
            yield path, _lines(part, hashes, str(leaf))
        found = _results(card, key, int(str(seed)), rows, own, hashes)
        text = json.dumps(found, indent=1, allow_nan=False)
        yield f"{_folder(key, seed)}/results_{_date(card)}.json", iter([text.encode()])


def _of_tasks(samples: "pl.DataFrame") -> "pl.DataFrame":
    """The samples of lm-eval's tasks, sorted, with the task's own name in `leaf` and the document's in `id`."""
    import polars as pl

    # Tasks whose name is no name of a file here are not written: lm-eval has none such.
    theirs = ~(pl.col("task").is_in(_NO_TASKS) | pl.col("task").str.starts_with(_DOMAIN))
    mine = theirs & pl.col("document").str.contains(rf"^{COMPONENT}/[^/]*$")
    return (
        samples.filter(mine)
        .sort("seed", "document", "metric")
        .with_columns(
            pl.col("document").str.extract(r"^(.*)/[^/]*$").alias("leaf"),
            pl.col("document").str.extract(r"([^/]*)$").alias("id"),
        )
    )


def _folder(key: str, seed: object) -> str:
    return f"{FOLDER}/{key}/seed-{seed}"


def _date(card: Card) -> str:
    # Not by strftime, which writes years before 1000 without zeros on some systems.
    return recorded(card).isoformat(timespec="microseconds")[:26].replace(":", "-")


def _split(metric: str) -> tuple[str, str]:
    """The metric and the filter that `harness._documents.metric_name` made one name of."""
    name, _, used = metric.rpartition("_")
    return (name, _FILTERS[used]) if name == "exact_match" and used in _FILTERS else (metric, "none")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _lines(part: "pl.DataFrame", hashes: dict[str, str], leaf: str) -> Iterator[bytes]:
    """The samples of a task and seed, document by document; leaves the hash over all of theirs in `hashes`."""
    whole = hashlib.sha256()
    # They come sorted by document. Groups of a frame would be a frame for each document, which takes many times longer.
    by_document = itertools.groupby(part.iter_rows(named=True), lambda row: str(row["id"]))
    for number, (document, rows) in enumerate(by_document):
        by_filter: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_filter.setdefault(_split(row["metric"])[1], []).append(row)
        for used, given in by_filter.items():
            texts = {c: next((r[c] for r in given if r[c] is not None), "") for c in ("prompt", "response", "expected")}
            # Our id and more of the same, so that it is as long as lm-eval's and the same for every model.
            mark = _sha256(f"{leaf}/{document}")
            of = {
                "doc_hash": f"{document}{mark[16:]}" if _OURS.fullmatch(document) else mark,
                "prompt_hash": _sha256(texts["prompt"]),
                "target_hash": _sha256(texts["expected"]),
            }
            whole.update("".join(of.values()).encode())
            line = {
                "doc_id": number,
                "doc": {"id": document},
                "target": texts["expected"],
                "arguments": {"gen_args_0": {"arg_0": texts["prompt"], "arg_1": {}}},
                "resps": [[texts["response"]]],
                "filtered_resps": [texts["response"]],
                "filter": used,
                "metrics": [_split(row["metric"])[0] for row in given],
                **of,
                **{_split(row["metric"])[0]: row["score"] for row in given},
            }
            yield (json.dumps(line, allow_nan=False) + "\n").encode()
    hashes[leaf] = whole.hexdigest()


def _results(
    card: Card, key: str, seed: int, rows: Sequence[_Row], own: "pl.DataFrame", hashes: Mapping[str, str]
) -> dict[str, Any]:
    better = {(row["task"], row["metric"]): row["better"] for row in rows}
    conditions = {c.leaf: c.settings for c in card.conditions}
    found: dict[str, Any] = {"results": {}, "groups": {}, "group_subtasks": {}}
    per_task: dict[str, dict[str, Any]] = {
        n: {} for n in ("configs", "versions", "n-shot", "higher_is_better", "n-samples")
    }
    for (task,), members in own.group_by("task", maintain_order=True):
        leaves = members["leaf"].unique(maintain_order=True).to_list()
        if leaves != [task]:
            found["group_subtasks"][task] = leaves
            found["results"][task] = found["groups"][task] = {"alias": task, **_means(members)}
        for leaf in leaves:
            part = members.filter(members["leaf"] == leaf)
            settings = conditions.get(leaf, {})
            shots = settings.get("num_fewshot")
            names = [(_split(m)[0], better.get((task, m))) for m in part["metric"].unique(maintain_order=True)]
            ways = {m: None if way == "none" or way is None else way == "higher" for m, way in names}
            found["results"][leaf] = {"alias": leaf, **_means(part)}
            per_task["configs"][leaf] = {
                "task": leaf,
                "output_type": "generate_until",
                "num_fewshot": shots,
                "repeats": 1,
                "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": w} for m, w in ways.items()],
                "metadata": {"posttrain_harness": settings},
            }
            per_task["versions"][leaf] = settings.get("version", "unknown")
            per_task["n-shot"][leaf] = shots
            per_task["higher_is_better"][leaf] = ways
            documents = part["id"].n_unique()
            per_task["n-samples"][leaf] = {"original": documents, "effective": documents}
    known = packages(card)
    return {
        **found,
        **per_task,
        "config": {
            "model": "posttrain-harness",
            "model_args": {"artifact": card.artifacts.get(str(seed)), "base_model": card.model, "target": card.target},
            "limit": None,
            "gen_kwargs": None,
            "random_seed": seed,
        },
        "git_hash": None,
        "date": recorded(card).timestamp(),
        "lm_eval_version": known.get("lm-eval", "unknown"),
        "transformers_version": known.get("transformers", "unknown"),
        "task_hashes": dict(hashes),
        "model_source": "posttrain-harness",
        "model_name": model_id(card),
        "model_name_sanitized": model_id(card).replace("/", "__"),
        "posttrain_harness": _ours(card, key, seed, rows),
    }


def _means(part: "pl.DataFrame") -> dict[str, float | str]:
    """The mean of each metric over the documents, with the standard error of lm-eval: of independent documents."""
    found: dict[str, float | str] = {}
    for (metric,), own in part.group_by("metric", maintain_order=True):
        name, used = _split(str(metric))
        values = own["score"].to_list()
        mean = math.fsum(values) / len(values)
        spread = math.fsum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
        found[f"{name},{used}"] = mean
        found[f"{name}_stderr,{used}"] = math.sqrt(spread / len(values)) if len(values) > 1 else "N/A"
    return found


def _ours(card: Card, key: str, seed: int, rows: Sequence[_Row]) -> dict[str, Any]:
    columns = ("task", "metric", "value", "stderr", "low", "high", "n", "seeds", "rank_low", "rank_high", "ranked")
    return {
        "entry": key,
        "digest": card.digest,
        "sweep": card.sweep,
        "recipe": card.recipe,
        "model": card.model,
        "target": card.target,
        "seed": seed,
        "command": card.command,
        "figures_over_all_seeds": [
            {c: row[c] for c in columns}
            for row in rows
            if row["task"] not in _NO_TASKS and not str(row["task"]).startswith(_DOMAIN)
        ],
    }
