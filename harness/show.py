"""What the commands print: plans, sweeps, and lists of what a suite can name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

from harness._printable import printable
from harness.data import DataSource
from harness.errors import UserError
from harness.gc import Garbage
from harness.method import find_method, method_names
from harness.models import BUNDLED_MODELS, model_problem
from harness.plan import Estimate, Plan
from harness.report._needs import SEEDS, Need
from harness.report._versus import Versus
from harness.report._versus_page import HEADERS, cells
from harness.store import Store
from harness.suite import load_suite

__all__ = ["find_sweep", "show_garbage", "show_list", "show_needs", "show_plan", "show_status", "show_versus"]


_LATEST_FIRST = """
    JOIN (SELECT sweep, max((batch, batch_row)) AS last FROM raw.sweep_events GROUP BY sweep) USING (sweep)
    ORDER BY last DESC
"""
"""By the order of writing: the clock may have been set back since."""


class _Table(Table):
    """One whose cells cannot drive the terminal: names come from suites and from the store."""

    def add_row(self, *cells: RenderableType | None, **how: Any) -> None:  # noqa: ANN401  # as in the base class
        super().add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in cells), **how)


def _table(*columns: str) -> Table:
    table = _Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show_plan(plan: Plan) -> None:
    """Cells, stages after sharing, what is cached, and the cost, 'unknown' where it is."""
    console = Console()
    suite, estimate = plan.suite, plan.estimate
    console.print(printable(f"{plan.sweep}: {suite.question}"), markup=False)
    # The columns that tell something, so that the table stays narrow.
    models = ["model"] if len(suite.models) > 1 else []
    cells = _table("recipe", *models, "trials", "new", "cached", "undecided", "searched", "steps")
    for cell in plan.cells:
        what = (cell.recipe, *([cell.model] if models else []), str(cell.trials or "-"))
        counts = map(str, (cell.new, cell.cached, cell.undecided))
        searched = ", ".join(cell.searched) or "nothing: its settings are fixed"
        cells.add_row(*map(escape, what), *counts, *map(escape, (searched, " → ".join(cell.steps))))
    console.print(cells)
    seconds = estimate.seconds
    time = "unknown" if seconds is None else f"{seconds:.0f} s of training on one worker"
    disk = "unknown" if estimate.disk_gb is None else f"at most {estimate.disk_gb:.1f} GB of artifacts"
    facts = _table("", "")
    rows = [
        ("models", ", ".join(suite.models)),
        ("stages after sharing", str(estimate.stages)),
        ("new", str(estimate.new)),
        ("cached already", str(estimate.cached)),
        ("undecided", _undecided(estimate.undecided)),
        ("measurements", _measurements(estimate)),
        ("noise floor", _repeats(suite.measure.noise_floor, estimate)),
        ("orphaned", _orphaned(estimate)),
        ("seeds", ", ".join(map(str, suite.seeds))),
        ("targets", ", ".join(t.name for t in suite.targets)),
        ("data", plan.facts.source.label()),
        ("training precision", plan.facts.precision),
        ("expected time", time),
        ("expected disk", disk),
    ]
    for name, value in rows:
        facts.add_row(name, escape(value))
    console.print(facts)


def _undecided(count: int) -> str:
    return f"at most {count}, whose settings the search has yet to suggest" if count else "0"


def _measurements(estimate: Estimate) -> str:
    more = ", and those of what is undecided" if estimate.undecided else ""
    return f"{estimate.measured} of {estimate.measurements} cached{more}"


def _repeats(wanted: bool, estimate: Estimate) -> str:
    if not wanted:
        return "not measured (measure.noise_floor)"
    return f"{estimate.repeats} of the measurements are of the base model a second time"


def _orphaned(estimate: Estimate) -> str:
    if not estimate.orphaned:
        return "0"
    some = ", of which what is undecided may use some" if estimate.undecided else ""
    size = f"{estimate.orphaned_gb:.3f}".rstrip("0").rstrip(".")
    return (
        f"{estimate.orphaned} artifacts ({size} GB) of earlier versions of this suite{some}; once this one has run, "
        "harness gc --superseded removes them"
    )


def show_status(store: Store) -> None:
    """The sweeps of this store: state, trials by state, failures."""
    console = Console()
    sweeps = store.query(f"SELECT sweep, state, recorded_at FROM suites {_LATEST_FIRST}").rows()
    if not sweeps:
        raise UserError(f"no sweep under {store.results} yet: run `harness sweep SUITE` first")
    table = _table("sweep", "state", "since (UTC)", "tuning", "final", "failures")
    for sweep, state, since in sweeps:
        states = "SELECT phase, state, count(*) FROM trials WHERE sweep = ? GROUP BY ALL"
        counts = {(p, s): n for p, s, n in store.query(states, [sweep]).rows()}
        failures = store.query("SELECT count(*) AS n FROM failures WHERE sweep = ?", [sweep])["n"][0]

        def phase(name: str, counts: dict[tuple[str, str], int] = counts) -> str:
            return ", ".join(f"{n} {s}" for (p, s), n in sorted(counts.items()) if p == name) or "-"

        table.add_row(escape(sweep), state, f"{since:%Y-%m-%d %H:%M}", phase("tune"), phase("final"), str(failures))
    console.print(table)
    running = store.query(
        "SELECT t.sweep, t.recipe, t.trial, t.seed, t.phase FROM trials t JOIN suites s USING (sweep) "
        "WHERE t.state = 'running' AND s.state = 'running'"
    ).rows()
    for sweep, recipe, trial, seed, name in running:
        console.print(printable(f"running: {sweep}: {recipe} trial {trial} seed {seed} ({name})"), markup=False)


def show_garbage(garbage: Sequence[Garbage]) -> None:
    """What `harness gc` would remove, a line each, and how much it is."""
    console = Console(soft_wrap=True)
    table = _table("artifact", "method", "size (MB)", "age", "why")
    for one in garbage:
        what = (one.path.name, one.method or "-", f"{one.bytes / 2**20:.1f}", _age(one.age_s), one.why)
        table.add_row(*map(escape, what))
    console.print(table)
    total = sum(one.bytes for one in garbage) / 2**30
    console.print(f"{len(garbage)} in all, {total:.3f} GB", highlight=False)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def find_sweep(store: Store, wanted: str | None) -> str:
    """The sweep that a suite's file or name, or a sweep's id, stands for; the latest by default.

    Raises:
        UserError: there is none.
    """
    sweeps = store.query(f"SELECT sweep, suite FROM suites {_LATEST_FIRST}").rows()
    if not sweeps:
        raise UserError(f"no sweep under {store.results} yet: run `harness sweep SUITE` first")
    if wanted is None:
        return str(sweeps[0][0])
    if wanted.endswith((".yaml", ".yml")):
        suite = load_suite(Path(wanted))
        exact = suite.sweep_id()
        if exact in {s for s, _ in sweeps}:
            return exact
        wanted = suite.name
    for sweep, suite in sweeps:
        if wanted in (sweep, suite):
            return str(sweep)
    known = ", ".join(s for s, _ in sweeps[:8])
    raise UserError(f"no sweep or suite {wanted!r} under {store.results}; there are: {known}")


def show_list(what: str, data: str) -> None:
    """Methods, tasks whose documents the source has, models, or suites."""
    console = Console(soft_wrap=True)
    if what == "methods":
        console = _wide()
        table = _table("method", "what it does", "needs", "data", "paper")
        # To be copied into a suite.
        table.columns[0].min_width = max(map(len, method_names()))
        for name in method_names():
            method = find_method(name)
            table.add_row(
                name, method.summary, ", ".join(sorted(method.needs)), method.dataset_kind or "-", method.paper
            )
    elif what == "models":
        table = _table("model", "state")
        for name in BUNDLED_MODELS:
            table.add_row(name, model_problem(name) or "bundled, ready")
        table.add_row("org/name", "any causal language model of the hub with safetensors")
        table.add_row("./folder", "any local folder with config.json and safetensors")
    elif what == "suites":
        table = _table("suite", "question")
        for path in sorted(Path("suites").glob("*.yaml")):
            table.add_row(escape(str(path)), escape(load_suite(path).question))
    else:
        from harness.measure.tasks import available_tasks

        source = DataSource(data)
        if problem := source.problem():
            raise UserError(f"--data: {problem}")
        names = available_tasks(source)
        table = _table(f"{len(names)} tasks of lm-eval with documents in {source.label()}")
        for name in names:
            table.add_row(name)
    console.print(table)


def _wide() -> Console:
    """For tables that cannot be read folded: a narrow terminal wraps their lines instead."""
    console = Console()
    console.width = max(console.width, 120)
    return console


def show_versus(versus: Versus) -> None:
    """The paired table of each pair, and what to know before believing it."""
    console = _wide()
    shown = [place for place, header in enumerate(HEADERS) if header not in ("first − second", "seeds")]
    pairs: dict[str, list[list[str]]] = {}
    for row in versus.rows:
        one = cells(row)
        pairs.setdefault(f"{one[0]}, {one[HEADERS.index('seeds')]} seeds", []).append([one[place] for place in shown])
    for pair, rows in pairs.items():
        console.print(printable(pair), markup=False, style="bold")
        table = _table(*(HEADERS[place] for place in shown))
        for one in rows:
            table.add_row(*map(escape, one))
        console.print(table, "")
    for warning in versus.warnings:
        console.print(printable(f"warning: {warning}"), markup=False, soft_wrap=True)


def show_needs(sweep: str, effect: float, needs: Sequence[Need]) -> None:
    """How many documents and seeds would resolve the effect, for each pair of recipes and figure."""
    console = _wide()
    console.print(
        printable(
            f"{sweep}: final documents that resolve a difference of {effect:g} with a chance of 80 % "
            "(level 5 %, one comparison), by seeds of each recipe"
        ),
        markup=False,
    )
    table = _table("pair", "figure", "measured", "detectable now", *(f"{n} seeds" for n in SEEDS))
    for need in needs:
        counts = (_count(need, seeds) for seeds in SEEDS)
        mark = (" *" if need.assumed else "") + (" †" if need.unseen else "")
        of = f" of {need.subjects} subjects" if need.subjects else ""
        measured = f"{need.have:,} documents{of}, {need.seeds[0]} / {need.seeds[1]} seeds"
        pair = f"{need.a.label} − {need.b.label}{mark}"
        table.add_row(*map(escape, (pair, need.what, measured, f"{need.detectable:.3f}", *counts)))
    console.print(table)
    if any(need.assumed for need in needs):
        console.print(
            "* one seed: its variation over seeds is taken from the other recipes, or as none where none has two"
        )
    if any(need.unseen for need in needs):
        console.print(
            "† every document differed by the same, so nothing was seen of how documents vary; counted as if as many "
            "of the others differed as Wilson's 95 % bound leaves room for, by as much as scores can"
        )
    if any(need.subjects for need in needs):
        console.print(
            "n or k subjects: n documents spread over the subjects there are, or k subjects with as many documents "
            "each as now"
        )
    if any(None in need.documents.values() for need in needs):
        console.print(
            "never: the variation over seeds, or over subjects, alone hides it; more documents do not help, more of "
            "those do"
        )


def _count(need: Need, seeds: int) -> str:
    if not need.documents:
        return "unknown"
    text = "never" if (n := need.documents[seeds]) is None else f"{n:,}"
    if not need.subjects:
        return text
    return f"{text} or {'no number of' if (k := need.more_subjects[seeds]) is None else f'{k:,}'} subjects"
