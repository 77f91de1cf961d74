"""The report as Markdown, short enough for a pull request: the answer, the comparisons, the recipes, the flags."""

import html
import re
from collections.abc import Sequence

from harness.gates import Checked, Flag
from harness.report._compare import (
    Comparison,
    against_base,
    aspects,
    compare_recipes,
    estimate,
    main_metrics,
    objective_estimate,
    objective_source,
)
from harness.report._html import number
from harness.report._judges_quality import percent, quality_lines
from harness.report._judges_wins import preferred
from harness.report._plot import Estimate
from harness.report._queries import Contender, Facts
from harness.report._rank import places
from harness.report._words import counted, difference_text, listed, span, words
from harness.stats import detectable

__all__ = ["markdown"]

_ROWS = 20
_SPECIAL = re.compile(r"([\\`*_\[\]#!|~$])")
# What becomes a link, or mentions somebody, where Markdown is rendered with extras.
_LINKS = {"@": "&#64;", "://": "&#58;//", "www.": "www&#46;"}


def _text(value: object) -> str:
    """Text that Markdown shows as it stands: no markup, no link, nobody mentioned, one line."""
    line = _SPECIAL.sub(r"\\\1", html.escape(" ".join(str(value).split()), quote=False))
    for found, written in _LINKS.items():
        line = line.replace(found, written)
    return line


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    shown = [f"| {' | '.join(row)} |" for row in rows[:_ROWS]]
    more = [f"{len(rows) - _ROWS} more rows are in the page."] if len(rows) > _ROWS else []
    return [f"| {' | '.join(map(_text, headers))} |", f"|{'---|' * len(headers)}", *shown, "", *more]


def _comparisons(title: str, found: Sequence[Comparison]) -> list[str]:
    if not found:
        return []
    foremost = sorted(found, key=lambda c: (c.verdict == "unresolved", -abs(c.difference.value)))
    rows = [
        [
            f"{_text(c.a.label)} − {_text(c.b.label)}",
            _text(c.what),
            difference_text(c),
            c.verdict if c.verdict == "unresolved" else f"**{c.verdict}**",
            "–" if c.adjusted_p != c.adjusted_p else f"{c.adjusted_p:.3f}",
            number(detectable(c.difference)),
            f"{c.difference.n:,}",
        ]
        for c in foremost
    ]
    headers = ["first − second", "figure", "difference, 95 %", "verdict", "Holm p", "detectable", "documents"]
    return [f"**{title}**", "", *_table(headers, rows), ""]


def _value(found: Estimate | None) -> str:
    return "–" if found is None else f"{number(found.value)} {span(found.low, found.high)}"


def _recipes(facts: Facts) -> list[str]:
    figures: list[tuple[str, dict[str, Estimate | None]]] = []
    for name in facts.objectives:
        if objective_source(facts, name):
            figures.append((name, {c.label: objective_estimate(facts, c, name) for c in facts.contenders}))
    shown = {name for name, _ in figures}
    others = [*main_metrics(facts), *(("judge", aspect) for aspect in aspects(facts))]
    for group, metric in others:
        name = metric if group == "judge" else f"{group}.{metric}"
        if name not in shown:
            figures.append((name, {c.label: estimate(facts, c, group, metric) for c in facts.contenders}))
    if not figures:
        return []
    ranks = places(facts, next(iter(facts.objectives), ""))

    def row(who: Contender) -> list[str]:
        place = ranks.get(who.label)
        return [_text(who.label), place.text() if place else "–", *(_value(of[who.label]) for _, of in figures)]

    foremost = sorted(facts.contenders, key=lambda c: ranks[c.label].rank if c.label in ranks else 0)
    return [
        "**Recipes**",
        "",
        *_table(["recipe", "rank, 95 %", *(name for name, _ in figures)], [row(who) for who in foremost]),
        "",
    ]


def _judges(facts: Facts) -> list[str]:
    """Whom the judges prefer, and what each is worth on questions whose answer is known."""
    found = preferred(facts)
    rows = [
        [
            f"{_text(one.a)} − {_text(one.b)}",
            f"{percent(one.rate)} [{100 * one.rate.low:.0f}, {100 * one.rate.high:.0f}]",
            percent(one.tied),
            f"{one.rate.n:,}",
            f"{one.unparsed:,}",
        ]
        for (a, b), one in found.items()
        if (a, b) < (b, a) or (b, a) not in found
    ]
    headers = ["first − second", "win rate, 95 %", "tied", "prompts", "unparsed"]
    compared = ["**Preferred by the judges**", "", *_table(headers, rows), ""] if rows else []
    lines = [f"- {_text(line)}" for line in quality_lines(facts)]
    return [*compared, *(["**The judges**", "", *lines, ""] if lines else [])]


def _flags(found: Checked) -> list[str]:
    """A line for each severity and gate, with the first of its findings."""
    if not found.flags:
        return [f"Validity gates found nothing; {counted(len(found.unchecked), 'check')} could not be made."]
    groups: dict[tuple[str, str], list[Flag]] = {}
    for flag in found.flags:
        groups.setdefault((flag.severity, flag.gate), []).append(flag)
    lines = []
    for (severity, gate), same in groups.items():
        recipes = listed(list(dict.fromkeys(f.recipe or "all recipes" for f in same))[:_ROWS])
        tasks = listed(list(dict.fromkeys(f.task for f in same if f.task))[:_ROWS])
        where = f"{recipes} on {tasks}" if tasks else recipes
        more = f" (and {len(same) - 1} more like it)" if len(same) > 1 else ""
        lines.append(f"- **{severity}**, {_text(gate)}, {_text(where)}: {_text(same[0].message)}{more}")
    return [f"**Validity: {counted(len(found.flags), 'flag')}**", "", *lines]


def markdown(facts: Facts, found: Checked) -> str:
    """The whole text.

    Args:
        facts: the sweep, finished or not.
        found: what the validity gates said.
    """
    said = words(facts)
    objective = next(iter(facts.objectives), None)
    lines = [f"### {_text(facts.suite)}: {_text(facts.question or 'comparison')}", ""]
    for sentence in said.verdicts:
        lines += [f"**{_text(sentence)}**", ""]
    lines += [_text(" ".join(said.consequences)), "", _text(" ".join(said.basis)), ""]
    if objective is not None and objective_source(facts, objective):
        lines += _comparisons("Recipes against each other", compare_recipes(facts, objective))
        lines += _comparisons("Recipes against the base model", against_base(facts, objective))
    lines += _comparisons("Benchmarks against the base model", against_base(facts))
    lines += _recipes(facts)
    lines += _judges(facts)
    lines += [*_flags(found), ""]
    lines += [f"{_text(facts.sweep)} · data {_text(facts.data)} · target {_text(facts.target or 'none yet')}"]
    return "\n".join(lines) + "\n"
