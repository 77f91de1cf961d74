"""The page itself: one HTML file that needs nothing else and asks for nothing."""

import datetime
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from harness.report._figures import benchmarks, frontier, overoptimisation, profiles, ratings
from harness.report._html import Html, csp_hash, join, json_script, tag
from harness.report._plot import Figure, checked, render
from harness.report._provenance import failures, provenance
from harness.report._queries import Facts
from harness.report._runs import importances, search, training
from harness.report._samples import sample_browser
from harness.report._tables import comparison_tables, recipe_table
from harness.report._tradeoffs import tradeoffs
from harness.report._training_cost import training_cost
from harness.report._variants import variants
from harness.report._words import Words, words

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["page"]

_STATES = {
    "complete": "complete",
    "running": "still running",
    "failed": "ended with failures",
    "interrupted": "interrupted",
}


def _asset(name: str) -> str:
    return files("harness.report").joinpath(name).read_text(encoding="utf-8")


def _part(identifier: str, title: str, lead: str | None, *children: object) -> Html:
    return tag(
        "section",
        tag("h2", title),
        tag("p", lead, class_="lead") if lead else None,
        *children,
        class_="part",
        id=identifier,
    )


def _answer(facts: Facts, said: Words) -> Html:
    return tag(
        "section",
        tag("h2", "The answer"),
        *(tag("p", s, class_="verdict-words") for s in said.verdicts),
        *(tag("p", s) for s in said.consequences),
        tag("p", " ".join(said.basis), class_="fine"),
        comparison_tables(facts),
        class_="part answer",
        id="answer",
    )


def page(store: "Store", facts: Facts, *, samples: int, now: datetime.datetime) -> str:
    """The whole HTML text.

    Args:
        store: for the texts of the samples, which are read last and only as many as are shown.
        samples: documents in the sample browser at most.
        now: the time that stands in the page.
    """
    figures: list[Figure] = []

    def place(make: Callable[[Facts], Figure | Html], *, alone: bool = False) -> Html:
        made = make(facts)
        if isinstance(made, Html):
            return made
        figures.append(made)
        return render(made, heading=not alone)

    parts = [
        _answer(facts, words(facts)),
        _part("recipes", "Recipes", None, recipe_table(facts)),
        _part("reward", "Reward and movement", None, place(frontier), place(overoptimisation)),
        _part("quality", "What was kept and lost", None, place(benchmarks), place(ratings)),
        _part("training-part", "Training curves", None, place(training, alone=True), training_cost(facts)),
        _part("cost", "Latency and memory", None, place(tradeoffs), place(variants), place(profiles)),
        _part("search-part", "The search", None, place(search, alone=True), importances(facts)),
        _part("samples", "Samples side by side", None, sample_browser(store, facts, samples)),
        _part("provenance", "Provenance", None, failures(facts), provenance(facts)),
    ]
    data = json_script("figure-data", {f.identifier: [checked(v) for v in f.variants] for f in figures})
    return "<!doctype html>\n" + _document(facts, parts, data, now)


def _navigation(parts: Sequence[tuple[str, str]]) -> Html:
    return tag("nav", *(tag("a", title, href=f"#{name}") for name, title in parts), aria_label="Parts of the report")


def _document(facts: Facts, parts: Sequence[Html], data: Html, now: datetime.datetime) -> Html:
    plotly, script, style = _asset("plotly-cartesian.min.js"), _asset("page.js"), _asset("style.css")
    # The licence travels with the library it is for. In the script, not an HTML comment: it belongs to that code.
    library = f"/*\n{_asset('plotly-cartesian.LICENSE.txt').strip()}\n*/\n{plotly}"
    policy = (
        f"default-src 'none'; script-src {csp_hash(library)} {csp_hash(script)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; connect-src 'none'; form-action 'none'; base-uri 'none'"
    )
    state = tag("span", _STATES.get(facts.state, facts.state), class_=f"state {facts.state}")
    question = facts.question or f"Suite {facts.suite}"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="color-scheme", content="light dark"),
        tag("title", f"{facts.suite}: {question}"),
        tag("style", Html(style)),
    )
    links = [
        ("answer", "Answer"),
        ("recipes", "Recipes"),
        ("reward", "Reward and KL"),
        ("quality", "Benchmarks"),
        ("training-part", "Training"),
        ("cost", "Latency and memory"),
        ("search-part", "Search"),
        ("samples", "Samples"),
        ("provenance", "Provenance"),
    ]
    top = tag(
        "header",
        tag(
            "div",
            tag("p", facts.suite, " ", state, class_="suite"),
            tag("h1", question),
            tag("p", f"Data: {facts.data}.", class_="suite"),
            _navigation(links),
        ),
        class_="masthead",
    )
    foot = tag(
        "footer", tag("p", f"Sweep {facts.sweep}, report made {now:%Y-%m-%d %H:%M} UTC. This file loads nothing.")
    )
    warning = tag(
        "noscript",
        tag("p", "Without scripts there are no drawings; every figure's numbers are in its table.", class_="empty"),
    )
    scripts = join(Html(f"<script>{library}</script>"), data, Html(f"<script>{script}</script>"))
    return tag("html", head, tag("body", top, tag("main", warning, *parts), foot, scripts), lang="en")
