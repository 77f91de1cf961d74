"""`harness human`: people rate answers. Forms out, ratings in, and what they say."""

import argparse
import math
from typing import TYPE_CHECKING

from harness._command_basics import DONE, open_store, say
from harness._printable import printable

if TYPE_CHECKING:
    from harness.human import HumanFigures, JudgeBeside, Rated, RaterShown
    from harness.stats import Interval, Slope, Unknown

__all__ = ["command_human"]


def command_human(options: argparse.Namespace) -> int:
    """`harness human`: the action that was asked for."""
    return {"create": _create, "import": _import, "report": _report}[options.action](options)


def _create(options: argparse.Namespace) -> int:
    from harness.human import Design, create_forms, parse_criteria
    from harness.show import find_sweep

    design = Design(
        criteria=parse_criteria(options.criteria),
        prompts=options.prompts,
        raters=options.raters,
        overlap=options.overlap,
        checks=options.checks,
        pairs=options.pairs,
        together=options.together,
        sampling=options.sample,
        seed=options.seed,
    )
    store = open_store(options.results)
    made = create_forms(
        store,
        find_sweep(store, options.sweep),
        design,
        options.to,
        formats=_listed(options.format),
        recipes=_listed(options.recipes),
        source=options.answers_from,
        model=options.model,
    )
    for file in made.files:
        print(printable(str(file)))
    print(f"{made.prompts} prompts, {made.shared} of them for every rater; {max(made.items)} items a form at most.")
    print(printable(f"Whose answers they are: {made.key}. Keep that file here, and give only the forms away."))
    print("What comes back: harness human import FILES")
    return DONE


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _import(options: argparse.Namespace) -> int:
    from harness.human import import_ratings

    for one in import_ratings(open_store(options.results), options.files, replace=options.replace):
        again = ", in place of earlier answers" if one.replaced else ""
        print(printable(f"{one.file}: {one.rater}, {one.items} items of {one.sweep}{again}"))
        if one.failed:
            say(
                f"{one.rater} failed {one.failed} of {one.checks} attention checks: kept, but left out of the figures "
                "(harness human report --failed-checks counts them)"
            )
    return DONE


def _report(options: argparse.Namespace) -> int:
    from harness.human import judges_beside, ratings_of
    from harness.show import find_sweep

    store = open_store(options.results)
    sweep = find_sweep(store, options.sweep)
    figures = ratings_of(store, sweep, failed=options.failed_checks)
    if figures is None:
        print(f"{sweep}: nobody has rated it yet; harness human create {sweep} makes forms.")
        return DONE
    _show(sweep, figures, judges_beside(store, sweep, failed=options.failed_checks))
    return DONE


def _show(sweep: str, figures: "HumanFigures", judges: "list[JudgeBeside]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    # Figures cannot be read folded: a narrow terminal wraps their lines instead.
    console.width = max(console.width, 120)

    def show(title: str, headers: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in rows:
            table.add_row(*(escape(printable(cell)) for cell in row))
        if rows:
            console.print(table, "")

    console.print(printable(f"{sweep}: what people say (1 to 7, intervals by prompt and rater)"), markup=False)
    several = len({r.model for r in figures.rated}) > 1
    show(
        "Ratings",
        ["criterion", "recipe", "mean", "95 % interval", "ratings", "prompts", "raters"],
        [
            [r.criterion, f"{r.recipe}@{r.model}" if several else r.recipe, *_cells(r.interval), *_counted(r)]
            for r in figures.rated
        ],
    )
    show(
        "Preferences (a tie counts half)",
        ["pair", "first preferred", "95 % interval", "votes", "ties", "prompts", "raters"],
        [
            [
                f"{p.a} over {p.b}" + (f" on {p.model}" if several else ""),
                *_cells(p.win),
                *map(str, (p.win.n, p.ties, p.prompts, p.raters)),
            ]
            for p in figures.preferred
        ],
    )
    show(
        "Agreement of the raters (Krippendorff's alpha, ordinal)",
        ["what", "alpha", "95 % interval"],
        [[name, *_cells(found)] for name, found in figures.agreement.items()],
    )
    show(
        "Judges beside people (same order: of answers to one prompt that people rate differently; 0.5 is chance)",
        ["criterion", "judge", "same order, 95 %", "Spearman, 95 %", "answers"],
        [
            [
                j.criterion,
                j.judge,
                *map(" ".join, map(_cells, (j.agreement.alike, j.agreement.spearman))),
                str(j.answers),
            ]
            for j in judges
        ],
    )
    show(
        "Raters (distance from the median of the others, how much more than theirs; drift from first to last)",
        ["rater", "checks failed", "ratings", "distance", "more", "drift", ""],
        [[r.rater, f"{r.failed} of {r.checks}", *_rater_cells(r), _remark(r)] for r in figures.raters],
    )
    if figures.left_out:
        console.print(f"{figures.left_out} of {len(figures.raters)} raters are in no figure: they failed a check.")
    if {r.raters for r in figures.rated} == {1}:
        console.print("One rater: the intervals hold for this one alone, and say nothing of others.")


def _counted(rated: "Rated") -> list[str]:
    return [str(rated.interval.n), str(rated.prompts), str(rated.raters)]


def _cells(found: "Interval | Unknown") -> list[str]:
    from harness.stats import Unknown

    if isinstance(found, Unknown):
        return ["–", found.reason]
    bounds = "unknown" if math.isnan(found.low) else f"[{found.low:.2f}, {found.high:.2f}]"
    return [f"{found.value:.2f}", bounds]


def _rater_cells(rater: "RaterShown") -> list[str]:
    if (found := rater.figures) is None:
        return ["–", "–", "–", "–"]
    distance = "–" if found.deviation is None else f"{found.deviation:.2f}"
    return [str(found.ratings), distance, _tested(found.excess, found.excess_p), _tested(found.drift, found.drift_p)]


def _tested(found: "Interval | Slope | Unknown", p: float | None) -> str:
    from harness.stats import Unknown

    if isinstance(found, Unknown):
        return "–"
    return f"{found.value:+.2f}" + ("" if p is None or math.isnan(p) else f" (p {p:.2g})")


def _remark(rater: "RaterShown") -> str:
    if not rater.counted:
        return "left out: failed a check"
    said = [("failed a check", rater.failed > 0)]
    if rater.figures is not None:
        said += [("outlier", rater.figures.outlier), ("drift", rater.figures.drifts)]
    return ", ".join(word for word, is_so in said if is_so)
