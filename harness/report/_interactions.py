"""Whether a method's gain depends on the base model or on the training data, where the suite crosses them.

The interaction is a difference of differences: what a recipe gained over the base model on one model, minus what it
gained on another; and for data, what one method gained over another with one dataset, minus the same with another
(Fisher 1926, "The arrangement of field experiments"; the 2 × 2 contrast of a factorial design). Documents are paired:
each gives all four scores, and how hard it is for everyone cancels.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import combinations

from harness.report._compare import (
    Scores,
    family,
    main_metrics,
    objective_scores,
    objective_source,
    paired,
    scores_of,
)
from harness.report._html import Html, Table, join, table, tag
from harness.report._plot import empty
from harness.report._queries import BASE, Contender, Facts
from harness.report._tuning import first_objective
from harness.report._words import difference_text
from harness.stats import Difference

__all__ = ["interactions"]

_TITLE = "Does the gain depend on the model or the data?"
_MODELS = 4
"""Base models up to which every two are compared; of more, each with the first."""

_Pair = tuple[Contender, Contender]
_Crossing = tuple[str, _Pair, _Pair]
"""In words, and the two gains: each the first contender minus the second."""


def interactions(facts: Facts) -> Html:
    """Differences of differences over models and over training data, with Holm's correction over all of them."""
    crossed = [*_over_models(facts), *_over_data(facts)]
    if not crossed:
        return empty(
            _TITLE,
            "The suite crosses methods neither with base models nor with training data: it names one model, and there "
            "are no two methods that were each trained on the same two datasets. No interaction can be asked of it.",
        )
    found: list[tuple[str, Contender, Contender, str, Difference]] = []
    for words, first, second in crossed:
        for figure, scores in _figures(facts):
            gains = [_minus(scores(a), scores(b)) for a, b in (first, second)]
            if (difference := paired(*gains)) is not None:
                found.append((words, first[0], second[0], figure, difference))
    if not found:
        return empty(_TITLE, "The suite crosses methods with models or data, but no two gains have final scores yet.")
    rows: list[list[object]] = []
    for (words, *_), one in zip(found, family([f[1:] for f in found]), strict=True):
        shown = tag("span", difference_text(one), class_="num")
        mark = tag("span", one.verdict, class_="verdict" if one.verdict == "unresolved" else "verdict resolved")
        rows.append([words, one.what, shown, mark, _p(one.adjusted_p), one.difference.n])
    note = (
        "A difference of differences: zero where the gain is the same on both sides. Paired by document over final "
        "documents and all seeds, 95 % intervals, Holm's correction over this table. An interaction is as uncertain "
        "as four models together: unresolved says that little was asked, not that the gain carries over."
    )
    headers = ["gain, first side minus second", "figure", "difference, 95 %", "verdict", "Holm p", "documents"]
    return join(tag("h3", _TITLE), table(Table(headers, rows)), tag("p", note, class_="fine"))


def _over_models(facts: Facts) -> list[_Crossing]:
    """Each recipe's gain over the base model, on two models."""
    models = list(dict.fromkeys(c.model for c in facts.contenders))
    pairs = list(combinations(models, 2)) if len(models) <= _MODELS else [(models[0], m) for m in models[1:]]
    at = {(c.recipe, c.model): c for c in facts.contenders}
    found: list[_Crossing] = []
    for recipe in dict.fromkeys(c.recipe for c in facts.recipes()):
        for pair in pairs:
            a, base_a, b, base_b = (at.get((name, model)) for model in pair for name in (recipe, BASE))
            if a and base_a and b and base_b:
                words = f"{recipe} − base: on {pair[0]} minus on {pair[1]}"
                found.append((words, (a, base_a), (b, base_b)))
    return found


def _over_data(facts: Facts) -> list[_Crossing]:
    """What one method gained over another, on two datasets: recipes that are alike but for the data they train on."""
    given = facts.settings.get("recipes")
    recipes: Mapping[str, object] = given if isinstance(given, dict) else {}
    alike: dict[str, dict[str, tuple[str, ...]]] = {}
    for name in recipes:
        method, data = _shape(recipes, str(name))
        alike.setdefault(method, {})[str(name)] = data
    methods = [named for own in alike.values() if len(named := _levels(own)) > 1]
    at = {(c.recipe, c.model): c for c in facts.contenders}
    found: list[_Crossing] = []
    for model in dict.fromkeys(c.model for c in facts.recipes()):
        for one, other in combinations(methods, 2):
            for pair in combinations([d for d in one if d in other], 2):
                a, b, c, d = (at.get((method[data], model)) for data in pair for method in (one, other))
                if a and b and c and d:
                    words = f"{a.label} − {b.label} (data {pair[0]}) minus {c.label} − {d.label} (data {pair[1]})"
                    found.append((words, (a, b), (c, d)))
    return found


def _shape(recipes: Mapping[str, object], name: str) -> tuple[str, tuple[str, ...]]:
    """A recipe's whole chain without its datasets, and the datasets."""
    chain: list[object] = []
    data: list[str] = []
    seen: set[str] = set()
    current: object = name
    while isinstance(current, str) and current not in seen:
        seen.add(current)
        steps = recipes.get(current)
        own = [item for s in (steps if isinstance(steps, list) else []) if isinstance(s, dict) for item in s.items()]
        current = next((value for key, value in own if key == "use"), None)
        given = [(key, dict(value) if isinstance(value, dict) else {}) for key, value in own if key != "use"]
        data = [*(_named(settings.pop("dataset", None)) for _, settings in given), *data]
        chain = [*given, *chain]
    return json.dumps(chain, sort_keys=True, default=str), tuple(data)


def _named(dataset: object) -> str:
    return dataset if isinstance(dataset, str) else "default" if dataset is None else json.dumps(dataset, default=str)


def _levels(recipes: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Data in words → the recipe that has it, among recipes alike but for it: what they differ in."""
    vary = [i for i in range(len(next(iter(recipes.values())))) if len({d[i] for d in recipes.values()}) > 1]
    return {", ".join(dict.fromkeys(d[i] for i in vary)): name for name, d in recipes.items()} if vary else {}


def _figures(facts: Facts) -> list[tuple[str, Callable[[Contender], Scores]]]:
    """What gains are measured by: the objective, or where no documents make it up every benchmark."""
    objective = first_objective(facts)
    if objective is not None and objective_source(facts, objective):
        return [(objective, partial(objective_scores, facts, objective=objective))]
    pairs = main_metrics(facts)
    return [(f"{group} {metric}", partial(scores_of, facts, group=group, metric=metric)) for group, metric in pairs]


def _minus(a: Scores, b: Scores) -> Scores:
    """Document → what a gained over b, by seed: trainings are independent, so it matters not which are paired."""
    shared = a.keys() & b.keys()
    if not shared:
        return {}
    if all(len(b[d]) == 1 for d in shared):
        # The untouched base model, or one seed: the same for every training of a.
        return {d: [x - b[d][0] for x in a[d]] for d in shared}
    return {d: [x - y for x, y in zip(a[d], b[d], strict=False)] for d in shared}


def _p(value: float) -> str:
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
