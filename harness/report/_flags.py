"""The validity gates as the page shows them: what was found, most severe first, and what could not be checked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.gates import GATES, Checked, Flag, Unchecked, check
from harness.report._html import Html, Table, join, table, tag
from harness.report._queries import Facts

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["flags"]

_FEW = 8
"""Rows of warnings that are shown at once; more fold away: they are not to stand between the answer and its figures."""
_HEADERS = ["", "gate", "recipe", "task", "seed", "what was found, and what to do"]


def flags(store: "Store", facts: Facts, found: Checked | None = None) -> Html:
    """The section of flags.

    Args:
        store: asked where nothing was found beforehand.
        facts: the sweep.
        found: what `harness.gates.check` said; None asks the gates now, without a data source and without artifacts.
    """
    if found is None:
        found = check(store, facts.sweep)
    return join(tag("p", _summary(found), class_="lead"), _found(facts, found), _not(facts, found))


def _summary(found: Checked) -> str:
    invalid = sum(f.severity == "invalid" for f in found.flags)
    asked = f"{len(GATES)} gates looked at the final runs: {', '.join(GATES)}."
    if not found.flags:
        besides = " in what they could check" if found.unchecked else ""
        return f"{asked} They found nothing wrong{besides}."
    warnings = len(found.flags) - invalid
    counts = [f"{invalid} invalid"] if invalid else []
    counts += [f"{warnings} warning{'s' if warnings > 1 else ''}"] if warnings else []
    end = " Figures marked invalid are not to be used." if invalid else ""
    return f"{asked} They found: {', '.join(counts)}.{end}"


def _found(facts: Facts, found: Checked) -> Html | None:
    """A row for each gate, severity, recipe and task; what was found for its other seeds and targets folds away."""
    if not found.flags:
        return None
    groups: dict[tuple[str, ...], list[Flag]] = {}
    for flag in sorted(found.flags, key=lambda f: f.severity != "invalid"):
        groups.setdefault((flag.severity, flag.gate, flag.recipe, flag.model, flag.task), []).append(flag)
    rows = table(Table(_HEADERS, [_row(facts, same) for same in groups.values()]))
    if len(groups) <= _FEW or any(f.severity == "invalid" for f in found.flags):
        return rows
    return tag("details", tag("summary", f"The warnings, {len(groups)} rows"), rows)


def _row(facts: Facts, same: Sequence[Flag]) -> list[object]:
    first = same[0]
    severity = tag("span", first.severity, class_="state failed" if first.severity == "invalid" else "state")
    seeds = sorted({f.seed for f in same if f.seed is not None})
    more = None
    if len(same) > 1:
        summary = tag("summary", f"and {len(same) - 1} more like it")
        more = tag("details", summary, *(tag("p", _of_seed(f)) for f in same[1:]))
    said = tag("div", tag("p", _of_seed(first)), more)
    return [
        severity,
        first.gate,
        _label(facts, first.recipe, first.model),
        first.task or "all",
        ", ".join(map(str, seeds)) or "–",
        said,
    ]


def _of_seed(flag: Flag) -> str:
    return flag.message if flag.seed is None else f"Seed {flag.seed}: {flag.message}"


def _label(facts: Facts, recipe: str, model: str) -> str:
    if not recipe:
        several = len({c.model for c in facts.contenders}) > 1
        return f"all · {model}" if several and model else "all"
    return next((c.label for c in facts.contenders if (c.recipe, c.model) == (recipe, model)), recipe)


def _not(facts: Facts, found: Checked) -> Html:
    """What was not checked: a row for each gate and reason, with all that it holds for."""
    if not found.unchecked:
        return tag("p", "Every gate could check everything.", class_="fine")
    groups: dict[tuple[str, str], list[Unchecked]] = {}
    for one in found.unchecked:
        groups.setdefault((one.gate, one.why), []).append(one)
    rows: list[list[object]] = []
    for (gate, why), same in groups.items():
        recipes = list(dict.fromkeys(_label(facts, u.recipe, u.model) for u in same))
        tasks = list(dict.fromkeys(u.task for u in same if u.task))
        rows.append([gate, ", ".join(recipes), ", ".join(tasks) or "all", why])
    summary = tag("summary", f"Not checked: {len(rows)} reason{'s' if len(rows) > 1 else ''}")
    return tag("details", summary, table(Table(["gate", "recipe", "task", "why"], rows)))
