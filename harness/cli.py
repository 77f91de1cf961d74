"""The commands. Heavy libraries are imported inside them, so that `harness --help` is instant."""

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness._command_basics import BAD_INPUT, DONE, FAILED, INTERRUPTED, open_store, say
from harness._commandline import build_parser
from harness._comparing_commands import command_check, command_compare, command_import, command_power
from harness._export_commands import command_export
from harness._human_commands import command_human
from harness._printable import printable
from harness._secrets import redacted
from harness.errors import StorageError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.plan import Plan
    from harness.store import Format
    from harness.suite import Suite

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = build_parser().parse_args(arguments)
    # Nothing here reports home, and a tokenizer's threads do not survive a fork.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # A console script does not look in the current folder, where a user's own method (`my_method:Class`) lies.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    if getattr(options, "trust_remote_code", False):
        os.environ["HARNESS_TRUST_REMOTE_CODE"] = "1"
    try:
        return _COMMANDS[options.command](options)
    except UserError as error:
        say(str(error))
        return BAD_INPUT
    except StorageError as error:
        say(str(error))
        return FAILED
    except KeyboardInterrupt:
        again = shlex.join(["harness", *(sys.argv[1:] if arguments is None else arguments)])
        say(f"interrupted; what is finished is kept, the same command goes on: {again}")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has gone (`harness sql … | head`); what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:  # noqa: BLE001  # the last line of defence: the traceback goes to a file, not over the user
        return _unexpected(error, getattr(options, "results", Path("results")))


def _unexpected(error: Exception, results: Path) -> int:
    file, text = results / "traceback.log", redacted("".join(traceback.format_exception(error)))
    try:
        results.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as refused:
        say(f"{file} could not be written: {refused}\n{text}")
    causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    for cause in causes:
        say(f"{type(cause).__name__}: {cause}")
    say(f"this is a fault of the harness; its traceback is in {file}")
    return FAILED


def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def _load(options: argparse.Namespace) -> "Suite":
    from harness.suite import load_suite

    overrides = list(options.set)
    if options.data is not None:
        import json

        # As an override it is part of the sweep's identity: other documents are another sweep.
        overrides.append(f"data={json.dumps(options.data)}")
    return load_suite(options.suite, overrides)


def _plan(options: argparse.Namespace) -> "Plan":
    from harness._disk import results_problem
    from harness.outlook import look_ahead
    from harness.plan import disk_problem, gather_facts, make_plan

    suite = _load(options)
    if problem := results_problem(options.results):
        raise UserError(problem)
    from rich.markup import escape

    console = _console()
    with console.status("planning") as status:

        def show(text: str) -> None:
            # The name of a folder may look like markup.
            status.update(escape(printable(text)))

        elsewhere = getattr(options, "executor", "local") != "local"
        facts = gather_facts(suite, say=show, skip_unavailable=options.skip_unavailable, elsewhere=elsewhere)
        open_store(options.results)
        plan = make_plan(facts.suite, facts, options.results, look_ahead(facts, options.results))
    for name, reason in plan.skipped.items():
        say(f"skipped: target {name}: {reason}")
    if problem := disk_problem(plan, options.results):
        raise UserError(problem)
    return plan


def _command_plan(options: argparse.Namespace) -> int:
    from harness.show import show_plan

    show_plan(_plan(options))
    return DONE


def _command_sweep(options: argparse.Namespace) -> int:
    if options.dry_run:
        return _command_plan(options)
    return _run(options, _sweep_plan(options))


def _sweep_plan(options: argparse.Namespace) -> "Plan":
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers: expected at least 1, got {options.workers}")
    if options.track:
        from harness.trackers import refuse_missing

        refuse_missing(options.track)
    return _plan(options)


def _command_retry(options: argparse.Namespace) -> int:
    from harness.retry import close_unused, find_ended, reopen
    from harness.store import Store

    plan, store = _sweep_plan(options), Store(options.results)
    wanted = {name: getattr(options, name) for name in ("recipe", "model", "kind", "trial")}
    ended = find_ended(store, plan, **wanted)
    if not ended:
        print(f"Nothing to retry in {plan.sweep}.")
        return DONE
    for one in ended:
        say(f"again: {one.words()}")
    code = _run(options, plan, lambda: reopen(store, plan.sweep, ended))
    close_unused(store, plan.sweep, ended)
    return code


def _run(options: argparse.Namespace, plan: "Plan", prepare: Callable[[], None] = lambda: None) -> int:
    import asyncio

    from harness.report import answer, validity, write_report
    from harness.running import run_plan
    from harness.store import Store

    outcome = asyncio.run(
        run_plan(
            plan,
            options.results,
            options.workers,
            prepare,
            executor=options.executor,
            address=options.address,
            options=_slurm_options(options.slurm),
            track=options.track,
        )
    )
    store = Store(options.results)
    found = validity(store, plan.sweep)
    page = write_report(store, plan.sweep, options.reports, found=found)
    print(printable(answer(store, plan.sweep)))
    print(f"\nReport: {page}")
    for missing in outcome.not_done:
        say(f"not done: {missing}")
    if outcome.computed == 0:
        print("Nothing was left to compute.")
    for failure in outcome.failures:
        say(f"failed: {failure}")
    if outcome.failures:
        where = (
            f"harness sql \"SELECT recipe, trial, seed, command, traceback FROM failures WHERE sweep = '{plan.sweep}'\""
        )
        say(f"tracebacks, and the command that runs each alone: {where}")
        say(f"to run them again and go on: harness retry {options.suite}")
        return FAILED
    return DONE


