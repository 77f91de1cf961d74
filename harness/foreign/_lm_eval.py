"""Results of lm-evaluation-harness (`results_<date>.json`, `samples_<task>_<date>.jsonl`) as rows of our store."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness._recipes import NAME_PATTERN
from harness.errors import UserError
from harness.foreign._folder import TaskFile, find_tasks, is_task_name, section
from harness.foreign._provenance import (
    environment_facts,
    model_identity,
    model_label,
    run_settings,
    scrubbed,
    seed_of,
    task_settings,
)
from harness.foreign._reading import brief, finite_number
from harness.foreign._samples import Samples, read_samples
from harness.keys import content_key
from harness.provenance import environment
from harness.store import Store

__all__ = ["Imported", "import_lm_eval"]

_TARGET = "lm-eval"
_DATA = "documents of an imported lm-eval run"

Row = dict[str, object]


@dataclass(frozen=True)
class Imported:
    """What was taken into the store, and as what.

    `tasks` counts the documents of each task; `skipped` says why a task, or a metric of one, is not there; `taken`
    names the results file that counted for each task. `notes` are what to know before comparing: several runs of a
    task, documents that go by lm-eval's hash and not by ours, figures that are no means, mismatches that were allowed.
    `new` is false where the store had all of it.
    """

    name: str
    model: str
    sweep: str
    tasks: Mapping[str, int]
    skipped: Mapping[str, str] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    new: bool = True


@dataclass(frozen=True)
class _Measured:
    """A task's samples with the key and the settings of the measurement that they become."""

    one: TaskFile
    samples: Samples
    key: str
    settings: Row


def import_lm_eval(folder: Path, store: Store, name: str | None = None, *, allow_mismatch: bool = False) -> Imported:
    """Take a folder of lm-eval's results into the store, as a sweep of its own that was run to its end.

    The sweep is called `import-<name>-<8 hex>`, of the suite `import-<name>`, with one recipe, `name`, one trial and
    the run's `random_seed` (0 where there is none). Of several runs in the folder the latest of each task counts. A
    document has the id that our own measurements give it, so that both are compared document by document; where that
    is not possible (`harness.foreign._documents`) it goes by lm-eval's `doc_hash`, and a note says so.

    All samples are put into the half `final`. This assumes that whoever made the results did not choose the model or
    its settings by these documents: nothing in the files could show it. A comparison with our own runs is on the final
    half of the documents in any case, the others have no counterpart there.

    Nothing is added if the same files were imported under the same name before. No sweep may be at work in the store
    meanwhile (`harness.lock`).

    Args:
        folder: what `lm_eval run --log_samples --output_path` named, or the model's folder in it.
        store: where the rows go; it is ingested before and after.
        name: letters, digits, `_ . -`; the model's name by default.
        allow_mismatch: see `harness.foreign._samples.read_samples`.

    Raises:
        UserError: no such results, several models in them, a file that is damaged or edited (with its line), no samples
            (`--log_samples` was not given), or no task with scores of documents.
        StorageError: the disk refuses.
    """
    found = find_tasks(Path(folder))
    results = found[0].run.results
    seed, artifact = seed_of(results), model_identity(results)
    for one in found:
        if (seed_of(one.run.results), model_identity(one.run.results)) != (seed, artifact):
            raise UserError(
                f"{one.run.path}: the latest run of {brief(one.task)} was made with other model arguments or another "
                f"seed than that of {brief(found[0].task)} ({found[0].run.path.name}); keep the runs of one in a folder"
            )
    model = model_label(results)
    name = _checked_name(name, model)
    skipped: dict[str, str] = {}
    notes: list[str] = []
    measured = [m for one in found if (m := _measure(one, allow_mismatch, skipped, notes)) is not None]
    if not measured:
        first, why = next(iter(skipped.items()))
        raise UserError(f"{folder}: no task has scores of single documents: {brief(first)}: {why}")
    digest = content_key("lm-eval import", name=name, artifact=artifact, seed=seed, of=[m.key for m in measured])
    sweep = f"import-{name}-{digest[:8]}"
    store.ingest()
    new = store.query("SELECT sweep FROM suites WHERE sweep = ? AND state = 'complete'", [sweep]).is_empty()
    if new:
        known = set(store.query("SELECT measurement FROM raw.measurements")["measurement"].to_list())
        run = {"sweep": sweep, "recipe": name, "model": model, "trial": 0, "seed": seed}
        store.append_many(_tables(run, measured, artifact, known))
        store.ingest()
    return Imported(
        name=name,
        model=model,
        sweep=sweep,
        tasks={m.one.task: m.samples.documents for m in measured},
        skipped=skipped,
        taken={m.one.task: m.one.run.path.name for m in measured},
        notes=tuple(notes),
        new=new,
    )


def _checked_name(name: str | None, model: str) -> str:
    if name is None:
        last = re.sub(r"[^A-Za-z0-9_.-]+", "-", re.split(r"[\\/]", model)[-1]).strip("-.")[:50]
        name = f"{last or 'lm-eval'}-lm-eval" if last in ("", "base") else last
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > 57:
        raise UserError(f"name {brief(name)}: expected letters, digits, _ . - and at most 57 of them")
    if name == "base":
        raise UserError("name 'base': stands for the untouched base model of our own sweeps; give another")
    return name


