"""The search: every tuning trial's settings against what it reached, and the settings that were chosen."""

from collections.abc import Sequence

from harness.report._html import Html, Table, join, number, table
from harness.report._plot import Figure, Point, Series, Variant, empty, scatter
from harness.report._queries import Contender, Facts, mapping
from harness.report._tuning import Trial, chosen_trial, tuning_trials

__all__ = ["is_log", "search", "settings_text"]


def settings_text(settings: object) -> str:
    """A trial's searched settings in a line, `dpo.beta 0.1, …`."""
    found = mapping(settings)
    if not found:
        return "nothing searched"
    shown = {k: f"{v:.3g}" if isinstance(v, float) else str(v) for k, v in found.items()}
    return ", ".join(f"{k} {v}" for k, v in sorted(shown.items()))


def is_log(values: Sequence[object]) -> bool:
    """Whether values of a setting are shown on a logarithmic scale: figures above zero that span most of a decade."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) / min(numbers) >= 8


def _panels(who: Contender, trials: Sequence[Trial], objective: str, chosen: int | None) -> Variant | None:
    """One panel a setting, side by side, sharing the objective's axis."""
    done = [(t, t.values[objective]) for t in trials if objective in t.values]
    names = sorted({k for t, _ in done for k in t.settings})
    if not done or not names:
        return None
    series, layout = [], {}
    for index, name in enumerate(names, start=1):
        values = [t.settings.get(name) for t, _ in done]
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        width = 1 / len(names)
        suffix = "" if index == 1 else str(index)
        gap = 0.02 if len(names) > 1 else 0.0
        layout[f"xaxis{suffix}"] = {
            "title": {"text": name},
            "domain": [(index - 1) * width + gap * (index > 1), index * width - gap * (index < len(names))],
            "type": "category" if not numeric else "log" if is_log(values) else "linear",
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
                        f"{who.label}, trial {trial.number}",
                        settings_text(trial.settings),
                        f"{objective} {number(value)}",
                    ],
                )
                for setting, (trial, value) in zip(values, done, strict=True)
                if (trial.number == chosen) is is_chosen
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
    objectives = list(facts.objectives)
    variants, rows = [], []
    for who in facts.recipes():
        trials = tuning_trials(facts, who)
        chosen = chosen_trial(facts, who)
        variants += [v for o in objectives if (v := _panels(who, trials, o, chosen)) is not None]
        for trial in trials:
            reached = [trial.values.get(o) for o in objectives]
            mark = "chosen" if trial.number == chosen else "breaks a constraint" if trial.broken else ""
            told = settings_text(trial.settings)
            rows.append([who.label, trial.number, trial.state, told, *reached, trial.seconds, mark])
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
