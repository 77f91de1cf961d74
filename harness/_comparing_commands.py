"""The commands that set models against each other: compare, check, power, and import of what others measured."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness._command_basics import DONE, FAILED, open_store, say
from harness._printable import printable
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.foreign import Imported

__all__ = ["command_check", "command_compare", "command_import", "command_power"]


def command_compare(options: argparse.Namespace) -> int:
    """`harness compare`: the paired table, and its page."""
    from harness.report import compare, write_comparison
    from harness.show import show_versus

    names = [_imported(name, options) for name in options.names]
    versus = compare(open_store(options.results), names)
    show_versus(versus)
    print(f"\nPage: {write_comparison(versus, options.to)}")
    return DONE


def command_check(options: argparse.Namespace) -> int:
    """`harness check`: exit code 1 if a figure regressed against the baseline."""
    from harness.report import against_baseline, regressed
    from harness.show import find_sweep, show_versus

    against = _imported(options.against, options)
    store = open_store(options.results)
    versus = against_baseline(store, find_sweep(store, options.sweep), against)
    show_versus(versus)
    worse = regressed(versus)
    for row in worse:
        d = row.difference
        say(f"regressed: {row.a.label} against {row.b.label} in {row.what}: {d.value:+.4f} [{d.low:.4f}, {d.high:.4f}]")
    if worse:
        return FAILED
    print("\nNo figure regressed; the column detectable says how large a change would have shown in each.")
    return DONE


def command_power(options: argparse.Namespace) -> int:
    """`harness power`: how many documents and seeds would resolve an effect."""
    from harness.report import data_needed
    from harness.show import find_sweep, show_needs

    store = open_store(options.results)
    sweep = find_sweep(store, options.sweep)
    show_needs(sweep, options.effect, data_needed(store, sweep, options.effect))
    return DONE


def _imported(name: str, options: argparse.Namespace) -> str:
    """The name itself, or where it is a folder the sweep that its lm-eval results are in the store."""
    folder = Path(name)
    if not folder.is_dir():
        return name
    return _import_lm_eval(folder, options.results).sweep


def command_import(options: argparse.Namespace) -> int:
    """`harness import`: take what lm-eval measured into the store."""
    found = _import_lm_eval(options.folder, options.results, options.name, allow_mismatch=options.allow_mismatch)
    tasks = ", ".join(f"{task} ({count} documents)" for task, count in found.tasks.items())
    print(printable(f"{found.sweep}: {found.model}, {tasks}{'' if found.new else '; all of it was there already'}"))
    print(f"harness compare {found.sweep} OTHER")
    return DONE


def _import_lm_eval(
    folder: Path, results: Path, name: str | None = None, *, allow_mismatch: bool = False
) -> "Imported":
    from harness._disk import results_problem
    from harness.foreign import import_lm_eval
    from harness.lock import only_one
    from harness.store import Store

    if problem := results_problem(results):
        raise UserError(problem)
    with only_one(results, "harness import"):
        found = import_lm_eval(folder, Store(results), name, allow_mismatch=allow_mismatch)
    for left, why in found.skipped.items():
        say(f"not imported: {left}: {why}")
    for note in found.notes:
        say(note)
    return found
