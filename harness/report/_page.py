"""The page itself: one HTML file that needs nothing else and asks for nothing."""

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.report._document import document, navigation, part
from harness.report._figures import benchmarks, frontier, overoptimisation, profiles, ratings
from harness.report._flags import flags
from harness.report._html import Html, json_script, tag
from harness.report._plot import Figure, checked, render
from harness.report._provenance import failures, provenance
from harness.report._queries import Facts
from harness.report._samples import sample_browser
from harness.report._search import search
from harness.report._sensitivity import importances
from harness.report._tables import comparison_tables, recipe_table
from harness.report._tradeoffs import tradeoffs
from harness.report._training import training
from harness.report._training_cost import training_cost
from harness.report._variants import variants
from harness.report._words import Words, words

if TYPE_CHECKING:
    from harness.gates import Checked
    from harness.store import Store

__all__ = ["page"]

_STATES = {
    "complete": "complete",
    "running": "still running",
    "failed": "ended with failures",
    "interrupted": "interrupted",
}


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


def page(store: "Store", facts: Facts, *, found: "Checked | None", samples: int, now: datetime.datetime) -> str:
    """The whole HTML text.

    Args:
        store: for the texts of the samples, which are read last and only as many as are shown.
        found: what the validity gates said; None asks them.
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
        part("validity", "Validity", None, flags(store, facts, found)),
        part("recipes", "Recipes", None, recipe_table(facts)),
        part("reward", "Reward and movement", None, place(frontier), place(overoptimisation)),
        part("quality", "What was kept and lost", None, place(benchmarks), place(ratings)),
        part("training-part", "Training curves", None, place(training, alone=True), training_cost(facts)),
        part("cost", "Latency and memory", None, place(tradeoffs), place(variants), place(profiles)),
        part("search-part", "The search", None, place(search, alone=True), importances(facts)),
        part("samples", "Samples side by side", None, sample_browser(store, facts, samples)),
        part("provenance", "Provenance", None, failures(facts), provenance(facts)),
    ]
    data = json_script("figure-data", {f.identifier: [checked(v) for v in f.variants] for f in figures})
    return "<!doctype html>\n" + _document(facts, parts, data, now)


def _document(facts: Facts, parts: Sequence[Html], data: Html, now: datetime.datetime) -> Html:
    state = tag("span", _STATES.get(facts.state, facts.state), class_=f"state {facts.state}")
    question = facts.question or f"Suite {facts.suite}"
    links = [
        ("answer", "Answer"),
        ("validity", "Validity"),
        ("recipes", "Recipes"),
        ("reward", "Reward and KL"),
        ("quality", "Benchmarks"),
        ("training-part", "Training"),
        ("cost", "Latency and memory"),
        ("search-part", "Search"),
        ("samples", "Samples"),
        ("provenance", "Provenance"),
    ]
    top = [
        tag("p", facts.suite, " ", state, class_="suite"),
        tag("h1", question),
        tag("p", f"Data: {facts.data}.", class_="suite"),
        navigation(links),
    ]
    foot = f"Sweep {facts.sweep}, report made {now:%Y-%m-%d %H:%M} UTC. This file loads nothing."
    return document(f"{facts.suite}: {question}", top, parts, data, foot)
