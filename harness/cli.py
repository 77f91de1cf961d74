"""The commands. Heavy libraries are imported inside them, so that `harness --help` is instant."""

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness.errors import StorageError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.plan import Plan
    from harness.store import Format, Store
    from harness.suite import Suite

__all__ = ["build_parser", "main"]

_DONE, _FAILED, _BAD_INPUT, _INTERRUPTED = 0, 1, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; a test holds it frozen."""
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Compare post-training methods at equal budgets, with intervals.",
        epilog="Exit codes: 0 done, 1 something failed (what, and where its traceback is), 2 bad input.",
    )
    parser.add_argument("--version", action="version", version=f"harness {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    def places(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--results", type=Path, default=Path("results"), help="artifacts and store (default: results)")

    def suite_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("suite", metavar="SUITE", help="a suite's YAML file")
        sub.add_argument("--data", metavar="bundled|hub|DIR", help="where documents come from, instead of the suite's")
        sub.add_argument("--set", action="append", default=[], metavar="key=value", help="change a key of the suite")
        sub.add_argument(
            "--skip-unavailable", action="store_true", help="leave out targets that this machine cannot run"
        )
        places(sub)

    plan = command("plan", "Show what a sweep would do: cells, stages after sharing, what is cached, time and disk.")
    suite_options(plan)
    sweep = command("sweep", "Run what is missing of a suite and write its report.")
    suite_options(sweep)
    sweep.add_argument("--dry-run", action="store_true", help="only plan")
    sweep.add_argument("--workers", type=int, help="worker processes (default: as many as cores)")
    sweep.add_argument("--reports", type=Path, default=Path("reports"), help="where the report goes (default: reports)")
    alone = command("run-stage", "Run one stage or measurement that failed again, alone, in this process.")
    alone.add_argument(
        "spec", metavar="KEY|FILE", help='its key (`harness sql "SELECT command FROM failures"`) or JSON'
    )
    places(alone)
    status = command("status", "Show the sweeps of this results folder and how far they are.")
    places(status)
    report = command("report", "Write the report of a sweep.")
    report.add_argument(
        "sweep", nargs="?", metavar="SUITE|SWEEP", help="a suite's file or name, or a sweep (default: the latest)"
    )
    report.add_argument("--reports", type=Path, default=Path("reports"), help="where it goes (default: reports)")
    places(report)
    sql = command("sql", "Ask the store, read-only: views suites, trials, scores, samples, profiles, training, …")
    sql.add_argument("query", metavar="QUERY", help="one SELECT (DuckDB); 'FROM dictionary' explains the views")
    sql.add_argument(
        "--format", choices=["table", "csv", "json", "parquet"], help="default: table on a terminal, else csv"
    )
    places(sql)
    listing = command("list", "List what a suite can name.")
    listing.add_argument("what", choices=["methods", "tasks", "models", "suites"])
    listing.add_argument(
        "--data", default="bundled", metavar="bundled|hub|DIR", help="the source whose tasks are listed"
    )
    doctor = command("doctor", "Check this machine: hardware, versions, what is reachable, which extras are there.")
    doctor.add_argument("--offline", action="store_true", help="do not try to reach the hub")
    command("schema", "Print the JSON Schema of a suite, with which editors complete YAML.")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = build_parser().parse_args(arguments)
    # Nothing here reports home, and a tokenizer's threads do not survive a fork.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A console script does not look in the current folder, where a user's own method (`my_method:Class`) lies.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return _COMMANDS[options.command](options)
    except UserError as error:
        print(f"harness: {error}", file=sys.stderr)
        return _BAD_INPUT
    except StorageError as error:
        print(f"harness: {error}", file=sys.stderr)
        return _FAILED
    except KeyboardInterrupt:
        again = shlex.join(["harness", *(sys.argv[1:] if arguments is None else arguments)])
        print(f"harness: interrupted; what is finished is kept, the same command goes on: {again}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has gone (`harness sql … | head`); what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _DONE
    except Exception as error:  # noqa: BLE001  # the last line of defence: the traceback goes to a file, not over the user
        return _unexpected(error, getattr(options, "results", Path("results")))


def _unexpected(error: Exception, results: Path) -> int:
    results.mkdir(parents=True, exist_ok=True)
    file = results / "traceback.log"
    file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    for cause in causes:
        print(f"harness: {type(cause).__name__}: {cause}", file=sys.stderr)
    print(f"harness: this is a fault of the harness; its traceback is in {file}", file=sys.stderr)
    return _FAILED


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def _store(results: Path) -> "Store":
    """The store, up to date with its shards; nothing is made where nothing was ever run."""
    from harness.store import Store

    store = Store(results)
    if store.shards.is_dir():
        store.ingest()
    return store


def _load(options: argparse.Namespace) -> "Suite":
    from harness.suite import load_suite

    overrides = list(options.set)
    if options.data is not None:
        import json

        # As an override it is part of the sweep's identity: other documents are another sweep.
        overrides.append(f"data={json.dumps(options.data)}")
    return load_suite(options.suite, overrides)


def _plan(options: argparse.Namespace) -> "Plan":
    from harness.history import known_stages
    from harness.plan import disk_problem, gather_facts, make_plan

    suite = _load(options)
    console = _console()
    with console.status("planning") as status:
        facts = gather_facts(suite, say=status.update, skip_unavailable=options.skip_unavailable)
        _store(options.results)
        plan = make_plan(facts.suite, facts, options.results, known_stages(facts, options.results))
    for name, reason in plan.skipped.items():
        print(f"harness: skipped: target {name}: {reason}", file=sys.stderr)
    if problem := disk_problem(plan, options.results):
        raise UserError(problem)
    return plan


def _command_plan(options: argparse.Namespace) -> int:
    from harness.show import show_plan

    show_plan(_plan(options))
    return _DONE


def _command_sweep(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _command_plan(options)
    import asyncio

    from harness.report import answer, write_report
    from harness.running import run_plan
    from harness.store import Store

    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers: expected at least 1, got {options.workers}")
    plan = _plan(options)
    outcome = asyncio.run(run_plan(plan, options.results, options.workers))
    store = Store(options.results)
    page = write_report(store, plan.sweep, options.reports)
    print(answer(store, plan.sweep))
    print(f"\nReport: {page}")
    for missing in outcome.not_done:
        print(f"harness: not done: {missing}", file=sys.stderr)
    if outcome.computed == 0:
        print("Nothing was left to compute.")
    for failure in outcome.failures:
        print(f"harness: failed: {failure}", file=sys.stderr)
    if outcome.failures:
        where = (
            f"harness sql \"SELECT recipe, trial, seed, command, traceback FROM failures WHERE sweep = '{plan.sweep}'\""
        )
        print(f"harness: tracebacks, and the command that runs each alone: {where}", file=sys.stderr)
        print(f"harness: to run them again and go on: harness retry {options.suite}", file=sys.stderr)
        return _FAILED
    return _DONE


def _command_run_stage(options: argparse.Namespace) -> int:
    from harness.alone import run_alone

    return _DONE if run_alone(options.spec, options.results) else _FAILED


def _command_status(options: argparse.Namespace) -> int:
    from harness.show import show_status

    show_status(_store(options.results))
    return _DONE


def _command_report(options: argparse.Namespace) -> int:
    from harness.report import answer, write_report
    from harness.show import find_sweep

    store = _store(options.results)
    sweep = find_sweep(store, options.sweep)
    page = write_report(store, sweep, options.reports)
    print(answer(store, sweep))
    print(f"\nReport: {page}")
    return _DONE


def _command_sql(options: argparse.Namespace) -> int:
    from harness.store import run_sql

    terminal = sys.stdout.isatty()
    form: Format = options.format or ("table" if terminal else "csv")
    if form == "parquet" and terminal:
        raise UserError("--format parquet writes bytes: redirect them to a file")
    _store(options.results)
    sys.stdout.buffer.write(run_sql(options.results, options.query, form))
    sys.stdout.flush()
    return _DONE


def _command_list(options: argparse.Namespace) -> int:
    from harness.show import show_list

    show_list(options.what, options.data)
    return _DONE


def _command_doctor(options: argparse.Namespace) -> int:
    from rich.console import Console

    from harness.doctor import diagnose, print_doctor

    print_doctor(Console(), diagnose(network=not options.offline))
    return _DONE


def _command_schema(options: argparse.Namespace) -> int:
    import json

    from harness.suite import suite_json_schema

    del options
    print(json.dumps(suite_json_schema(), indent=2, ensure_ascii=False))
    return _DONE


_COMMANDS = {
    "plan": _command_plan,
    "sweep": _command_sweep,
    "run-stage": _command_run_stage,
    "status": _command_status,
    "report": _command_report,
    "sql": _command_sql,
    "list": _command_list,
    "doctor": _command_doctor,
    "schema": _command_schema,
}


if __name__ == "__main__":
    sys.exit(main())
