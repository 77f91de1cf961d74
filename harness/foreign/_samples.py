"""One task's samples of a run: read, held against the run's own figures, and made into rows of the table `samples`."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness._documents import canonical_document, identities, metric_name
from harness.errors import UserError
from harness.foreign._documents import fits, identities_by_hash
from harness.foreign._figures import aggregations, figures_of
from harness.foreign._folder import TaskFile, config_of
from harness.foreign._reading import Line, Lines, brief, cut_off, finite_number
from harness.foreign._responses import answers, prompt_of, repeats_of

__all__ = ["Samples", "read_samples"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RESERVED = frozenset(
    {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"}
    | {"doc_hash", "prompt_hash", "target_hash"}
)
_TOLERANCE = 1e-6
"""Relative: what summing in another order, or in single precision, may change in a mean."""


@dataclass(frozen=True)
class Samples:
    """One task as it goes into the store.

    `rows` are those of the table `samples` but for the measurement's key. `whole` holds the metrics that have no score
    for each document, `unchecked` those whose figure in the results is no mean of their scores, and `mismatches` what
    does not fit and was allowed. `ours` says whether documents go by our ids; else by lm-eval's `doc_hash`.
    """

    task: str
    rows: Sequence[Mapping[str, object]]
    documents: int
    repeats: int
    digest: str
    ours: bool
    whole: Sequence[str]
    unchecked: Sequence[str]
    mismatches: Sequence[str]


@dataclass
class _Sample:
    place: str
    used: str
    doc_hash: str
    document: str
    fits: bool
    prompt: str
    prompt_hash: str
    response: str | None
    expected: str | None
    scores: dict[str, float | None]


@dataclass
class _Doubts:
    """What does not fit: refused at once, or where that is allowed kept, the first of each kind."""

    allowed: bool
    found: dict[str, str] = field(default_factory=dict)

    def raise_or_keep(self, kind: str, text: str) -> None:
        if not self.allowed:
            raise UserError(f"{text}; copy the folder again, or take it as it is (--allow-mismatch)")
        self.found.setdefault(kind, text)


def read_samples(one: TaskFile, *, allow_mismatch: bool = False) -> Samples:
    """Read the samples of a task and check them.

    Args:
        one: the task and the run that counts for it.
        allow_mismatch: take samples that do not fit their hashes or the run's figures; `mismatches` says which. What
            cannot be read, is there twice or is not a finite number is refused all the same.

    Raises:
        UserError: a line that is not what lm-eval writes; a document twice or missing; a score or log-likelihood that
            is NaN or infinite; samples that are not those of the results: another number of documents, changed texts,
            or scores whose mean is not the results' figure (to 1e-6, relative).
    """
    path = one.run.samples(one.task)
    figures = figures_of(one.run, one.task)
    doubts = _Doubts(allow_mismatch)
    lines = Lines(path)
    by_filter: dict[str, dict[int, _Sample]] = {}
    kind = str(config_of(one.run, one.task).get("output_type"))
    hashes = hashlib.sha256()
    repeats = 1
    for line in lines:
        number, sample = _sample(line, kind, doubts)
        known = by_filter.setdefault(sample.used, {})
        if number in known:
            raise UserError(
                f"{line.place}: doc_id {number} stands twice for the filter {brief(sample.used)}, first at "
                f"{known[number].place}; expected each document once"
            )
        known[number] = sample
        hashes.update("".join(line.text(f"{of}_hash") for of in ("doc", "prompt", "target")).encode())
        repeats = max(repeats, repeats_of(line))
    if not by_filter:
        raise UserError(f"{path}: the file is empty; expected a sample a line; copy the file again")
    _check_filters(by_filter)
    documents = len(next(iter(by_filter.values())))
    wanted = _effective(one)
    counts = [sum(name in s.scores for s in group.values()) for group, name in _metrics(by_filter)]
    if wanted is not None and max(counts, default=0) != wanted:
        raise cut_off(path, max(counts, default=0), wanted)
    task_hash = one.run.results.get("task_hashes")
    listed = task_hash.get(one.task) if isinstance(task_hash, Mapping) else None
    if listed is not None and listed != hashes.hexdigest():
        doubts.raise_or_keep("task_hash", f"{path}: not the samples that the results were made of (task_hashes)")
    whole, unchecked = _check_figures(one, by_filter, figures, doubts)
    rows, ours = _rows(one.task, by_filter, whole, doubts)
    return Samples(
        one.task, rows, documents, repeats, lines.digest, ours, whole, unchecked, list(doubts.found.values())
    )


def _sample(line: Line, kind: str, doubts: _Doubts) -> tuple[int, _Sample]:
    number = line.fields.get("doc_id")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise line.bad("doc_id", "the document's number, from 0")
    if "doc" not in line.fields:
        raise line.bad("doc", "the document")
    hashes = {name: line.text(name) for name in ("doc_hash", "prompt_hash", "target_hash")}
    for name, value in hashes.items():
        if not _SHA256.fullmatch(value):
            raise line.bad(name, "a sha256 in hex")
    prompt, target = prompt_of(line), line.text("target")
    for name, text in (("prompt", prompt), ("target", target)):
        if hashlib.sha256(text.encode()).hexdigest() != hashes[f"{name}_hash"]:
            doubts.raise_or_keep(name, f"{line.place}: the {name} is not the one that was evaluated ({name}_hash)")
    response, expected = answers(line, kind)
    document = line.fields["doc"]
    sample = _Sample(
        place=line.place,
        used=line.text("filter"),
        doc_hash=hashes["doc_hash"],
        document=canonical_document(document),
        fits=fits(document, hashes["doc_hash"]),
        prompt=prompt,
        prompt_hash=hashes["prompt_hash"][:16],
        response=response,
        expected=expected,
        scores=_scores(line),
    )
    return number, sample


def _scores(line: Line) -> dict[str, float | None]:
    """Metric → score; None where lm-eval keeps what only the whole task has a figure of."""
    names = line.fields.get("metrics")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise line.bad("metrics", "a list of names")
    found: dict[str, float | None] = {}
    for name in names:
        line.sound(name, "metrics")
        if name in _RESERVED or name not in line.fields:
            raise line.bad("metrics", "names of scores that stand in the same line")
        value = line.fields[name]
        if value is None or isinstance(value, list | dict):
            found[name] = None
            continue
        found[name] = finite_number(value)
        if found[name] is None:
            raise line.bad(name, "a finite number")
    return found


def _effective(one: TaskFile) -> int | None:
    """How many documents the results are over; None where an older lm-eval did not say."""
    counts = one.run.results.get("n-samples")
    mine = counts.get(one.task) if isinstance(counts, Mapping) else None
    count = mine.get("effective") if isinstance(mine, Mapping) else None
    return count if isinstance(count, int) else None


def _metrics(by_filter: Mapping[str, Mapping[int, _Sample]]) -> Iterable[tuple[Mapping[int, _Sample], str]]:
    for group in by_filter.values():
        for name in dict.fromkeys(n for s in group.values() for n in s.scores):
            yield group, name


def _check_filters(by_filter: Mapping[str, Mapping[int, _Sample]]) -> None:
    first, *others = by_filter
    for other in others:
        missing = by_filter[first].keys() ^ by_filter[other].keys()
        if missing:
            number = min(missing)
            place = (by_filter[first].get(number) or by_filter[other][number]).place
            raise UserError(
                f"{place}: doc_id {number} has a sample for one of the filters {brief(first)} and {brief(other)} only; "
                "expected one for each: cut off or edited; copy the file again"
            )
        for number, sample in by_filter[other].items():
            if sample.doc_hash != by_filter[first][number].doc_hash:
                raise UserError(
                    f"{sample.place}: doc_id {number} is another document at {by_filter[first][number].place}"
                )


def _check_figures(
    one: TaskFile,
    by_filter: Mapping[str, Mapping[int, _Sample]],
    figures: Mapping[str, Any],
    doubts: _Doubts,
) -> tuple[list[str], list[str]]:
    """Hold every mean against the results; the metrics without scores, and those whose figure is no mean."""
    whole, unchecked = [], []
    task, path = brief(one.task), one.run.path
    is_mean = aggregations(one.run, one.task, {name for _, name in _metrics(by_filter)})
    sampled = set()
    for used, group in by_filter.items():
        for name in dict.fromkeys(n for s in group.values() for n in s.scores):
            key = f"{name},{used}"
            sampled.add(key)
            scores = [s.scores[name] for s in group.values() if name in s.scores]
            values = [score for score in scores if score is not None]
            if len(values) < len(scores):
                whole.append(key)
                continue
            if not is_mean(name):
                unchecked.append(key)
                continue
            mean, listed = math.fsum(values) / len(values), finite_number(figures.get(key))
            if listed is None:
                got = brief(figures[key]) if key in figures else "nothing"
                raise UserError(f"{path}: results: {task}: {brief(key)}: expected a finite number, got {got}")
            if not math.isclose(mean, listed, rel_tol=_TOLERANCE, abs_tol=1e-12):
                doubts.raise_or_keep(
                    key,
                    f"{path}: {task}: {brief(key)} is {listed:.9g} in the results, but {mean:.9g} over its "
                    f"{len(values)} samples ({mean - listed:+.3g})",
                )
    if lost := sorted(key for key in figures if "_stderr," not in key and key not in sampled):
        doubts.raise_or_keep("lost", f"{path}: results: {task}: {brief(lost[0])} has no samples")
    return whole, unchecked


def _rows(
    task: str, by_filter: Mapping[str, Mapping[int, _Sample]], whole: Sequence[str], doubts: _Doubts
) -> tuple[list[dict[str, object]], bool]:
    order = sorted(next(iter(by_filter.values())))
    samples = [group[number] for group in by_filter.values() for number in order]
    ours = all(s.fits for s in samples)
    if not ours and any(s.fits for s in samples):
        place = next(s.place for s in samples if not s.fits)
        doubts.raise_or_keep("document", f"{place}: the document is not the one that was evaluated (doc_hash)")
    first = [next(iter(by_filter.values()))[number] for number in order]
    named = identities(task, [s.document for s in first]) if ours else identities_by_hash([s.doc_hash for s in first])
    ids = dict(zip(order, named, strict=True))
    rows: list[dict[str, object]] = []
    for number in order:
        for used, group in by_filter.items():
            sample = group[number]
            rows += [
                {
                    "document": ids[number],
                    "half": "final",
                    "prompt_hash": sample.prompt_hash,
                    "metric": metric_name(name, used, by_filter),
                    "score": score,
                    "response": sample.response,
                    "expected": sample.expected,
                    "prompt": sample.prompt,
                }
                for name, score in sample.scores.items()
                if score is not None and f"{name},{used}" not in whole
            ]
    return rows, ours
