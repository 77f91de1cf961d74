"""The page's figures of how the results came about: training curves, and each cell's search."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from harness.report._html import Html, Table, join, number, table, tag
from harness.report._plot import Figure, Point, Series, Variant, empty, scatter
from harness.report._queries import TUNING_CURVES, Contender, Facts, mapping

if TYPE_CHECKING:
    import polars as pl

__all__ = ["importances", "search", "settings_text", "training"]

_CURVE_POINTS = 300
_MIN_FINISHED = 4
# What a method is judged by comes first in its list; the rest follows by name.
_FIRST = ("reward", "loss", "rewards/margins", "rewards/accuracies", "kl", "accuracy", "entropy")


def _thin(steps: list[int], values: list[float]) -> list[tuple[int, float]]:
    stride = max(1, math.ceil(len(steps) / _CURVE_POINTS))
    kept = list(zip(steps, values, strict=True))
    return kept if stride == 1 else [*kept[::stride], *([kept[-1]] if (len(kept) - 1) % stride else [])]


def _rank(metric: str) -> tuple[int, str]:
    return (_FIRST.index(metric) if metric in _FIRST else len(_FIRST), metric)


def training(facts: Facts) -> Figure | Html:
    """A curve per stage; one method and metric at a time."""
    import polars as pl

    title = "Training curves"
    curves = facts.training
    broken = curves.filter(~pl.col("value").is_finite()).height
    curves = curves.filter(pl.col("value").is_finite())
    if curves.is_empty():
        return empty(None, "No stage has logged a training step yet.")
    colours = {c.label: c.index for c in facts.contenders}
    last = facts.lineage.group_by("step").agg(pl.col("position").max()).iter_rows()
    position = {str(method): int(place) for method, place in last}
    groups = sorted(
        curves.select("method", "metric").unique().iter_rows(),
        key=lambda g: (-position.get(g[0], 0), g[0], _rank(g[1])),
    )
    variants: list[Variant] = []
    rows: list[list[object]] = []
    for method, metric in groups:
        here = curves.filter((pl.col("method") == method) & (pl.col("metric") == metric))
        series: list[Series] = []
        shown: set[str] = set()
        # A stage that several runs share was trained once: one curve, under every recipe that used it.
        for (_,), part in sorted(here.group_by("stage"), key=lambda kv: (kv[1]["phase"].max() == "tune", kv[0])):
            one = part.unique("step", keep="first").sort("step")
            labels = set(part["label"].to_list())
            users = [c.label for c in facts.contenders if c.label in labels]
            name = " + ".join(users)
            final = "final" in set(part["phase"])
            runs = (
                part.filter(pl.col("phase") == ("final" if final else "tune"))
                .sort("label", "trial", "seed")
                .row(0, named=True)
            )
            which = f"{'final' if final else 'tuning'} run, trial {runs['trial']}, seed {runs['seed']}"
            steps, values = one["step"].to_list(), one["value"].to_list()
            points = [
                Point(s, v, [f"{name}: {method}, {which}", f"step {s}: {metric} {number(v)}"])
                for s, v in _thin(steps, values)
            ]
            colour = colours.get(users[0], 1) if len(users) == 1 else 0
            opacity = 1.0 if final else 0.35
            series.append(Series(name, colour, points, 7, opacity, joined=True, legend=name not in shown))
            shown.add(name)
            rows.append([method, metric, name, which, len(steps), values[0], values[-1], min(values), max(values)])
        drawn = scatter(series, "step", metric)
        variants.append(Variant(f"{method} · {metric}", drawn.traces, {**drawn.layout, "showlegend": True}))
    caption = (
        "What each method logged at each step; full lines are final runs, faint ones tuning runs. A stage shared by "
        "several recipes or trials was trained once and is drawn once. The table gives each curve's ends; every "
        "step is in the store's view training."
    )
    trained = facts.lineage.group_by("step").agg(pl.col("stage").n_unique())["stage"]
    if max(trained.to_list(), default=0) > TUNING_CURVES:
        caption += f" Of a method's tuning runs {TUNING_CURVES} at most are drawn, a random few."
    if broken:
        caption += f" {broken} logged values were NaN or infinite and are not drawn."
    headers = ["method", "metric", "recipe", "run", "steps", "first", "last", "lowest", "highest"]
    return Figure("training", title, caption, variants, Table(headers, rows), "Method and metric")


def settings_text(settings: object) -> str:
    """A trial's searched settings in a line, `dpo.beta 0.1, …`."""
    found = mapping(settings)
    if not found:
        return "nothing searched"
    shown = {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in found.items()}
    return ", ".join(f"{k} {v}" for k, v in sorted(shown.items()))


