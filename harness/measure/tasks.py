"""Benchmark tasks through lm-eval: its own definitions, documents from any source, a row per document and metric."""

import contextlib
import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from harness._documents import canonical_document, identities, metric_name
from harness.data import DataSource, Half, half_of
from harness.errors import MeasurementError, UserError
from harness.measure._again import PARTS, fewer, pass_tokens
from harness.measure._index import (
    available_tasks,
    leaf_tasks,
    listing,
    source_problem,
    task_manager,
)
from harness.measure._parts import PartedTask, restrict
from harness.measure._requests import Requests, fewshot_of
from harness.method import LoadedModel
from harness.rungs import split

__all__ = [
    "LeafTask",
    "TaskSettings",
    "available_tasks",
    "leaf_tasks",
    "load_tasks",
    "measure_tasks",
    "task_datasets",
    "task_fingerprint",
    "task_problem",
]

Scorer = Literal["prefix-tree", "hf"]
Row = dict[str, object]

_FEWSHOT_SEED = 1234
"""lm-eval's own default, fixed here: which examples a prompt shows is part of the measurement."""


class TaskSettings(Protocol):
    """What a suite says of a task; None leaves lm-eval's own value. `limit` counts documents of each leaf task."""

    @property
    def num_fewshot(self) -> int | None: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def max_gen_toks(self) -> int | None: ...


@dataclass(frozen=True)
class LeafTask:
    """A loaded task and the documents within its limit, with each one's identity and half."""

    name: str
    task: Any
    documents: Sequence[Mapping[str, object]]
    identities: Sequence[str]
    halves: Sequence[Half]

    def fingerprint(self) -> dict[str, object]:
        """What decides its scores beside the model: version, documents, prompts. Ready for a content key."""
        config = self.task.config
        shots = config.num_fewshot or 0
        shown = [canonical_document(d) for d in self.task.fewshot_docs() or []] if shots else []
        return {
            "version": str(self.task.VERSION),
            "lm_eval": importlib.metadata.version("lm_eval"),
            "documents": _digest("\n".join(self.identities)),
            "n": len(self.documents),
            "num_fewshot": shots,
            "fewshot": _digest("\n".join(shown)),
            "generation": canonical_document(config.generation_kwargs or {}),
        }


def _digest(text: str, length: int = 32) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def task_problem(source: DataSource, task: str, settings: TaskSettings | None = None) -> str | None:
    """Why this task cannot be measured with these documents, or None. Needs no model; reads no documents."""
    if problem := source.problem():
        return problem
    try:
        leaves = leaf_tasks(task)
    except UserError as error:
        return str(error)
    known = listing().leaves
    if settings is not None and settings.num_fewshot:
        fixed = [n for n in leaves if known[n].num_fewshot == 0]
        if fixed:
            return f"lm-eval fixes num_fewshot at 0 for {fixed[0]}: leave num_fewshot out"
    if settings is not None and settings.max_gen_toks is not None:
        scored = [n for n in leaves if known[n].output not in (None, "generate_until")]
        if scored:
            return f"{scored[0]} generates nothing, so max_gen_toks has no meaning for it: leave it out"
    rolling = [n for n in leaves if known[n].output == "loglikelihood_rolling"]
    if rolling:
        return f"{rolling[0]} is a perplexity over whole texts, with no score for each document"
    return source_problem(source, task)


def task_datasets(task: str) -> list[str]:
    """The datasets whose documents the task reads, as the hub names them."""
    known = listing().leaves
    return list(dict.fromkeys(path for name in leaf_tasks(task) if (path := known[name].path)))


