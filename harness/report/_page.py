"""The page itself: one HTML file that needs nothing else and asks for nothing."""

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from harness.report._budget_curves import budget_curves
from harness.report._document import document, navigation, part
from harness.report._drilldown import drill_down
from harness.report._figures import benchmarks, frontier, overoptimisation, profiles, ratings
from harness.report._filter import recipe_filter
from harness.report._flags import flags
from harness.report._forgetting import forgetting
from harness.report._html import Html, join, json_script, tag
from harness.report._interactions import interactions
from harness.report._judges import judges
from harness.report._made import made_data
from harness.report._noise import noise, noise_table
from harness.report._optimism import optimism
from harness.report._pairs import differences
from harness.report._plot import Figure, checked, render
from harness.report._provenance import failures, provenance
from harness.report._queries import Facts
from harness.report._samples import sample_browser
from harness.report._search import search
from harness.report._sensitivity import importances, sensitivity
from harness.report._tables import comparison_tables, recipe_table
from harness.report._tabs import tabs
from harness.report._tradeoffs import tradeoffs
from harness.report._training import training
from harness.report._training_cost import training_cost
from harness.report._variants import variants
from harness.report._wins import win_matrix
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


def _answer(said: Words) -> Html:
    return tag(
        "section",
        tag("h2", "The answer"),
        *(tag("p", s, class_="verdict-words") for s in said.verdicts),
        *(tag("p", s) for s in said.consequences),
        tag("p", " ".join(said.basis), class_="fine"),
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

    def place(made: Figure | Html, *, heading: bool = False) -> Html:
        if isinstance(made, Html):
            return made
        figures.append(made)
        return render(made, heading=heading)

    def titled(make: Callable[[Facts], Figure | Html]) -> Html:
        return place(make(facts), heading=True)

    floor = noise(store, facts)
    judged = judges(store, facts, samples)
    made = made_data(store, facts, samples)
    compared = [
        ("Tables", comparison_tables(facts)),
        ("Forest plot", place(differences(facts, floor))),
        ("Who beats whom", win_matrix(facts)),
        ("Task by task", drill_down(facts)),
        ("Method, model and data", interactions(facts)),
    ]
    searched = [
        ("Every trial", place(search(facts))),
        ("Best by budget", place(budget_curves(facts))),
        ("Optimism", optimism(facts)),
        ("Sensitivity", join(importances(facts), sensitivity(facts))),
    ]
    costs = [
        ("Pareto front", titled(tradeoffs)),
        ("Variants", titled(variants)),
        ("Latency and memory", titled(profiles)),
    ]
    parts = [
        _answer(words(facts)),
        part("validity", "Validity", None, flags(store, facts, found), noise_table(facts, floor)),
        part("differences", "The comparisons", None, tabs("compare", compared)),
        part("recipes", "Recipes", None, recipe_table(facts)),
        part(
            "reward",
            "Reward and movement",
            None,
            *(place(f(facts), heading=True) for f in (frontier, overoptimisation)),
        ),
        part(
            "quality",
            "What was kept and lost",
            None,
            *(place(f(facts), heading=True) for f in (benchmarks, ratings)),
            forgetting(store, facts),
        ),
        part("search-part", "Tuning", None, tabs("tuning", searched)),
        part("training-part", "Training curves", None, place(training(facts)), training_cost(facts)),
        part("cost", "Quality, latency and memory", None, tabs("costs", costs)),
        *([judged] if judged is not None else []),
        *([made] if made is not None else []),
        part("samples", "Samples side by side", None, sample_browser(store, facts, samples)),
        part("failures", "Failures", None, failures(facts)),
        part("provenance", "Provenance", None, provenance(facts)),
    ]
    data = json_script("figure-data", {f.identifier: [checked(v) for v in f.variants] for f in figures})
    return "<!doctype html>\n" + _document(facts, parts, data, now, judged=judged is not None, made=made is not None)


def _document(
    facts: Facts, parts: Sequence[Html], data: Html, now: datetime.datetime, *, judged: bool, made: bool
) -> Html:
    state = tag("span", _STATES.get(facts.state, facts.state), class_=f"state {facts.state}")
    question = facts.question or f"Suite {facts.suite}"
    links = [
        ("answer", "Answer"),
        ("validity", "Validity"),
        ("differences", "Comparisons"),
        ("recipes", "Recipes"),
        ("reward", "Reward and KL"),
        ("quality", "Benchmarks"),
        ("search-part", "Tuning"),
        ("training-part", "Training"),
        ("cost", "Latency and memory"),
        *([("judges", "Judges")] if judged else []),
        *([("made", "Made data")] if made else []),
        ("samples", "Samples"),
        ("failures", "Failures"),
        ("provenance", "Provenance"),
    ]
    top = [
        tag("p", facts.suite, " ", state, class_="suite"),
        tag("h1", question),
        tag("p", f"Data: {facts.data}.", class_="suite"),
    ]
    bar = [b for b in (navigation(links), recipe_filter([c.label for c in facts.contenders])) if b is not None]
    foot = f"Sweep {facts.sweep}, report made {now:%Y-%m-%d %H:%M} UTC. This file loads nothing."
    return document(f"{facts.suite}: {question}", top, parts, data, foot, bar=bar)