def _slurm_options(given: Sequence[str]) -> dict[str, str]:
    if wrong := [one for one in given if "=" not in one]:
        raise UserError(f"--slurm: expected key=value (partition=gpu, time=4:00:00), got {wrong[0]}")
    return dict(one.split("=", 1) for one in given)


def _command_run_stage(options: argparse.Namespace) -> int:
    from harness.alone import run_alone

    return DONE if run_alone(options.spec, options.results) else FAILED


def _command_gc(options: argparse.Namespace) -> int:
    from harness.gc import find_garbage, remove
    from harness.lock import only_one
    from harness.show import show_garbage

    if not options.results.is_dir():
        raise UserError(f"no results folder {options.results}; name it with --results")
    with only_one(options.results, "harness gc"):
        garbage = find_garbage(open_store(options.results), superseded=options.superseded)
        if not garbage:
            print("Nothing to remove.")
            return DONE
        show_garbage(garbage)
        if not options.yes and not (sys.stdin.isatty() and sys.stdout.isatty()):
            print("Nothing was removed: add --yes to remove them.")
            return DONE
        if not options.yes and input("Remove them? Rows in the store stay. [y/N] ").strip().lower() not in ("y", "yes"):
            print("Nothing was removed.")
            return DONE
        for one in garbage:
            remove(one)
    print(f"Removed {len(garbage)}.")
    return DONE


def _command_db(options: argparse.Namespace) -> int:
    from harness.lock import only_one
    from harness.store import TABLES, Store

    store = Store(options.results)
    if not store.shards.is_dir():
        raise UserError(
            f"no shards under {options.results}, from which a database is made; name a folder with --results"
        )
    with only_one(options.results, "harness db rebuild"):
        said = store.repair()
        counts = " UNION ALL ".join(f"SELECT count(*) AS n FROM raw.{name}" for name in TABLES)
        rows = store.query(f"SELECT sum(n)::BIGINT AS n FROM ({counts})")["n"][0]
    for line in said:
        print(line)
    print(f"{store.database}: made anew from the shards, {rows} rows.")
    return DONE


def _command_status(options: argparse.Namespace) -> int:
    from harness.show import show_status

    show_status(open_store(options.results))
    return DONE


def _command_report(options: argparse.Namespace) -> int:
    from harness.report import answer, report_markdown, validity, write_report
    from harness.show import find_sweep

    store = open_store(options.results)
    sweep = find_sweep(store, options.sweep)
    found = validity(store, sweep, artifacts=options.check_artifacts)
    if options.format == "md":
        if options.open:
            raise UserError("--open shows a page in a browser; --format md writes text to standard output")
        print(printable(report_markdown(store, sweep, found=found)), end="")
        return DONE
    page = write_report(store, sweep, options.reports, found=found)
    print(printable(answer(store, sweep)))
    print(f"\nReport: {page}")
    if options.open:
        _open(page)
    return DONE


def _open(page: Path) -> None:
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        say(f"no browser could be started; open {page} yourself")


def _command_publish(options: argparse.Namespace) -> int:
    from harness.publish import publish_to

    texts = not options.no_texts
    found = publish_to(open_store(options.results), options.sweeps, options.to, merge=options.merge, texts=texts)
    kept = f" ({found.kept} of sweeps that were there already)" if found.kept else ""
    what = f"{found.entries} entries{kept}, {found.figures} figures"
    if not found.changed:
        print(printable(f"{found.place}: {what}; it is all there already, nothing was sent"))
    elif options.to.startswith(("git:", "hf:")):
        print(printable(f"{found.place}: {what}; sent"))
    else:
        print(printable(f"{found.place}: {what}; open index.html, or put it on any host"))
    if found.conflicts:
        say(f"{found.conflicts} entries are in conflict with others of the same name; the board lists both")
    return DONE


def _command_verify(options: argparse.Namespace) -> int:
    from harness.publish import verify

    found = verify(options.export)
    for one in found:
        print(printable(str(one)))
    print(
        f"{options.export}: {len(found)} differ."
        if found
        else f"{options.export}: every figure is what its samples give."
    )
    return FAILED if found else DONE


def _command_sql(options: argparse.Namespace) -> int:
    from harness.store import run_sql

    terminal = sys.stdout.isatty()
    form: Format = options.format or ("table" if terminal else "csv")
    if form == "parquet" and terminal:
        raise UserError("--format parquet writes bytes: redirect them to a file")
    open_store(options.results)
    sys.stdout.buffer.write(run_sql(options.results, options.query, form))
    sys.stdout.flush()
    return DONE


def _command_list(options: argparse.Namespace) -> int:
    from harness.show import show_list

    show_list(options.what, options.data)
    return DONE


def _command_doctor(options: argparse.Namespace) -> int:
    from rich.console import Console

    from harness.doctor import diagnose, print_doctor

    print_doctor(Console(), diagnose(network=not options.offline))
    return DONE


def _command_schema(options: argparse.Namespace) -> int:
    import json

    from harness.suite import suite_json_schema

    del options
    print(json.dumps(suite_json_schema(), indent=2, ensure_ascii=False))
    return DONE


_COMMANDS = {
    "plan": _command_plan,
    "sweep": _command_sweep,
    "retry": _command_retry,
    "run-stage": _command_run_stage,
    "gc": _command_gc,
    "db": _command_db,
    "status": _command_status,
    "report": _command_report,
    "compare": command_compare,
    "check": command_check,
    "power": command_power,
    "publish": _command_publish,
    "verify": _command_verify,
    "import": command_import,
    "export": command_export,
    "human": command_human,
    "sql": _command_sql,
    "list": _command_list,
    "doctor": _command_doctor,
    "schema": _command_schema,
}


if __name__ == "__main__":
    sys.exit(main())
