"""Which settings mattered, and how the objective moves with each: from the tuning trials of each recipe."""

import math
from collections.abc import Sequence
from statistics import NormalDist

from harness.report._html import Html, Table, join, number, table, tag
from harness.report._plot import empty
from harness.report._queries import Contender, Facts
from harness.report._search import is_log
from harness.report._tuning import first_objective, tuning_trials

__all__ = ["importances", "sensitivity"]

_MIN_FINISHED = 4
_SHOWN_VALUES = 6
"""Values of a setting that is no number, at most."""

_Done = list[tuple[dict[str, object], float]]


def _finished(facts: Facts, who: Contender, objective: str) -> _Done:
    """Settings and objective of each finished tuning trial."""
    return [(dict(t.settings), t.values[objective]) for t in tuning_trials(facts, who) if objective in t.values]


def _numbers(values: Sequence[object]) -> list[float] | None:
    """The values as figures; None where one of them is none."""
    found = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return found if len(found) == len(values) else None


def _importance(facts: Facts, who: Contender, objective: str) -> dict[str, float] | str:
    """Setting → share of importance, or why there is none."""
    import optuna

    done = _finished(facts, who, objective)
    names = sorted({k for s, _ in done for k in s})
    if not names:
        return "nothing was searched" if done else "no tuning trial has finished"
    if len(names) < 2:
        return f"only one setting was searched ({names[0]})"
    if len(done) < _MIN_FINISHED:
        return f"{len(done)} finished tuning trials; at least {_MIN_FINISHED} are needed"
    if len({v for _, v in done}) < 2:
        return "every finished trial reached the same value"
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for name in names:
        seen = [s[name] for s, _ in done if name in s]
        if len(set(map(repr, seen))) < 2:
            continue
        if (figures := _numbers(seen)) is not None:
            distributions[name] = optuna.distributions.FloatDistribution(min(figures), max(figures), log=is_log(seen))
        else:
            distributions[name] = optuna.distributions.CategoricalDistribution(sorted({str(v) for v in seen}))
    if len(distributions) < 2:
        return "fewer than two settings took more than one value"
    minimize = facts.objectives.get(objective) == "minimize"
    study = optuna.create_study(direction="minimize" if minimize else "maximize")
    for settings, value in done:
        params = {
            n: settings[n] if isinstance(d, optuna.distributions.FloatDistribution) else str(settings[n])
            for n, d in distributions.items()
            if n in settings
        }
        own = {n: distributions[n] for n in params}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=own, value=value))
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
    )
    return {k: float(v) for k, v in found.items()}