def load_tasks(source: DataSource, tasks: Mapping[str, TaskSettings]) -> dict[str, list[LeafTask]]:
    """Load tasks and their documents. Changes the current folder meanwhile: main thread only.

    Returns:
        The leaf tasks of each asked name (a group such as `mmlu` has many), limited per leaf.

    Raises:
        UserError: the source lacks documents, a setting does not fit, or two names share a task.
    """
    found: dict[str, list[LeafTask]] = {}
    owner: dict[str, str] = {}
    for name, settings in tasks.items():
        if problem := task_problem(source, name, settings):
            raise UserError(f"task {name!r}: {problem}")
        for leaf in leaf_tasks(name):
            if owner.setdefault(leaf, name) != name:
                raise UserError(f"the tasks {owner[leaf]!r} and {name!r} both hold {leaf!r}: name only one of them")
        try:
            with source.as_hub(), _no_bars():
                loaded = task_manager([name]).load([name])["tasks"]
        except Exception as error:
            # The readers of a dozen formats, and lm-eval's own code over their rows, raise whatever they raise.
            why = source.why(error, *task_datasets(name))
            lacking = "; the task reads a column that they lack" if type(error).__name__ == "UndefinedError" else ""
            raise UserError(
                f"task {name!r}: its documents in {source.name} cannot be loaded: {why}{lacking}"
            ) from error
        found[name] = [_prepare(leaf, task, settings) for leaf, task in loaded.items()]
        for prepared in found[name]:
            _check_first(prepared, source)
    return found


@contextlib.contextmanager
def _no_bars() -> Any:  # noqa: ANN401 (a context manager)
    import datasets

    before = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if before:
            datasets.enable_progress_bars()


def _prepare(name: str, task: Any, settings: TaskSettings) -> LeafTask:  # noqa: ANN401 (lm-eval's Task)
    if settings.num_fewshot is not None:
        task.set_config("num_fewshot", settings.num_fewshot)
    elif task.config.num_fewshot is None:
        task.set_config("num_fewshot", 0)
    if settings.max_gen_toks is not None:
        task.set_config("generation_kwargs", {"max_gen_toks": settings.max_gen_toks}, update=True)
    shots = task.config.num_fewshot
    if shots and shots > len(task.fewshot_docs() or []):
        has = len(task.fewshot_docs() or [])
        raise UserError(f"task {name!r}: num_fewshot={shots}, but its few-shot split has {has} documents")
    docs = task.eval_docs
    count = len(docs) if settings.limit is None else min(settings.limit, len(docs))
    documents = [dict(docs[i]) for i in range(count)]
    texts = [canonical_document(d) for d in documents]
    return LeafTask(name, task, documents, identities(name, texts), [half_of(t) for t in texts])


def _check_first(leaf: LeafTask, source: DataSource) -> None:
    """Make the first document's prompt, as a column that is not there shows only then."""
    if not leaf.documents:
        raise UserError(f"task {leaf.name!r}: its documents in {source.name} are none; expected one at least")
    try:
        leaf.task.doc_to_text(dict(leaf.documents[0]))
        leaf.task.doc_to_target(dict(leaf.documents[0]))
    except Exception as error:
        columns = ", ".join(leaf.documents[0])
        raise UserError(
            f"task {leaf.name!r}: its documents in {source.name} have not the columns it reads, but {columns} "
            f"({type(error).__name__}: {error})"
        ) from error


def task_fingerprint(source: DataSource, task: str, settings: TaskSettings) -> dict[str, dict[str, object]]:
    """For each leaf task, what decides its scores beside the model (see `LeafTask.fingerprint`); needs no model."""
    return {leaf.name: leaf.fingerprint() for leaf in load_tasks(source, {task: settings})[task]}


