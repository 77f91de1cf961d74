"""Contamination: test documents that the recipe's own training data hold, and whether the score rests on them.

Only what was trained on here can be looked at; what the base model saw before is unknown, and the same for every
recipe on it. An overlap of words is neither necessary for contamination (a paraphrase has none: Yang et al. 2023,
arXiv:2311.04850) nor harm by itself (Brown et al. 2020, section 4, found little): so the score is given with and
without.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.data import load_training_set
from harness.errors import UserError
from harness.gates._evidence import BASE, Asked, Evidence, settings_of
from harness.gates._ngrams import COVERED, WORDS, NgramIndex
from harness.gates._types import MATERIAL, Said, Unchecked
from harness.method import find_method
from harness.stats import interval, paired_difference
from harness.suite import Judge

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["contamination"]

_GATE = "contamination"
_COLUMNS = ("prompt", "completion", "chosen", "rejected", "text")
_ROWS = 1_000

_STAGES = "SELECT stage, method, params, inputs, dataset, dataset_fingerprint FROM stages"
_LINEAGE = """
    SELECT DISTINCT l.recipe, l.model, l.stage FROM lineage l JOIN trials t USING (sweep, recipe, model, trial, seed)
    WHERE l.sweep = $sweep AND t.phase = 'final' ORDER BY ALL
