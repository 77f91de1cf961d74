"""The browser of samples: what each recipe said to the same prompt, side by side, as data for `samples.js`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.objectives import main_metric
from harness.report._direction import direction
from harness.report._html import Html, join, json_script, tag
from harness.report._plot import empty
from harness.report._queries import Facts

if TYPE_CHECKING:
    import polars as pl

    from harness.store import Store

__all__ = ["Texts", "sample_browser"]

_LENGTHS = (4_000, 2_000, 1_000, 500, 250, 120)
_BYTES = 2_000_000
"""Of texts in the page at most: they are cut to the greatest of `_LENGTHS` that keeps them within it."""
_JUDGED = "helpfulness"
_KEYS = ("recipe", "model", "seed", "target", "task", "document")

# One seed's answers of each recipe; the final half only: nobody should look at tuning answers for the result.
_TEXTS = """
    WITH runs AS (
        SELECT DISTINCT recipe, model, seed, target, task, measurement FROM scores
        WHERE sweep = $sweep AND phase = 'final' AND split = 'final'
    ), wanted AS (
        SELECT unnest($tasks::VARCHAR[]) AS task, unnest($documents::VARCHAR[]) AS document
    )
    SELECT r.recipe, r.model, r.seed, r.target, s.task, s.document, min(s.response) AS response,
        min(s.expected) AS expected, min(s.prompt) AS prompt
    FROM runs r JOIN samples s USING (measurement, target, task) JOIN wanted USING (task, document)
    WHERE s.half = 'final' GROUP BY ALL
    UNION ALL
    SELECT r.recipe, r.model, r.seed, r.target, 'judge' AS task, j.document, min(j.response) AS response,
        NULL AS expected, min(j.prompt) AS prompt
    FROM runs r JOIN judgements j USING (measurement, target)
        JOIN wanted w ON w.task = 'judge' AND w.document = j.document
    WHERE r.task = 'judge' AND j.half = 'final' GROUP BY ALL
"""


@dataclass
class Texts:
    """Every text once, under its place: recipes often say the same, and tasks share prompts."""

    places: dict[str, int] = field(default_factory=dict)

    def place(self, text: object) -> int | None:
        """Where the text stands; None for none."""
        return None if text is None else self.places.setdefault(str(text), len(self.places))

    def cut(self, most: int = _BYTES) -> tuple[list[str], int | None]:
        """The texts, `most` bytes of them about, and to how many characters the longest were cut, if they were."""
        whole = list(self.places)
        for length in _LENGTHS:
            texts = [_cut(text, length) for text in whole]
            if length == _LENGTHS[-1] or sum(map(_size, texts)) <= most:
                break
        return texts, length if any(len(text) > length for text in whole) else None


def _cut(text: str, length: int) -> str:
    left = len(text) - length
    return text if left <= 0 else f"{text[:length]}… ({left:,} more characters are in the store)"


def _short(score: float | None) -> float | int | None:
    """The same number in fewer characters."""
    return int(score) if score is not None and score.is_integer() else score


def _size(text: str) -> int:
    """Bytes in the page, where `json_script` writes some characters as six."""
    return len(json.dumps(text)) + 5 * sum(map(text.count, "<>&"))


def _lead(group: str, metrics: Sequence[str]) -> str:
    """The metric by which the documents of a task are ordered and first filtered."""
    if group == "gold" and "gold_reward" in metrics:
        return "gold_reward"
    return _JUDGED if group == "judge" and _JUDGED in metrics else main_metric(metrics)


def _foremost(scores: "pl.DataFrame", share: int) -> "pl.DataFrame":
    """The documents (task, document) on which the recipes' scores are furthest apart."""
    import polars as pl

    spread = scores.group_by("task", "document").agg((pl.col("score").max() - pl.col("score").min()).alias("spread"))
    return spread.sort(["spread", "task", "document"], descending=[True, False, False]).head(share)


@dataclass(frozen=True)
class _Group:
    """The documents of one task of the suite that are shown, the first those on which the recipes differ most."""

    name: str
    metrics: list[str]
    binary: list[bool]
    documents: list[tuple[str, str]]
    total: int
    scores: dict[tuple[str, str], dict[str, tuple[int, dict[str, float]]]]
    """(task, document) → label → one seed, and its score by metric."""


def _group(facts: Facts, name: str, rows: "pl.DataFrame", share: int) -> _Group:
    import polars as pl

    lead = _lead(name, rows["metric"].unique().to_list())
    metrics = [lead, *sorted(set(rows["metric"]) - {lead})]
    ranges = {m: set(rows.filter(pl.col("metric") == m)["score"].unique()) for m in metrics}
    # By the answers that are shown, not by means over seeds: it is these that one filters.
    one = rows.filter(pl.col("seed") == pl.col("seed").min().over("label", "task", "document"))
    foremost = _foremost(one.filter(pl.col("metric") == lead), share)
    one = one.join(foremost, on=["task", "document"], how="semi")
    scores: dict[tuple[str, str], dict[str, tuple[int, dict[str, float]]]] = {}
    # As Python's rows, not a frame for each recipe: a hundred recipes are ten thousand small frames a page.
    for task, document, label, seed, metric, score in one.select(
        "task", "document", "label", "seed", "metric", "score"
    ).iter_rows():
        scores.setdefault((task, document), {}).setdefault(label, (seed, {}))[1][metric] = score
    return _Group(
        name,
        metrics,
        [ranges[m] <= {0.0, 1.0} for m in metrics],
        foremost.select("task", "document").rows(),
        rows.select("task", "document").n_unique(),
        scores,
    )


