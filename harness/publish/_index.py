"""The index: every entry on a chosen task with its interval and its ranks, filters, and quality against cost."""

from collections.abc import Iterable, Mapping, Sequence

from harness.publish._aggregates import PROFILE
from harness.publish._board import Board
from harness.publish._frame import as_float, board_script, figure_name, interval, places, verdict
from harness.publish._tradeoff import tradeoff
from harness.report._document import document, navigation, part
from harness.report._html import Html, Table, join, json_script, number, table, tag
from harness.report._plot import Figure, checked, render

__all__ = ["index"]

_Row = dict[str, object]
_HEADERS = (
    "entry",
    "rank, 95 %",
    "value, 95 %",
    "against its base model",
    "target",
    "latency, ms",
    "memory, MiB",
    "documents",
    "seeds",
    "task",
)


def index(board: Board, made: str) -> str:
    """The page `index.html`."""
    figure = tradeoff(board)
    drawn = isinstance(figure, Figure)
    links = [("board-part", "Board"), ("cost", "Quality against cost"), ("data", "Downloads")]
    parts = [
        part("board-part", "The board", None, _filters(board), _table(board), _explained()),
        _conflicts(board),
        part(
            "cost",
            "Quality against cost",
            None,
            render(figure, heading=False) if isinstance(figure, Figure) else figure,
        ),
        part("data", "Downloads, and how to check them", None, *_data(board)),
    ]
    suites = sorted({c.suite for c in board.cards.values()})
    shown = ", ".join(suites[:4]) + (f" and {len(suites) - 4} more" if len(suites) > 4 else "")
    questions = list(dict.fromkeys(c.question for c in board.cards.values() if c.question))
    title = questions[0] if len(questions) == 1 else "Leaderboard of post-training recipes"
    top = [
        tag("p", f"{len(board.cards)} entries of {shown}", class_="suite"),
        tag("h1", title),
        tag("p", f"Data: {'; '.join(sorted({c.data for c in board.cards.values()}))}.", class_="suite"),
        navigation(links),
    ]
    data = json_script(
        "figure-data", {figure.identifier: [checked(v) for v in figure.variants]} if isinstance(figure, Figure) else {}
    )
    foot = f"Made {made} by posttrain-harness. This site loads nothing from elsewhere."
    whole = document(title, top, [p for p in parts if p is not None], data, foot, script=board_script(), drawings=drawn)
    return "<!doctype html>\n" + whole


def _ranked(board: Board) -> list[_Row]:
    """The rows of the table: all but profiles, task by task, the best first."""
    rows = [r for r in board.rows.to_dicts() if r["task"] != PROFILE]
    lead = {name: place for place, name in enumerate(_tasks(rows))}

    def order(row: _Row) -> tuple[float, ...]:
        rank = as_float(row["rank"]) if row["rank"] is not None else 0.0
        value = as_float(row["value"])
        return lead[_name(row)], rank, value if row["better"] == "lower" else -value

    return sorted(rows, key=order)


def _name(row: Mapping[str, object]) -> str:
    return figure_name(str(row["task"]), str(row["metric"]))


def _tasks(rows: Iterable[_Row]) -> list[str]:
    """The figures that one may choose: those with a better and worse first, of these what most entries have."""
    counts: dict[str, list[_Row]] = {}
    for row in rows:
        counts.setdefault(_name(row), []).append(row)

    def order(name: str) -> tuple[bool, int, bool, str]:
        first = counts[name][0]
        return first["better"] == "none", -len(counts[name]), first["metric"] != "gold_reward", name

    return sorted(counts, key=order)


def _filters(board: Board) -> Html:
    rows = [r for r in board.rows.to_dicts() if r["task"] != PROFILE]

    def choice(label: str, name: str, values: Sequence[str], everything: str | None) -> Html:
        options = [tag("option", everything, value="")] if everything else []
        options += [tag("option", v, value=v) for v in values]
        return tag("label", label, tag("select", *options, name_=name, id=f"filter-{name}", autocomplete="off"))

    def known(column: str) -> list[str]:
        return sorted({str(r[column]) for r in rows})

    return tag(
        "div",
        choice("Task", "task", _tasks(rows), None),
        choice("Base model", "model", known("model"), "all"),
        choice("Method", "method", known("method"), "all"),
        choice("Target", "target", known("target"), "all"),
        tag("span", id="count", role="status"),
        class_="controls",
        id="filters",
    )