def measure_tasks(
    loaded: LoadedModel,
    source: DataSource,
    tasks: Mapping[str, TaskSettings],
    halves: Iterable[Half],
    scorer: Scorer = "prefix-tree",
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
    at: Sequence[float] = (),
    look: Callable[[int, Mapping[str, Sequence[Row]]], None] | None = None,
    repeat: int = 0,
    record: Callable[[str, Requests], None] | None = None,
) -> dict[str, list[Row]]:
    """Score a model on tasks: only documents of these halves are shown to it.

    Args:
        scorer: `prefix-tree`, or lm-eval's own `hf` (8 rows a batch unless `batch_size` says otherwise).
        batch_size: rows a batch, for `hf` only.
        progress: called with (requests done, requests in all) as the work proceeds (`hf`: at its end).
        note: called with the reason where `prefix-tree` cannot share tokens for this model and scores plain batches.
        at: rising fractions of the documents of each leaf. They are scored in as many parts and the rest
            (`harness.rungs.split`), each document with the prompt it has in any case.
        look: called after each of these parts with its number, from 0, and all rows so far; what it raises ends the
            scoring.
        repeat: number of the repeat, for the noise floor: other than 0, documents meet in other batches, and sampled
            answers are drawn with other random numbers. Prompts stay as they are.
        record: called at the end with each scored leaf task and what there is to know of its requests.

    Returns:
        For each leaf task, rows of the table `samples` without the measurement's key: document, half, prompt_hash,
        metric, score, response, expected, prompt. A leaf without documents in these halves has none.

    Raises:
        UserError: see `load_tasks`.
        MeasurementError: a score or log-likelihood is NaN or infinite, or a task scores no single documents.
    """
    import lm_eval.evaluator

    at = at or (PARTS if repeat else ())
    wanted = set(halves)
    leaves = [leaf for group in load_tasks(source, tasks).values() for leaf in group]
    chosen = {leaf.name: [i for i, h in enumerate(leaf.halves) if h in wanted] for leaf in leaves}
    active = [leaf for leaf in leaves if chosen[leaf.name]]
    parted: dict[str, PartedTask] = {}
    for leaf in active:
        documents = [leaf.documents[i] for i in chosen[leaf.name]]
        restrict(leaf.task, documents)
        leaf.task.set_fewshot_seed(_FEWSHOT_SEED)
        if at:
            parted[leaf.name] = PartedTask(leaf.task, documents)
    rows: dict[str, list[Row]] = {leaf.name: [] for leaf in leaves}
    if not active:
        return rows
    lm = _scorer(loaded, scorer, batch_size, progress, repeat)
    if note is not None and scorer == "prefix-tree" and lm.engine.fallback:
        note(lm.engine.fallback)
    choices: dict[str, dict[str, int]] = {leaf.name: {} for leaf in active}
    parts = {leaf.name: split([leaf.identities[i] for i in chosen[leaf.name]], at) for leaf in active}
    for number in range(len(at) + 1):
        now = [leaf for leaf in active if parts[leaf.name][number]]
        for leaf in now:
            if at:
                parted[leaf.name].take(parts[leaf.name][number])
        if now:
            with _no_bars():
                results = lm_eval.evaluator.evaluate(
                    lm, {"tasks": {leaf.name: leaf.task for leaf in now}}, bootstrap_iters=0, log_samples=True
                )
        for leaf in now:
            places = [chosen[leaf.name][i] for i in parts[leaf.name][number]]
            rows[leaf.name] += _rows(leaf, places, results["samples"][leaf.name])
            choices[leaf.name] |= _choices(leaf, places, results["samples"][leaf.name])
        if look is not None and number < len(at):
            look(number, rows)
    if at:
        place = {identity: i for leaf in active for i, identity in enumerate(leaf.identities)}
        rows = {name: sorted(found, key=lambda row: place[str(row["document"])]) for name, found in rows.items()}
    _tell(record, active, lm.counts, choices)
    if progress is not None and scorer == "hf":
        total = sum(len(r) for r in rows.values())
        progress(total, total)
    return rows


