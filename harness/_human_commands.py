"""`harness human`: people rate answers. Forms out, ratings in, and what they say."""

import argparse
import math
from typing import TYPE_CHECKING

from harness._command_basics import DONE, open_store, say
from harness._printable import printable

if TYPE_CHECKING:
    from harness.human import HumanFigures, Rated, RaterShown
    from harness.stats import Interval

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
    from harness.human import ratings_of
    from harness.show import find_sweep

    store = open_store(options.results)
    sweep = find_sweep(store, options.sweep)
    figures = ratings_of(store, sweep, failed=options.failed_checks)
    if figures is None:
        print(f"{sweep}: nobody has rated it yet; harness human create {sweep} makes forms.")
        return DONE
    _show(sweep, figures)
    return DONE


def _show(sweep: str, figures: "HumanFigures") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)

    def show(title: str, headers: list[str], rows: list[list[str]]) -> None:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in rows:
            table.add_row(*(escape(printable(cell)) for cell in row))
        if rows:
            console.print(table, "")

    console.print(printable(f"{sweep}: what people say (1 to 7, intervals by prompt and rater)"), markup=False)
    models = len({r.model for r in figures.rated}) > 1
    show(
        "Ratings",
        ["criterion", "recipe", "mean", "95 % interval", "ratings", "prompts", "raters"],
        [
            [r.criterion, f"{r.recipe}@{r.model}" if models else r.recipe, *_cells(r.interval), *_counted(r)]
            for r in figures.rated
        ],
    )
    show(
        "Preferences (a tie counts half)",
        ["pair", "first preferred", "95 % interval", "votes", "ties", "raters"],
        [[f"{p.a} over {p.b}", *_cells(p.win), str(p.win.n), str(p.ties), str(p.raters)] for p in figures.preferred],
    )
    show(
        "Agreement (Krippendorff's alpha, ordinal)",
        ["what", "alpha"],
        [[name, "–" if value is None else f"{value:.2f}"] for name, value in figures.agreement.items()],
    )
    show(
        "Raters",
        ["rater", "checks failed", "marks", "above the others", "late minus early", ""],
        [[r.rater, f"{r.failed} of {r.checks}", *_rater_cells(r), _remark(r)] for r in figures.raters],
    )
    if figures.left_out:
        console.print(f"{figures.left_out} of {len(figures.raters)} raters are in no figure: they failed a check.")


def _counted(rated: "Rated") -> list[str]:
    return [str(rated.interval.n), str(rated.prompts), str(rated.raters)]


def _cells(found: "Interval") -> list[str]:
    bounds = "unknown" if math.isnan(found.low) else f"[{found.low:.2f}, {found.high:.2f}]"
    return [f"{found.value:.2f}", bounds]


def _rater_cells(rater: "RaterShown") -> list[str]:
    def one(value: float | None, p: float | None) -> str:
        return "–" if value is None else f"{value:+.2f}" + ("" if p is None else f" (p {p:.2g})")

    if (found := rater.figures) is None:
        return ["–", "–", "–"]
    return [str(found.marks), one(found.severity, found.severity_p), one(found.drift, found.drift_p)]


def _remark(rater: "RaterShown") -> str:
    if rater.figures is None:
        return "left out: failed a check"
    said = (
        ("outlier", rater.figures.outlying),
        ("drift", rater.figures.drifting),
        ("failed a check", rater.failed > 0),
    )
    return ", ".join(word for word, is_so in said if is_so)