def _table(board: Board) -> Html:
    import polars as pl

    conflicting = {key for keys in board.conflicts for key in keys}
    profiles: dict[tuple[str, str], _Row] = {
        (r["entry"], r["metric"]): r for r in board.rows.filter(pl.col("task") == PROFILE).to_dicts()
    }
    lines = []
    for row in _ranked(board):
        key = str(row["entry"])
        card = board.cards[key]
        label = join(
            tag("a", card.recipe, href=f"entries/{key}.html"),
            tag("span", card.model, class_="detail"),
            tag("span", card.method, class_="detail") if card.steps else None,
            tag("span", "in conflict, see below", class_="state failed") if key in conflicting else None,
        )

        def profiled(*names: str, key: str = key, batch: str = card.batch) -> str | None:
            found = (profiles.get((key, f"{name} ({batch})")) for name in names)
            return next((number(as_float(p["value"])) for p in found if p is not None), None)

        cells: list[object] = [
            label,
            places(row),
            interval(row),
            None if row["verdict"] is None else join(_difference(row), " ", verdict(row)),
            card.target,
            profiled("e2e_ms"),
            profiled("peak_cuda_mb", "peak_rss_mb"),
            row["n"],
            row["seeds"],
            _name(row),
        ]
        lines.append(
            tag(
                "tr",
                *(tag("td", "–" if c is None else f"{c:,}" if isinstance(c, int) else c) for c in cells),
                data_entry=key,
                data_task=_name(row),
                data_model=card.model,
                data_method=card.method,
                data_target=card.target,
            )
        )
    head = tag("thead", tag("tr", *(tag("th", h, scope="col") for h in _HEADERS)))
    body = tag("table", tag("caption", "Final figures, the best first."), head, tag("tbody", *lines))
    return join(
        tag("div", body, class_="scroll", tabindex="0", id="board", role="region", aria_label="The board"),
        tag("p", "No entry fits all of these.", class_="empty", id="none", hidden=True),
    )


def _difference(row: _Row) -> Html | None:
    return interval(row, "difference", "difference_low", "difference_high")


def _explained() -> Html:
    return tag(
        "p",
        "A value is the mean over documents that tuning never saw and over all seeds, with its 95 % interval. The rank "
        "is the range of places that the data leave open to an entry among all entries with this task (not only those "
        "that the filters show), right for all of them at once with 95 % confidence: entries whose ranges overlap are "
        "not told apart. What people say is a mean over prompts and raters, and has no rank. Latency and memory are "
        "medians at the first batch size, each on the machine that its entry "
        "names: compare them between entries of one machine only.",
        class_="fine",
    )


def _conflicts(board: Board) -> Html | None:
    if not board.conflicts:
        return None
    rows: list[list[object]] = []
    for keys in board.conflicts:
        named = {key: {_name(r): r for r in board.rows_of(key)} for key in keys}
        for name in sorted({n for found in named.values() for n in found}):
            values = {key: found[name]["value"] for key, found in named.items() if name in found}
            if len(set(values.values())) > 1 or len(values) < len(keys):
                for key in keys:
                    row = named[key].get(name)
                    link = tag("a", f"{board.cards[key].label} ({key})", href=f"entries/{key}.html")
                    rows.append([link, board.cards[key].target, name, None if row is None else interval(row)])
    lead = (
        "These entries go by the same sweep, recipe, base model and target, and yet have other scores: two exports "
        "contradict each other, so at least one is not what it says. Both stand on the board."
    )
    return part("conflicts", "In conflict", lead, table(Table(["entry", "target", "task", "value, 95 %"], rows)))


def _data(board: Board) -> list[Html]:
    files = (
        ("data/entries.parquet", "every figure, a row per entry, task and metric (Parquet)"),
        ("data/entries.csv", "the same as CSV"),
        ("data/entries.json", "the same as JSON"),
        ("data/samples.parquet", "what the figures are computed from, a row per document, metric and seed"),
        ("data/provenance.json", "suites, settings, budgets, machines, stages and failures of the entries"),
        ("croissant.json", "what the data files hold, for what loads datasets (Croissant 1.0)"),
        ("manifest.json", "sha256 of every file, and how the figures are computed"),
    )
    items = [tag("li", tag("a", name, href=name, download=True), f": {what}") for name, what in files]
    return [
        tag("ul", *items),
        tag(
            "p",
            "Each entry's page has it in the formats of others: Every Eval Ever 0.3 (all of them in the folder ",
            tag("code", "every-eval-ever"),
            "), results of lm-eval (",
            tag("code", "lm-eval"),
            "), and a model card with model-index and .eval_results for the Hub (",
            tag("code", "hub"),
            ").",
        ),
        tag(
            "p",
            "Computes every figure again from the samples, on a copy of this site: ",
            tag("code", "harness verify FOLDER"),
        ),
        tag(
            "p",
            "Before publishing, paths were cut to their last part, and names of users and machines, tokens and "
            "passwords were taken out of every text, also of prompts and responses.",
            class_="fine",
        ),
    ]