def _scorer(
    loaded: LoadedModel,
    scorer: Scorer,
    batch_size: int | None,
    progress: Callable[[int, int], None] | None,
    repeat: int,
) -> Any:  # noqa: ANN401 (lm-eval's LM)
    from harness.measure.scoring import CountedHFLM, PrefixTreeLM

    if repeat:
        import torch

        # What lm-eval's own generation draws, it draws from here.
        torch.manual_seed(repeat)
    if scorer == "hf":
        size = fewer(batch_size or 8) if repeat else batch_size or 8
        return CountedHFLM(loaded.model, tokenizer=loaded.tokenizer, batch_size=size, logits_cache=False)
    lm = PrefixTreeLM(loaded.model, pass_tokens(loaded.model, repeat), tokenizer=loaded.tokenizer)
    lm.progress, lm.seed = progress, repeat
    return lm


def _tell(
    record: Callable[[str, Requests], None] | None,
    leaves: Sequence[LeafTask],
    counted: Mapping[str, Requests],
    choices: Mapping[str, Mapping[str, int]],
) -> None:
    """Pass on what was counted for each leaf, with its examples and choices."""
    if record is None:
        return
    for leaf in leaves:
        requests = counted[leaf.name]
        requests.shown(fewshot_of(leaf.task, leaf.task.config.num_fewshot or 0))
        requests.chose(choices[leaf.name])
        record(leaf.name, requests)


def _choices(leaf: LeafTask, chosen: Sequence[int], samples: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Document → how many choices the model had; nothing for a task without."""
    if leaf.task.OUTPUT_TYPE != "multiple_choice":
        return {}
    # By mutual information each choice is asked for a second time, without the question.
    asked = 2 if "acc_mutual_info" in getattr(leaf.task, "_metric_fn_list", ()) else 1
    return {leaf.identities[chosen[s["doc_id"]]]: len(s["resps"]) // asked for s in samples}


def _rows(leaf: LeafTask, chosen: Sequence[int], samples: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    filters = {str(s["filter"]) for s in samples}
    for sample in samples:
        _check_responses(leaf.name, sample["resps"])
        place = chosen[sample["doc_id"]]
        prompt = str(sample["arguments"][0][0])
        response, expected = _answers(leaf.task, sample)
        for metric in sample["metrics"]:
            value = sample[metric]
            if isinstance(value, tuple | list):
                continue
            score = float(value)
            name = metric_name(metric, str(sample["filter"]), filters)
            if not math.isfinite(score):
                raise MeasurementError(f"{leaf.name}: {name} is {score} for the document {leaf.identities[place]}")
            rows.append(
                {
                    "document": leaf.identities[place],
                    "half": leaf.halves[place],
                    "prompt_hash": _digest(prompt, 16),
                    "metric": name,
                    "score": score,
                    "response": response,
                    "expected": expected,
                    "prompt": prompt,
                }
            )
    if not rows:
        metrics = sorted({m for s in samples for m in s["metrics"]})
        raise MeasurementError(f"{leaf.name}: {', '.join(metrics)} has no score for each document")
    return rows


def _check_responses(task: str, responses: Sequence[Sequence[Any]]) -> None:
    # lm-eval takes a NaN for the best choice, so that a broken model answers every "first is right" task correctly.
    for request in responses:
        for one in request:
            value = one[0] if isinstance(one, tuple | list) else one
            if isinstance(value, float) and not math.isfinite(value):
                raise MeasurementError(f"{task}: a log-likelihood is {value}: the model's weights are broken")


def _answers(task: Any, sample: Mapping[str, Any]) -> tuple[str | None, str | None]:  # noqa: ANN401 (lm-eval's Task)
    target = sample["target"]
    first = sample["resps"][0][0]
    if isinstance(first, str):
        return first, str(target)
    if task.OUTPUT_TYPE != "multiple_choice":
        return None, str(target)
    choices = [str(arguments[1]) for arguments in sample["arguments"]]
    if len(set(choices)) == 1:
        choices = [str(arguments[0]) for arguments in sample["arguments"]]
    values = [request[0][0] for request in sample["resps"]]
    best = choices[values.index(max(values))].strip()
    if isinstance(target, int) and 0 <= target < len(choices):
        return best, choices[target].strip()
    return best, str(target)