def _tuning(facts: Facts, who: Contender) -> "pl.DataFrame":
    import polars as pl

    return facts.trials.filter((pl.col("label") == who.label) & (pl.col("phase") == "tune")).sort("trial")


def _chosen(facts: Facts, who: Contender) -> int | None:
    import polars as pl

    final = facts.trials.filter((pl.col("label") == who.label) & (pl.col("phase") == "final"))["trial"]
    return int(final[0]) if len(final) else None


def _value(row: Mapping[str, object], objective: str) -> float | None:
    found = mapping(row["objectives"]).get(objective)
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def _log(values: Sequence[object]) -> bool:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) / min(numbers) >= 8


def _panels(who: Contender, rows: list[dict[str, object]], objective: str, chosen: int | None) -> Variant | None:
    """One panel a setting, side by side, sharing the objective's axis."""
    done = [(r, v) for r in rows if (v := _value(r, objective)) is not None]
    names = sorted({k for r, _ in done for k in mapping(r["settings"])})
    if not done or not names:
        return None
    series, layout = [], {}
    for index, name in enumerate(names, start=1):
        values = [mapping(r["settings"]).get(name) for r, _ in done]
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        width = 1 / len(names)
        suffix = "" if index == 1 else str(index)
        gap = 0.02 if len(names) > 1 else 0.0
        layout[f"xaxis{suffix}"] = {
            "title": {"text": name},
            "domain": [(index - 1) * width + gap * (index > 1), index * width - gap * (index < len(names))],
            "type": "category" if not numeric else "log" if _log(values) else "linear",
            "anchor": f"y{suffix}",
            "nticks": 6,
        }
        layout[f"yaxis{suffix}"] = {"anchor": f"x{suffix}"} | (
            {"title": {"text": objective}} if index == 1 else {"matches": "y", "showticklabels": False}
        )
        for is_chosen in (False, True):
            points = [
                Point(
                    setting if numeric else str(setting),  # type: ignore[arg-type]  # numeric says so
                    value,
                    [
                        f"{who.label}, trial {row['trial']}",
                        settings_text(row["settings"]),
                        f"{objective} {number(value)}",
                    ],
                )
                for setting, (row, value) in zip(values, done, strict=True)
                if (row["trial"] == chosen) is is_chosen
            ]
            if points:
                label = "chosen settings" if is_chosen else "tuning trial"
                size = 14 if is_chosen else 9
                series.append(
                    Series(label, who.index, points, size, hollow=not is_chosen, legend=index == 1, axis=index)
                )
    return Variant(f"{who.label} · {objective}", scatter(series, "", objective).traces, {**layout, "showlegend": True})


def search(facts: Facts) -> Figure | Html:
    """Every tuning trial: its settings and the objective it reached on the tuning half."""
    title = "The search"
    objectives = list(facts.objectives) or sorted({k for t in facts.trials["objectives"] for k in mapping(t)})
    variants, rows = [], []
    for who in facts.recipes():
        trials = list(_tuning(facts, who).iter_rows(named=True))
        chosen = _chosen(facts, who)
        variants += [v for o in objectives if (v := _panels(who, trials, o, chosen)) is not None]
        for row in trials:
            reached = [_value(row, o) for o in objectives]
            mark = "chosen" if row["trial"] == chosen else ""
            rows.append(
                [who.label, row["trial"], row["state"], settings_text(row["settings"]), *reached, row["seconds"], mark]
            )
    headers = ["recipe", "trial", "state", "settings", *objectives, "seconds", ""]
    if not rows:
        return empty(
            None, "No tuning trial has been started: nothing is searched in this suite, or it is yet to begin."
        )
    if not variants:
        reason = (
            "No tuning trial has finished with searched settings, so there is nothing to draw; these are the trials."
        )
        return join(empty(None, reason), table(Table(headers, rows)))
    caption = (
        "Each tuning trial's settings against the objective it reached, first seed, tuning half of the documents; "
        "the chosen settings are filled. The values are those the search saw, so the chosen one is biased upwards; "
        "final figures come from other documents. Failed and infeasible trials are in the table."
    )
    return Figure("search", title, caption, variants, Table(headers, rows), "Recipe and objective")


def _importance(facts: Facts, who: Contender, objective: str) -> dict[str, float] | str:
    """Setting → share of importance, or why there is none."""
    import optuna

    done = [
        (mapping(r["settings"]), v)
        for r in _tuning(facts, who).iter_rows(named=True)
        if (v := _value(r, objective)) is not None
    ]
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
        figures = [float(v) for v in seen if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(figures) == len(seen):
            distributions[name] = optuna.distributions.FloatDistribution(min(figures), max(figures), log=_log(seen))
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
    objective = next(iter(facts.objectives), None) or next(
        (k for t in facts.trials["objectives"] for k in mapping(t)), None
    )
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