def _data(facts: Facts, groups: Sequence[_Group], said: "pl.DataFrame") -> tuple[dict[str, object], int | None]:
    """What `samples.js` reads, and to how many characters texts were cut."""
    names = {(c.recipe, c.model): c.label for c in facts.contenders}
    labels = [c.label for c in facts.contenders]
    texts = Texts()
    answers: dict[tuple[str, str, str, int], str | None] = {}
    asked: dict[tuple[str, str], tuple[str | None, str | None]] = {}
    for recipe, model, seed, task, document, response, expected, prompt in said.select(
        "recipe", "model", "seed", "task", "document", "response", "expected", "prompt"
    ).iter_rows():
        answers[task, document, names.get((recipe, model), recipe), seed] = response
        # Some answers may have been stored without their prompt.
        before = asked.get((task, document), (None, None))
        asked[task, document] = (before[0] or prompt, before[1] or expected)
    tasks = []
    for group in groups:
        documents = []
        for task, document in group.documents:
            prompt, expected = asked.get((task, document), (None, None))
            given = group.scores[task, document]
            documents.append(
                {
                    "id": document,
                    "task": task,
                    "prompt": texts.place(prompt),
                    "expected": texts.place(expected),
                    "answers": [
                        [
                            labels.index(who.label),
                            None if who.is_base else given[who.label][0],
                            texts.place(answers.get((task, document, who.label, given[who.label][0]))),
                            [_short(given[who.label][1].get(m)) for m in group.metrics],
                        ]
                        for who in facts.contenders
                        if who.label in given
                    ],
                }
            )
        metrics = [
            {"name": m, "binary": b, "better": direction(m)} for m, b in zip(group.metrics, group.binary, strict=True)
        ]
        tasks.append({"name": group.name, "metrics": metrics, "total": group.total, "documents": documents})
    shown, length = texts.cut()
    return {"who": labels, "texts": shown, "tasks": tasks}, length


def sample_browser(store: "Store", facts: Facts, limit: int) -> Html:
    """At most `limit` documents, shared evenly between the tasks; those on which the recipes differ most come first.

    Each has one seed's answer of each recipe, the first that has one, with its scores as numbers, by which `samples.js`
    filters: what two recipes got right and wrong, or which scored better.
    """
    import polars as pl

    own = {c.label: facts.target_of(c) for c in facts.contenders}
    # Each recipe as it is compared: on the common target, or where it does not run there on its own.
    rows = facts.documents.filter(
        pl.col("target") == pl.col("label").replace_strict(own, default=facts.target, return_dtype=pl.String)
    )
    if not facts.target or rows.is_empty():
        return empty(None, "No final run has stored a sample yet.")
    names = sorted(rows["group"].unique().to_list(), key=lambda t: (t != "gold", t != "judge", t))[:limit]
    share = max(1, limit // len(names))
    groups = [_group(facts, name, rows.filter(pl.col("group") == name), share) for name in names]
    chosen = [key for group in groups for key in group.documents]
    said = store.query(
        _TEXTS, {"sweep": facts.sweep, "tasks": [t for t, _ in chosen], "documents": [d for _, d in chosen]}
    )
    targets = pl.DataFrame(
        [{"recipe": c.recipe, "model": c.model, "target": own[c.label]} for c in facts.contenders],
        schema=dict.fromkeys(("recipe", "model", "target"), pl.String),
    )
    data, length = _data(facts, groups, said.join(targets, on=["recipe", "model", "target"], how="semi"))
    total = rows.select("task", "document").n_unique()
    cut = "" if length is None else f" Texts are cut to {length:,} characters."
    note = (
        f"{len(chosen):,} of {total:,} documents of the final half, on {facts.target}; those on which the recipes "
        f"differ most come first, so shares among them are not the recipes' scores.{cut} The store's view samples has "
        "all of them."
    )
    return join(tag("p", note, class_="lead"), _browser(), json_script("sample-data", data))


def _browser() -> Html:
    def select(label: str, name: str) -> Html:
        return tag("label", label, tag("select", id=f"sample-{name}", autocomplete="off"))

    return tag(
        "div",
        tag("noscript", tag("p", "Without scripts no sample is shown.", class_="empty")),
        tag(
            "div",
            select("Task", "task"),
            select("By", "metric"),
            select("A", "a"),
            tag("button", "⇄", id="sample-swap", type="button", title="Swap A and B", aria_label="Swap A and B"),
            select("B", "b"),
            select("Documents where", "pick"),
            tag("label", "Find in the texts", tag("input", type="search", id="sample-find", autocomplete="off")),
            class_="controls",
        ),
        tag(
            "div",
            select("Document", "document"),
            tag("button", "Previous", id="sample-previous", type="button", aria_keyshortcuts="k"),
            tag("button", "Next", id="sample-next", type="button", aria_keyshortcuts="j"),
            tag("span", id="sample-position", class_="count"),
            tag("span", "keys j, k", class_="count keys"),
            class_="controls",
        ),
        tag("p", id="sample-count", class_="count", role="status"),
        tag("div", id="sample-view", tabindex="0", role="group", aria_label="The document"),
        id="sample-browser",
    )
