"""`harness human`: people rate answers. Forms out, ratings in, and what they say."""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from harness._command_basics import DONE, open_store, say
from harness._printable import printable

if TYPE_CHECKING:
    from harness.human import HumanFigures, Rated, RaterShown
    from harness.stats import Interval

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["add_human", "command_human"]


def add_human(commands: "_Commands") -> None:
    """The command with its three actions."""
    text = "Have people rate answers: make forms, take what they send back, show what they say."
    human = commands.add_parser("human", help=text, description=text)
    actions = human.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_create(actions)
    text = "Take the files that raters sent back into the store: all of them, or if one is refused none."
    taking = actions.add_parser("import", help=text, description=text)
    taking.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="what a form saved, or Label Studio's JSON export"
    )
    taking.add_argument("--replace", action="store_true", help="a rater's newer answers take the place of earlier ones")
    _places(taking)
    text = "Show what people say of a sweep: means, preferences, agreement, raters."
    report = actions.add_parser("report", help=text, description=text)
    _sweep(report)
    report.add_argument("--failed-checks", action="store_true", help="count raters who failed an attention check too")
    _places(report)


def _add_create(actions: "_Commands") -> None:
    text = "Make rating forms of a sweep's final answers, anonymised and in random order."
    create = actions.add_parser("create", help=text, description=text)
    _sweep(create)
    create.add_argument("--recipes", default="", metavar="A,B", help="whose answers (default: all recipes)")
    create.add_argument("--model", help="the base model, where the sweep has several")
    create.add_argument("--answers-from", choices=["judge", "gold"], help="default: judge where it was measured")
    create.add_argument("--prompts", type=int, default=40, help="prompts in all at most (default: 40)")
    create.add_argument(
        "--sample",
        choices=["stratified", "differing"],
        default="stratified",
        help="which prompts; differing: those on which recipes' scores are furthest apart (default: stratified)",
    )
    create.add_argument("--raters", type=int, default=3, help="raters, one form each (default: 3)")
    create.add_argument(
        "--overlap", type=float, default=0.3, help="share of prompts that every rater gets (default: 0.3)"
    )
    create.add_argument(
        "--criteria",
        default="helpfulness,harmlessness",
        metavar="A,B",
        help="helpfulness, harmlessness, honesty, clarity, overall, or name=words at 1|words at 7 "
        "(default: helpfulness,harmlessness)",
    )
    create.add_argument("--checks", type=int, default=3, help="attention checks in each form (default: 3)")
    create.add_argument(
        "--pairs", action=argparse.BooleanOptionalAction, default=True, help="ask which of two is preferred, too"
    )
    create.add_argument("--together", type=int, default=3, help="answers shown together, 1 to 4 (default: 3)")
    create.add_argument("--seed", type=int, default=0, help="of sampling and orders (default: 0)")
    create.add_argument(
        "--format", default="page", metavar="page,json,label-studio", help="what is written (default: page)"
    )
    create.add_argument("-o", "--to", type=Path, metavar="DIR", help="where (default: forms/SWEEP-STUDY)")
    _places(create)


def _sweep(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "sweep", nargs="?", metavar="SUITE|SWEEP", help="a suite's file or name, or a sweep (default: the latest)"
    )


def _places(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--results", type=Path, default=Path("results"), help="artifacts and store (default: results)")


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
