"""The command line: commands and options, and nothing that takes time to import."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness import __version__
from harness._human_options import add_human
from harness._options import results_option, sweep_option

__all__ = ["build_parser"]

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; a test holds it frozen."""
    parser = argparse.ArgumentParser(
        prog="harness",
        description="Compare post-training methods at equal budgets, with intervals.",
        epilog="Exit codes: 0 done, 1 something failed (what, and where its traceback is), 2 bad input.",
    )
    parser.add_argument("--version", action="version", version=f"harness {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _running(commands)
    _looking(commands)
    _keeping(commands)
    add_human(commands)
    _helping(commands)
    return parser


def _command(commands: "_Commands", name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text)


def _suite_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("suite", metavar="SUITE", help="a suite's YAML file")
    sub.add_argument("--data", metavar="bundled|hub|DIR", help="where documents come from, instead of the suite's")
    sub.add_argument("--set", action="append", default=[], metavar="key=value", help="change a key of the suite")
    sub.add_argument("--skip-unavailable", action="store_true", help="leave out targets that this machine cannot run")
    _trust(sub)
    results_option(sub)


def _trust(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let models run Python code of their own, which can do whatever you can: read it before",
    )


def _sweep_options(sub: argparse.ArgumentParser) -> None:
    _suite_options(sub)
    sub.add_argument("--workers", type=int, help="how much runs together (default: as many as cores)")
    sub.add_argument(
        "--executor", choices=["local", "ray", "slurm"], default="local", help="where it runs (default: local)"
    )
    sub.add_argument("--address", metavar="HOST:PORT|auto", help="the Ray cluster to join (default: a Ray of its own)")
    sub.add_argument(
        "--slurm", action="append", default=[], metavar="key=value", help="an option of sbatch: partition, time, …"
    )
    sub.add_argument("--reports", type=Path, default=Path("reports"), help="where the report goes (default: reports)")
    sub.add_argument(
        "--track",
        action="append",
        default=[],
        choices=["mlflow", "wandb", "trackio"],
        help="copy it into this tracker while it runs, as `harness export` does (TensorBoard: always)",
    )


def _running(commands: "_Commands") -> None:
    plan = _command(
        commands, "plan", "Show what a sweep would do: cells, stages after sharing, what is cached, time and disk."
    )
    _suite_options(plan)
    sweep = _command(commands, "sweep", "Run what is missing of a suite and write its report.")
    _sweep_options(sweep)
    sweep.add_argument("--dry-run", action="store_true", help="only plan")
    retry = _command(commands, "retry", "Run what has failed of a suite's sweep again, and go on with the sweep.")
    _sweep_options(retry)
    retry.add_argument("--recipe", help="only failures of this recipe")
    retry.add_argument("--model", help="only those on this base model")
    retry.add_argument(
        "--kind",
        metavar="failed|infeasible|pruned|crash",
        help="only those of this kind (default: all but tuning trials that were infeasible or pruned)",
    )
    retry.add_argument("--trial", type=int, metavar="N", help="only those of this trial")
    alone = _command(commands, "run-stage", "Run one stage or measurement that failed again, alone, in this process.")
    alone.add_argument(
        "spec", metavar="KEY|FILE", help='its key (`harness sql "SELECT command FROM failures"`) or JSON'
    )
    _trust(alone)
    results_option(alone)


def _looking(commands: "_Commands") -> None:
    status = _command(commands, "status", "Show the sweeps of this results folder and how far they are.")
    results_option(status)
    report = _command(commands, "report", "Write the report of a sweep.")
    sweep_option(report)
    report.add_argument("--reports", type=Path, default=Path("reports"), help="where it goes (default: reports)")
    report.add_argument("--open", action="store_true", help="show it in the browser")
    report.add_argument(
        "--format",
        choices=["html", "md"],
        default="html",
        help="md: Markdown for a pull request, on standard output (default: html)",
    )
    report.add_argument(
        "--check-artifacts", action="store_true", help="read the final models whole and compare their digests"
    )
    results_option(report)
    compare = _command(commands, "compare", "Set models against each other on every figure they share, paired.")
    compare.add_argument(
        "names",
        nargs="+",
        metavar="A",
        help="a recipe (SWEEP/RECIPE), an artifact's key, a whole sweep, or a folder of lm-eval results",
    )
    compare.add_argument(
        "--to", type=Path, default=Path("reports/compare.html"), help="the page (default: reports/compare.html)"
    )
    results_option(compare)
    check = _command(commands, "check", "Compare a suite's sweep with a baseline; exit code 1 if a figure regressed.")
    check.add_argument("sweep", metavar="SUITE|SWEEP", help="a suite's file or name (its latest sweep), or a sweep")
    check.add_argument(
        "--against",
        required=True,
        metavar="BASELINE",
        help="what `harness compare` takes: an earlier sweep, a recipe, …",
    )
    results_option(check)
    power = _command(commands, "power", "Say how many documents and seeds would resolve a difference that matters.")
    sweep_option(power, "the pilot: a suite's file or name, or a sweep (default: latest)")
    power.add_argument(
        "--effect",
        type=float,
        default=0.02,
        help="the difference that would matter, in the figure's unit (default: 0.02)",
    )
    results_option(power)
    publish = _command(
        commands, "publish", "Write a static leaderboard site: entries, ranks, pages, samples, downloads."
    )
    publish.add_argument(
        "sweeps", nargs="*", metavar="SWEEP", help="sweeps or suites (default: the latest sweep of every suite)"
    )
    publish.add_argument(
        "--to",
        required=True,
        metavar="DIR|git:REMOTE#BRANCH|hf:ORG/NAME",
        help="a folder (an earlier site is replaced), a branch (pushed), or a dataset of the Hugging Face Hub "
        "(hf:spaces/ORG/NAME: a static Space); on the last two, entries of other sweeps stay",
    )
    publish.add_argument(
        "--merge",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="an export of others that joins the board",
    )
    publish.add_argument("--no-texts", action="store_true", help="leave out prompts and responses, keep the scores")
    results_option(publish)
    verify = _command(commands, "verify", "Compute every figure of a published site again from its samples.")
    verify.add_argument("export", type=Path, metavar="EXPORT", help="a folder that `harness publish` wrote")
    sql = _command(
        commands, "sql", "Ask the store, read-only: views suites, trials, scores, samples, profiles, training, …"
    )
    sql.add_argument("query", metavar="QUERY", help="one SELECT (DuckDB); 'FROM dictionary' explains the views")
    sql.add_argument(
        "--format", choices=["table", "csv", "json", "parquet"], help="default: table on a terminal, else csv"
    )
    results_option(sql)


def _keeping(commands: "_Commands") -> None:
    export = _command(commands, "export", "Copy a sweep into a tracker, or its searches into Optuna's own storage.")
    export.add_argument("kind", choices=["tensorboard", "mlflow", "wandb", "trackio", "optuna"])
    sweep_option(export)
    export.add_argument(
        "--to",
        metavar="DIR|FILE|URL",
        help="a folder; mlflow: also an SQLite file or a server's URL; optuna: an SQLite file or the URL of a database "
        "(default: below --results, or what MLFLOW_TRACKING_URI, WANDB_DIR or TRACKIO_DIR says)",
    )
    results_option(export)
    taking = _command(commands, "import", "Take results into the store that another harness has made.")
    taking.add_argument("kind", choices=["lm-eval"], help="what made them; lm-eval: `lm_eval run --log_samples`")
    taking.add_argument("folder", type=Path, metavar="DIR", help="the folder it was told to write to (--output_path)")
    taking.add_argument("--name", help="the name they get here (default: the model's)")
    taking.add_argument(
        "--allow-mismatch", action="store_true", help="also samples that do not average to the results' figures"
    )
    results_option(taking)
    gc = _command(commands, "gc", "Show the artifacts that nothing refers to and leftovers, and remove them.")
    gc.add_argument("--superseded", action="store_true", help="also those of sweeps that a changed suite has replaced")
    gc.add_argument("--yes", action="store_true", help="remove them without asking")
    results_option(gc)
    db = _command(commands, "db", "Look after the database.")
    db.add_argument("action", choices=["rebuild"], help="rebuild: make it anew from the shards, which hold every row")
    results_option(db)


def _helping(commands: "_Commands") -> None:
    listing = _command(commands, "list", "List what a suite can name.")
    listing.add_argument("what", choices=["methods", "tasks", "models", "suites"])
    listing.add_argument(
        "--data", default="bundled", metavar="bundled|hub|DIR", help="the source whose tasks are listed"
    )
    doctor = _command(
        commands, "doctor", "Check this machine: hardware, versions, what is reachable, which extras are there."
    )
    doctor.add_argument("--offline", action="store_true", help="do not try to reach the hub")
    _command(commands, "schema", "Print the JSON Schema of a suite, with which editors complete YAML.")
