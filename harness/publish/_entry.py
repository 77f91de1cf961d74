"""An entry's page: its figures, what it took, how to repeat it, where it came from, what failed, and some samples."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.publish._aggregates import PEOPLE, PROFILE
from harness.publish._board import Board
from harness.publish._cards import Card
from harness.publish._formats import downloads
from harness.publish._frame import as_float, interval, judge_words, places, verdict
from harness.publish._lm_eval import lm_eval_paths
from harness.report._document import document, navigation, part
from harness.report._html import Html, Table, join, number, table, tag
from harness.report._plot import empty
from harness.report._words import duration

if TYPE_CHECKING:
    import polars as pl

__all__ = ["entry_page"]

_SAMPLES = 3
"""Documents of each task that are shown; all are in `data/samples.parquet`."""
_TEXT = 4_000
_KEY = 12


def entry_page(board: Board, key: str, made: str) -> str:
    """The page `entries/<key>.html`."""
    card, rows, samples = board.cards[key], board.rows_of(key), board.samples[key].frame()
    others = [k for keys in board.conflicts if key in keys for k in keys if k != key]
    parts = [
        _conflict(board, others),
        part("scores", "Scores", None, _scores(rows), _judges(card, rows), _differences(board, rows)),
        part("people", "What people say", None, _people(rows)),
        part("budget", "What it took", None, _budget(card), _settings(card)),
        part("profile", "Latency and memory", None, _profile(rows)),
        part("repeat", "Repeat it", None, *_repeat(card)),
        part("samples", "Samples", None, *_samples(samples)),
        part("downloads", "Downloads", None, *_downloads(card, key, rows, samples)),
        part("provenance", "Provenance", None, *_provenance(card)),
        part("failures", "Failures", None, *_failures(card)),
    ]
    links = [
        ("scores", "Scores"),
        ("people", "What people say"),
        ("budget", "What it took"),
        ("profile", "Latency and memory"),
        ("repeat", "Repeat it"),
        ("samples", "Samples"),
        ("downloads", "Downloads"),
        ("provenance", "Provenance"),
        ("failures", "Failures"),
    ]
    top = [
        tag("p", tag("a", "← The board", href="../index.html"), class_="suite"),
        tag("h1", card.label),
        tag("p", f"{card.method}, on target {card.target}; sweep {card.sweep}, {card.state}.", class_="suite"),
        navigation(links),
    ]
    foot = f"Entry {key}, made {made}. This file loads nothing."
    title = f"{card.label} on {card.target}"
    shown = [p for p in parts if p is not None]
    return "<!doctype html>\n" + document(title, top, shown, Html(""), foot, drawings=False)


def _conflict(board: Board, others: list[str]) -> Html | None:
    if not others:
        return None
    links = [tag("li", tag("a", f"{board.cards[k].label} ({k})", href=f"{k}.html")) for k in others]
    lead = "Another export has other scores of the same sweep, recipe, base model and target:"
    return part("conflict", "In conflict", lead, tag("ul", *links))


def _scores(rows: list[dict[str, object]]) -> Html:
    better = {"higher": "more is better", "lower": "less is better"}
    lines: list[list[object]] = [
        [r["task"], r["metric"], interval(r), places(r), r["n"], r["seeds"], better.get(str(r["better"]), "–")]
        for r in rows
        if r["task"] not in (PEOPLE, PROFILE)
    ]
    headers = ["task", "metric", "value, 95 %", "rank, 95 %", "documents", "seeds", ""]
    return table(Table(headers, lines, "Means over documents that tuning never saw, and over all seeds."))


def _judges(card: Card, rows: list[dict[str, object]]) -> Html | None:
    if not card.judges or not any(r["task"] == "judge" for r in rows):
        return None
    lead = "The task judge is what these judges say. How good they are known to be was measured by the sweep:"
    return join(
        tag("p", lead, class_="fine"), tag("ul", *(tag("li", judge_words(j)) for j in card.judges), class_="fine")
    )


def _people(rows: list[dict[str, object]]) -> Html:
    lines: list[list[object]] = [[r["metric"], interval(r), r["n"], r["raters"]] for r in rows if r["task"] == PEOPLE]
    if not lines:
        return empty(None, "Nobody has rated its answers.")
    note = (
        "Means on a scale from 1 to 7, and the share of prompts on which its answer is preferred, ties half; intervals "
        "over other prompts and other raters. Who failed an attention check is in no figure. The single marks, by "
        "numbers in place of names, are in data/samples.parquet."
    )
    found = table(Table(["criterion", "mean, 95 %", "prompts", "raters"], lines))
    return join(found, tag("p", note, class_="fine"))


def _differences(board: Board, rows: list[dict[str, object]]) -> Html:
    title = "Against its base model"
    lines: list[list[object]] = []
    for row in rows:
        if row["difference"] is not None:
            found = interval(row, "difference", "difference_low", "difference_high")
            p = "–" if row["adjusted_p"] is None else f"{as_float(row['adjusted_p']):.3g}"
            lines.append([row["task"], row["metric"], found, verdict(row), p, row["difference_n"]])
    if not lines:
        base = all(not board.cards[str(r["entry"])].steps for r in rows)
        why = "This is the base model." if base else "The base model has no scores of the same documents here."
        return empty(title, why)
    headers = ["task", "metric", "difference, 95 %", "verdict", "Holm p", "documents"]
    caption = "Paired by document; Holm's correction is over the figures of this entry."
    base_key = next(str(r["base"]) for r in rows if r["base"] is not None)
    link = tag("p", tag("a", "The base model's entry", href=f"{base_key}.html"))
    return join(tag("h3", title), table(Table(headers, lines, caption)), link)


def _counted(states: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in states.items()) or "none"


def _budget(card: Card) -> Html:
    spent = card.budget
    lines: list[list[object]] = [
        ["tuning trials", _counted(spent.tuning_trials)],
        ["final runs", _counted(spent.final_runs)],
        ["training", duration(spent.training_seconds)],
        ["measuring", duration(spent.measuring_seconds)],
        ["runs that failed", duration(spent.failed_seconds)],
        ["all of it, seconds of workers", number(spent.device_seconds)],
        ["peak memory of training, MiB", None if spent.peak_mb is None else number(spent.peak_mb)],
    ]
    caption = (
        "The recipe on this base model, tuning and final runs on all targets. What was computed once and used several "
        "times counts once here, and again in every other entry that uses it."
    )
    return table(Table(["", ""], lines, caption))


def _settings(card: Card) -> Html:
    if not card.settings:
        return empty("Chosen settings", "Nothing was searched.")
    lines: list[list[object]] = [
        [name, tag("code", json.dumps(value))] for name, value in sorted(card.settings.items())
    ]
    title = "Chosen settings" if card.chosen_trial is None else f"Chosen settings, trial {card.chosen_trial}"
    return join(tag("h3", title), table(Table(["setting", "value"], lines)))


def _profile(rows: list[dict[str, object]]) -> Html:
    lines: list[list[object]] = [[r["metric"], interval(r), r["n"]] for r in rows if r["task"] == PROFILE]
    if not lines:
        return empty(None, "It was not profiled on this target.")
    caption = "Median, with the least and the most of the repeats, on the machine named below."
    return table(Table(["what", "value", "repeats"], lines, caption))


def _repeat(card: Card) -> list[Html]:
    note = (
        tag(
            "p", tag("strong", "The suite is not printed letter by letter: "), "paths, names or secrets were taken out."
        )
        if card.scrubbed
        else None
    )
    found = [
        tag("p", "Save the suite below as ", tag("code", f"{card.suite}.yaml"), " and run"),
        _box(card.command),
        note,
        tag("ul", *(tag("li", n) for n in card.notes)) if card.notes else None,
        tag("details", tag("summary", "The suite"), _box(card.yaml), open=True),
    ]
    return [f for f in found if f is not None]


def _box(text: str) -> Html:
    return tag("div", tag("pre", text), class_="box", tabindex="0")


def _samples(samples: "pl.DataFrame") -> list[Html]:
    import polars as pl

    shown = samples.filter(~pl.col("task").is_in([PEOPLE, PROFILE]))
    if shown.is_empty():
        return [empty(None, "There are none.")]
    found: list[Html] = []
    for (task,), part_ in shown.group_by("task", maintain_order=True):
        first = part_.filter(pl.col("seed") == pl.col("seed").min())
        # Documents are hashes: the first by name are a random few, chosen by no score.
        for document_ in first["document"].unique().sort().to_list()[:_SAMPLES]:
            rows = first.filter(pl.col("document") == document_)
            scores = [tag("span", f"{m} {number(s)}", class_="chip") for m, s in rows.select("metric", "score").rows()]
            texts = [next((t for t in rows[c] if t is not None), None) for c in ("prompt", "response")]
            blocks = [
                tag("section", tag("h4", title), tag("pre", _cut(text)), class_="sample-block")
                for title, text in zip(("Prompt", "Response"), texts, strict=True)
                if text is not None
            ]
            none = None if blocks else tag("p", "No text was published.", class_="fine")
            seed = first["seed"][0]
            head = tag("summary", f"{task}, {document_}, seed {seed} ", *scores)
            found.append(tag("details", head, *blocks, none))
    lead = f"The first {_SAMPLES} documents of each task by their hash, whatever they scored; the downloads have all."
    return [tag("p", lead, class_="lead"), *found]


def _downloads(card: Card, key: str, rows: list[dict[str, object]], samples: "pl.DataFrame") -> list[Html]:
    items = [
        tag("li", tag("a", name.rpartition("/")[2], href=f"../{name}", download=True), f": {what}")
        for name, what in downloads(card, key, rows)
    ]
    # With its folder, the seed's: the files of all seeds have the same names.
    more = [
        tag("li", tag("a", "/".join(name.split("/")[-2:]), href=f"../{name}", download=True))
        for name in lm_eval_paths(card, key, samples)
    ]
    lead = "The same figures and samples for what reads other formats; the board has its own, with all entries."
    summary = tag("summary", f"Results as lm-eval writes them, a folder for each seed ({len(more)} files)")
    return [
        tag("p", lead, class_="lead"),
        tag("ul", *items),
        *([tag("details", summary, tag("ul", *more))] if more else []),
    ]


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}… ({len(text) - _TEXT:,} more characters in the downloads)"


def _flat(value: object, prefix: str = "") -> list[list[object]]:
    if isinstance(value, dict):
        return [line for k, v in value.items() for line in _flat(v, f"{prefix} {k}".strip())]
    return [[prefix, "unknown" if value is None else str(value)]]


def _provenance(card: Card) -> list[Html]:
    names: list[list[object]] = [
        ["sweep", card.sweep],
        ["recorded", f"{card.recorded_at} UTC"],
        ["data", card.data],
        ["digest of the scores", tag("code", card.digest)],
    ]
    names += [[f"artifact, seed {seed}", tag("code", key)] for seed, key in card.artifacts.items()]
    names += [[f"measurement, {task}", tag("code", key)] for task, key in card.measurements]
    machines = [
        tag("details", tag("summary", f"Environment {key[:_KEY]}"), table(Table(["", ""], _flat(facts))), open=True)
        for key, facts in card.environment
    ]
    return [table(Table(["", ""], names)), tag("h3", "Environments"), *machines, tag("h3", "Stages"), _stages(card)]


def _stages(card: Card) -> Html:
    if not card.stages:
        return tag("p", "None: nothing was trained.", class_="empty")
    lines: list[list[object]] = []
    for stage in card.stages:
        inputs = ", ".join(f"{role} {key[:_KEY]}" for role, key in stage.inputs.items() if key)
        dataset = " ".join(p for p in (stage.dataset, (stage.fingerprint or "")[:_KEY]) if p)
        settings = tag("details", tag("summary", "settings"), tag("code", stage.params))
        lines.append(
            [
                tag("code", stage.key[:_KEY], title=stage.key),
                f"{stage.method} v{stage.version}",
                stage.seed,
                dataset or None,
                inputs,
                stage.precision,
                stage.seconds,
                stage.peak_mb,
                settings,
            ]
        )
    headers = ["key", "method", "seed", "dataset", "inputs", "precision", "seconds", "peak MiB", ""]
    return table(Table(headers, lines, "Of the final runs."))


def _failures(card: Card) -> list[Html]:
    if not card.failures:
        return [tag("p", "None was recorded.", class_="empty")]
    return [
        tag(
            "details",
            tag("summary", f"{f.kind}: trial {f.trial}, seed {f.seed}: {f.message}"),
            tag("p", "Run alone: ", tag("code", f.command), class_="fine") if f.command else None,
            _box(f.traceback or "no traceback"),
        )
        for f in card.failures
    ]