"""

Trained = tuple[str, str, str]
"""Dataset, kind and fingerprint of its rows ("" of those that a step names beside its own, which is not stored)."""


def contamination(evidence: Evidence) -> Iterator[Said]:
    """Flag tasks of whose documents rows that a recipe trained on hold 70 % of the 8-grams (`NgramIndex`).

    A warning; invalid where they are more than `MATERIAL` of the documents and the recipe gained more over the base
    model on them than on the others, by a difference whose 95 % interval (Welch's) excludes zero.
    """
    trained = _trained(evidence)
    if not any(trained.values()):
        return
    if evidence.source is None:
        yield Unchecked(
            _GATE, "", "", "", "no data source was given, from which training rows and documents would come"
        )
        return
    groups: dict[str, Mapping[str, Sequence[str]]] = {}
    for one in {a.task: a for a in evidence.asked if a.recipe != BASE}.values():
        parts = _parts(evidence, one)
        if isinstance(parts, str):
            yield Unchecked(_GATE, "", "", one.task, f"its documents cannot be read: {parts}")
        else:
            groups[one.task] = parts
    index = NgramIndex(groups)
    sets = dict.fromkeys(s for own in trained.values() for s in own)
    found = {one: _overlaps(evidence, index, one) for one in sets}
    for (recipe, model), own in trained.items():
        yield from (Unchecked(_GATE, recipe, model, "", why) for s in own if isinstance(why := found[s], str))
        for one in evidence.asked:
            if (one.recipe, one.model) == (recipe, model) and one.task in groups:
                hits = {s[0]: documents[one.task] for s in own if not isinstance(documents := found[s], str)}
                yield from _judge(evidence, one, index, hits)


def _trained(evidence: Evidence) -> dict[tuple[str, str], list[Trained]]:
    """(recipe, model) → what its policy, its reward models and their teachers were trained on."""
    stages = {str(row["stage"]): row for row in evidence.store.query(_STAGES).iter_rows(named=True)}
    found: dict[tuple[str, str], list[Trained]] = {}
    todo: dict[tuple[str, str], list[str]] = {}
    for recipe, model, stage in evidence.store.query(_LINEAGE, {"sweep": evidence.sweep}).iter_rows():
        todo.setdefault((str(recipe), str(model)), []).append(str(stage))
    for who, open_stages in todo.items():
        sets, passed = found.setdefault(who, []), set[str]()
        while open_stages:
            key = open_stages.pop()
            if key in passed or key not in stages:
                continue
            passed.add(key)
            stage = stages[key]
            open_stages += [str(k) for k in settings_of(stage["inputs"]).values() if k]
            if stage["dataset"] is not None:
                one = (str(stage["dataset"]), _kind(str(stage["method"])), str(stage["dataset_fingerprint"]))
                sets += [] if one in sets else [one]
            further = _further(str(stage["method"]), settings_of(stage["params"]))
            sets += [one for one in further if one not in sets and one[0] not in {s[0] for s in sets}]
        sets.sort()
    return found


def _further(method: str, params: Mapping[str, Any]) -> list[Trained]:
    try:
        return [(name, str(kind), "") for name, kind in find_method(method).datasets(params).items()]
    except UserError:
        return []


def _kind(method: str) -> str:
    try:
        return str(find_method(method).dataset_kind)
    except UserError:
        return ""


def _parts(evidence: Evidence, one: Asked) -> Mapping[str, Sequence[str]] | str:
    """`leaf/document` → the document's texts, for the documents that were measured; or why they cannot be had."""
    source = evidence.source
    given: Mapping[str, Any] = next(iter(one.settings.values()), {})
    measured = {(str(t), str(d)) for r in one.seeds.values() for t, d in r.select("leaf", "document").iter_rows()}
    texts: dict[str, list[str]] = {}
    if one.kind == "task":
        documents = evidence.documents(one)
        if isinstance(documents, str):
            return documents
        return {f"{t}/{d}": list(_strings(documents.by_identity[t][d])) for t, d in sorted(measured)}
    if source is None:
        return "no data source was given"
    try:
        if one.kind == "gold":
            from harness.measure.gold import gold_documents

            rows, _ = load_training_set(str(given.get("dataset")), "prompts", source, split="test")
            texts = {d.identity: [t["content"] for t in d.prompt] for d in gold_documents(rows, given.get("limit"))}
        elif one.kind == "domain":
            from harness.measure.domains import domain_documents

            rows, _ = load_training_set(str(given.get("dataset")), "instructions", source, split="test")
            held_out = domain_documents(rows, given.get("limit"))
            texts = {d.identity: [t["content"] for t in (*d.prompt, *d.completion)] for d in held_out}
        else:
            from harness.measure.judge import judge_prompts

            prompts = judge_prompts(source, Judge.model_validate(dict(given)))
            texts = {p.document: [*(t for _, t in p.chat), *filter(None, [p.follow_up])] for p in prompts}
    except UserError as error:
        return str(error)
    absent = [d for _, d in measured if d not in texts]
    if absent:
        return f"{len(absent)} of its {len(measured)} prompts are not in {source.name}"
    return {f"{t}/{d}": texts[d] for t, d in sorted(measured)}


def _strings(value: object) -> Iterator[str]:
    """Every text of a document, without the wording that a prompt's template adds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _overlaps(evidence: Evidence, index: NgramIndex, trained: Trained) -> dict[str, set[str]] | str:
    """Task → its documents that this training set holds something of, or why that cannot be told."""
    name, kind, fingerprint = trained
    if not kind or evidence.source is None:
        return f"the method that trained on {name} is not known here"
    try:
        rows, found = load_training_set(name, kind, evidence.source)  # type: ignore[arg-type]  # a method's declared kind
    except UserError as error:
        return str(error)
    if fingerprint and found != fingerprint:
        return (
            f"the rows of {name} in {evidence.source.name} are not those it was trained on (their fingerprint differs)"
        )
    return index.find(_texts(rows))


def _texts(rows: "Dataset") -> Iterator[list[str]]:
    """The texts of each row."""
    columns = [c for c in _COLUMNS if c in rows.column_names]
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        for values in zip(*(part[column] for column in columns), strict=True):
            turns = [[v] if isinstance(v, str) else [turn["content"] for turn in v] for v in values]
            yield [text for texts in turns for text in texts]


def _judge(evidence: Evidence, one: Asked, index: NgramIndex, hits: Mapping[str, set[str]]) -> Iterator[Said]:
    mine = one.table(one.metric)
    too_short = index.too_short[one.task] & mine.keys()
    if mine and len(too_short) == len(mine):
        yield one.unchecked(_GATE, f"its documents have fewer than {WORDS} words, which many texts share by chance")
        return
    dirty = set().union(*hits.values()) & mine.keys()
    if not dirty:
        return
    clean = mine.keys() - dirty
    n, share = len(mine), len(dirty) / len(mine)
    means = {d: math.fsum(v) / len(v) for d, v in mine.items()}
    score, rest = _mean(means, mine), _mean(means, clean)
    figures = {"overlapping": float(len(dirty)), "n": float(n), "score": score}
    said = [
        f"{len(dirty)} of {n} documents{evidence.on(one)} ({share:.0%}) are in the training data "
        f"({', '.join(sorted(k for k, v in hits.items() if v & mine.keys()))}): one row has {COVERED:.0%} of their "
        f"{WORDS}-grams.",
        f"{one.metric} is {score:.3f} on all, {rest:.3f} on the other {len(clean)}"
        if clean
        else f"{one.metric} {score:.3f}",
    ]
    if clean:
        figures["score_without"] = rest
    worse = False
    base = evidence.base_of(one)
    theirs = base.table(one.metric) if base is not None else {}
    if clean and mine.keys() <= theirs.keys():
        everywhere = paired_difference(mine, {d: theirs[d] for d in mine})
        others = paired_difference({d: mine[d] for d in clean}, {d: theirs[d] for d in clean})
        said[-1] += (
            f"; over the base model {everywhere.value:+.3f} [{everywhere.low:.3f}, {everywhere.high:.3f}] on all, "
            f"{others.value:+.3f} [{others.low:.3f}, {others.high:.3f}] on the others"
        )
        figures |= {"gain": everywhere.value, "gain_without": others.value}
        # A loss has gained where it is less.
        sign = -1.0 if one.kind == "domain" else 1.0
        gains = {d: sign * (means[d] - math.fsum(theirs[d]) / len(theirs[d])) for d in mine}
        worse = _more([gains[d] for d in sorted(dirty)], [gains[d] for d in sorted(clean)])
    if too_short:
        said[-1] += f" ({len(too_short)} documents are too short to be checked)"
        figures["too_short"] = float(len(too_short))
    said[-1] += "."
    said.append("Take these rows out of the training data, or go by the score without them.")
    severe = worse and share > MATERIAL
    yield one.flag(_GATE, "invalid" if severe else "warning", " ".join(said), figures)


def _mean(means: Mapping[str, float], documents: "set[str] | Mapping[str, object]") -> float:
    return math.fsum(means[d] for d in documents) / len(documents) if documents else math.nan


def _more(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the first mean is above the second by an interval that excludes zero (Welch 1947, Biometrika 34)."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

    if min(len(first), len(second)) < 2:
        return False
    a, b = interval(first), interval(second)
    parts = a.stderr**2, b.stderr**2
    if sum(parts) == 0:
        return False
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (a.n - 1) + parts[1] ** 2 / (b.n - 1))
    return a.value - b.value > float(stdtrit(freedom, 0.975)) * math.sqrt(sum(parts))
