"""The command line of `harness human`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness._options import results_option, sweep_option

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["add_human"]


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
    results_option(taking)
    text = "Show what people say of a sweep: means, preferences, agreement, raters."
    report = actions.add_parser("report", help=text, description=text)
    sweep_option(report)
    report.add_argument("--failed-checks", action="store_true", help="count raters who failed an attention check too")
    results_option(report)


def _add_create(actions: "_Commands") -> None:
    text = "Make rating forms of a sweep's final answers, anonymised and in random order."
    create = actions.add_parser("create", help=text, description=text)
    sweep_option(create)
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
    results_option(create)
