"""The report of a sweep, and of a comparison: self-contained HTML pages, and the answer in words. Reads only."""

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.report._needs import data_needed
from harness.report._regressions import against_baseline, regressed

if TYPE_CHECKING:
    from harness.gates import Checked
    from harness.report._queries import Facts
    from harness.report._versus import Versus
    from harness.store import Store

__all__ = [
    "against_baseline",
    "answer",
    "compare",
    "data_needed",
    "regressed",
    "report_markdown",
    "validity",
    "write_comparison",
    "write_report",
]

SAMPLES = 120
"""Documents in the sample browser, unless asked otherwise."""


def write_report(
    store: "Store",
    sweep: str,
    out: Path,
    *,
    found: "Checked | None" = None,
    samples: int = SAMPLES,
    now: datetime.datetime | None = None,
) -> Path:
    """Write a sweep's report, finished or not, and return where it is.

    Args:
        store: its shards are ingested first.
        sweep: the sweep's id.
        out: a folder, in which `<suite>.html` is written anew each time, or a path that ends in `.html`.
        found: what the validity gates said (`validity`); None asks them now, without documents and artifacts.
        samples: documents in the sample browser at most, shared between the tasks.
        now: the time that stands in the page; the present one if not given.

    Raises:
        UserError: no such sweep, or `out` cannot be written.
    """
    from harness.report._page import page

    if samples < 1:
        raise UserError(f"samples: expected at least 1, got {samples}")
    facts = _facts(store, sweep)
    path = Path(out)
    if path.suffix.lower() != ".html":
        path /= f"{facts.suite}.html"
    text = page(store, facts, found=found, samples=samples, now=now or datetime.datetime.now(datetime.UTC))
    _write(path, text)
    return path


def report_markdown(store: "Store", sweep: str, *, found: "Checked | None" = None) -> str:
    """The report of a sweep as Markdown for a pull request; arguments and errors as for `write_report`."""
    from harness.gates import check
    from harness.report._markdown import markdown

    facts = _facts(store, sweep)
    return markdown(facts, check(store, sweep) if found is None else found)


def validity(store: "Store", sweep: str, *, artifacts: bool = False) -> "Checked":
    """What the validity gates say of a sweep. Main thread only: reading documents changes the current folder meanwhile.

    Args:
        store: its shards are ingested first.
        sweep: the sweep's id.
        artifacts: also read the artifacts of the final runs whole, for their digest.

    Raises:
        UserError: no such sweep.
    """
    from harness.report._validity import checked

    return checked(store, _facts(store, sweep), artifacts=artifacts)


def compare(store: "Store", names: Sequence[str]) -> "Versus":
    """Set models against each other that no common sweep has compared.

    Args:
        store: its shards are ingested first.
        names: recipes, artifacts and sweeps, see `find_entries`.

    Raises:
        UserError: a name that stands for nothing or several things; or nothing that can be compared.
    """
    from harness.report._entries import find_entries
    from harness.report._versus import set_against

    store.ingest()
    return set_against(store, find_entries(store, names))


def write_comparison(versus: "Versus", path: Path, *, now: datetime.datetime | None = None) -> Path:
    """Write the page of a comparison, and return where it is.

    Raises:
        UserError: `path` cannot be written.
    """
    from harness.report._versus_page import versus_page

    _write(path, versus_page(versus, now or datetime.datetime.now(datetime.UTC)))
    return path


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate, which a byte-level tokenizer can leave in a response, has no UTF-8.
        aside.write_text(text, encoding="utf-8", errors="replace")
        aside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write the report to {path}: {error}; give another place with --reports") from error


def answer(store: "Store", sweep: str) -> str:
    """The answer to the suite's question in one paragraph, with its uncertainty.

    Raises:
        UserError: no such sweep.
    """
    from harness.report._words import words

    return words(_facts(store, sweep)).text()


def _facts(store: "Store", sweep: str) -> "Facts":
    """The facts of a sweep, read once for the page and the paragraph: together with what was computed from them."""
    from harness.report._queries import read_facts

    store.ingest()
    state = store.database.stat() if store.ready() else None
    key = (str(store.database.absolute()), sweep, state and (state.st_ino, state.st_size, state.st_mtime_ns))
    if key not in _LAST:
        _LAST.clear()
        _LAST[key] = read_facts(store, sweep)
    return _LAST[key]


_LAST: dict[object, "Facts"] = {}