def importances(facts: Facts) -> Html:
    """How much each setting decided, by PED-ANOVA; a table, for a handful of numbers needs no drawing."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = first_objective(facts)
    if objective is None:
        return empty("Which settings mattered", "No trial has reached an objective yet.")
    rows: list[list[object]] = []
    for who in facts.recipes():
        found = _importance(facts, who, objective)
        if isinstance(found, str):
            rows.append([who.label, tag("span", f"not estimated: {found}", class_="interval"), None])
        else:
            rows += [[who.label, name, f"{share:.0%}"] for name, share in found.items()]
    if not rows:
        return empty("Which settings mattered", "No recipe has begun yet.")
    note = (
        f"Share of each setting in telling the better half of the trials from the rest, for {objective} (PED-ANOVA, "
        "Watanabe et al. 2023). From a handful of trials it is a hint, not a finding."
    )
    return join(
        tag("h3", "Which settings mattered"),
        tag("p", note, class_="fine"),
        table(Table(["recipe", "setting", "importance"], rows)),
    )


def sensitivity(facts: Facts) -> Html:
    """How the objective moves over each setting: its mean in thirds of the trials, and the rank correlation."""
    title = "How the objective moves with each setting"
    objective = first_objective(facts)
    if objective is None:
        return empty(title, "No trial has reached an objective yet.")
    rows: list[list[object]] = []
    for who in facts.recipes():
        done = _finished(facts, who, objective)
        if len(done) >= _MIN_FINISHED:
            rows += [
                [who.label, name, *_moves([(s[name], v) for s, v in done if name in s])]
                for name in sorted({k for s, _ in done for k in s})
            ]
    if not rows:
        reason = f"No recipe has {_MIN_FINISHED} finished tuning trials with searched settings, which this needs."
        return empty(title, reason)
    note = (
        f"Mean {objective} of the tuning trials in the lowest, middle and highest third of each setting (or at each of "
        "its values, where they are no numbers), and Spearman's rank correlation of setting and objective with its "
        "95 % interval (Bonett & Wright 2000). A correlation whose interval holds zero tells no direction; one near "
        "zero beside unequal thirds has its best values in the middle."
    )
    if facts.settings.get("sampler") != "random":
        note += " An adaptive sampler tries good regions more often, so this describes the trials, not the whole space."
    headers = ["recipe", "setting", "tried", "trials", "lowest third", "middle", "highest third", "rank correlation"]
    return join(tag("h3", title), tag("p", note, class_="fine"), table(Table(headers, rows)))


def _moves(done: Sequence[tuple[object, float]]) -> list[object]:
    """One setting's cells: what was tried, how often, the means, the correlation."""
    figures = _numbers([setting for setting, _ in done])
    if figures is None:
        return _at_values(done)
    tried = f"{figures[0]:.3g}" if len(set(figures)) == 1 else f"{min(figures):.3g} to {max(figures):.3g}"
    if len(set(figures)) < 2 or len(done) < _MIN_FINISHED:
        return [tried, len(done), None, None, None, None]
    # Trials of one value stay together, so that a third is one of the setting's and not of the order of trials.
    places = _middle_ranks(figures)
    thirds: list[list[float]] = [[], [], []]
    for place, (_, value) in zip(places, done, strict=True):
        thirds[min(2, int(3 * place / len(done)))].append(value)
    means = [math.fsum(t) / len(t) if t else None for t in thirds]
    return [tried, len(done), *means, _correlation(figures, [v for _, v in done])]


def _middle_ranks(figures: Sequence[float]) -> list[float]:
    """The place of each figure among all, in (0, n); equal ones share the middle of theirs."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]  # scipy ships no types

    return [float(rank) - 0.5 for rank in rankdata(figures)]


def _at_values(done: Sequence[tuple[object, float]]) -> list[object]:
    means: dict[str, list[float]] = {}
    for setting, value in done:
        means.setdefault(str(setting), []).append(value)
    best = sorted(means.items(), key=lambda kv: (-len(kv[1]), kv[0]))
    texts = [f"{name}: {number(math.fsum(own) / len(own))} ({len(own)})" for name, own in best[:_SHOWN_VALUES]]
    more = [f"{len(best) - _SHOWN_VALUES} more values"] if len(best) > _SHOWN_VALUES else []
    return ["; ".join([*texts, *more]), len(done), None, None, None, None]


def _correlation(settings: Sequence[float], values: Sequence[float]) -> str | None:
    """Spearman's correlation with the interval of Bonett & Wright 2000 (Psychometrika 65), as text; None of no order.

    Their standard error of Fisher's z is sqrt((1 + r²/2) / (n - 3)). At r = ±1 it would bound nothing, so the bounds
    are those of half a step of r less (Kendall & Gibbons 1990, correction for continuity): n trials in order do not
    prove the order of all.
    """
    from scipy.stats import spearmanr

    if len(set(values)) < 2:
        return None
    n, r = len(values), float(spearmanr(settings, values).statistic)
    shown = math.copysign(min(abs(r), 1 - 6 / (n**3 - n)), r)
    half = NormalDist().inv_cdf(0.975) * math.sqrt((1 + shown * shown / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(shown) + side * half) for side in (-1, 1))
    low, high = (-1.0 if r <= -1 else low), (1.0 if r >= 1 else high)
    return f"{number(r, 2)} [{number(low, 2)}, {number(high, 2)}]"