def _measure(one: TaskFile, allow_mismatch: bool, skipped: dict[str, str], notes: list[str]) -> _Measured | None:
    samples = read_samples(one, allow_mismatch=allow_mismatch)
    task = one.task
    if samples.whole:
        which = ", ".join(brief(key.removesuffix(",none")) for key in samples.whole)
        skipped[task] = f"{which}: no score for each document, only for the whole task"
    if one.runs > 1:
        notes.append(f"{task}: the latest of {one.runs} runs counts, {one.run.path.name}")
    if not samples.rows:
        return None
    if not samples.ours:
        notes.append(
            f"{task}: its documents do not fit their doc_hash (the task changes them); they go by that hash and pair "
            "with other imported runs only"
        )
    if samples.unchecked:
        which = ", ".join(brief(key.removesuffix(",none")) for key in samples.unchecked)
        notes.append(
            f"{task}: {which}: its figure in the results is no mean of the documents' scores, which are stored"
        )
    notes += [f"{task}: allowed: {text}" for text in samples.mismatches]
    settings: Row = {
        "from": "lm-eval",
        "of": _root(one),
        **run_settings(one.run.results),
        **task_settings(one.run.results, task),
        "repeats": samples.repeats,
        "documents": samples.documents,
        "documents_by": "ours" if samples.ours else "doc_hash",
        "unchecked": list(samples.unchecked),
        "mismatches": [str(scrubbed(text)) for text in samples.mismatches],
    }
    key = content_key("lm-eval samples", task=task, sha256=samples.digest, settings=settings)
    return _Measured(one, samples, key, settings)


def _root(one: TaskFile) -> str:
    """The outermost group that holds a task: what a suite would name. The task itself without one."""
    found = one.run.results.get("group_subtasks")
    groups = {g: c for g, c in found.items() if isinstance(c, list)} if isinstance(found, dict) else {}
    name, seen = one.task, {one.task}
    while (
        (above := next((g for g in sorted(groups) if name in groups[g]), None))
        and is_task_name(above)
        and above not in seen
    ):
        seen.add(above)
        name = above
    return name


def _tables(run: Row, measured: Sequence[_Measured], artifact: str, known: set[str]) -> dict[str, list[Row]]:
    at = environment().now()
    tables: dict[str, list[Row]] = {"environment_rows": [], "measurements": [], "samples": [], "measurement_links": []}
    environments: dict[str, Row] = {}
    seconds = {id(m.one.run): _seconds(m.one) for m in measured}
    for item in measured:
        facts = environment_facts(item.one.run.results)
        key = content_key("environment", **facts)
        environments[key] = {"environment": key, "json": json.dumps(facts, sort_keys=True)}
        link = {**run, "phase": "final", "artifact": artifact, "target": _TARGET, "measurement": item.key}
        tables["measurement_links"].append(link)
        if item.key in known:
            continue
        tables["measurements"].append(
            {
                "measurement": item.key,
                "artifact": artifact,
                "target": json.dumps(_numerics(item.one), sort_keys=True),
                "kind": "task",
                "task": item.one.task,
                "settings": json.dumps(item.settings, sort_keys=True),
                "data": _DATA,
                # The run's time, in equal parts: lm-eval does not tell how long a task took.
                "seconds": seconds[id(item.one.run)] / len(section(item.one.run, "configs")),
                "environment": key,
                "at": at,
            }
        )
        tables["samples"] += [{"measurement": item.key, **row} for row in item.samples.rows]
    tables["environment_rows"] = list(environments.values())
    event = {**run, "phase": "final", "state": "complete", "settings": "{}", "objectives": None, "artifact": artifact}
    tables["trial_events"] = [{**event, "reward_artifact": None, "seconds": sum(seconds.values()), "at": at}]
    tables["sweep_events"] = [_sweep_event(run, measured, next(iter(environments)), at)]
    return tables


def _seconds(one: TaskFile) -> float:
    told = one.run.results.get("total_evaluation_time_seconds")
    try:
        seconds = finite_number(float(told)) if isinstance(told, str) else finite_number(told)
    except ValueError:
        seconds = None
    return max(seconds or 0.0, 0.0)


def _numerics(one: TaskFile) -> Row:
    config = one.run.config
    found = {"device": config.get("device"), "dtype": config.get("model_dtype"), "backend": config.get("model")}
    numerics: Row = {name: str(scrubbed(value))[:60] for name, value in found.items() if isinstance(value, str)}
    if "dtype" in numerics:
        numerics["dtype"] = str(numerics["dtype"]).removeprefix("torch.")
    return {**numerics, "backend": f"lm-eval {numerics.get('backend', 'unknown')}"}


def _sweep_event(run: Row, measured: Sequence[_Measured], environment_key: str, at: object) -> Row:
    name, model = str(run["recipe"]), str(run["model"])
    suite = {
        "name": f"import-{name}",
        "question": f"What lm-eval measured of {model}.",
        "models": [model],
        "recipes": {name: []},
        "measure": {"tasks": {root: {} for root in sorted({str(m.settings["of"]) for m in measured})}},
        "targets": [{"name": _TARGET}],
        "seeds": [run["seed"]],
    }
    return {
        "sweep": run["sweep"],
        "suite": suite["name"],
        "question": suite["question"],
        "state": "complete",
        "yaml": "# Imported from results of lm-eval: no suite of ours.\n",
        "suite_json": json.dumps(suite),
        "plan_json": json.dumps({"imported": "lm-eval", "files": {m.one.task: m.samples.digest for m in measured}}),
        "data": _DATA,
        "environment": environment_key,
        "at": at,
    }
