"""What the validity gates are given for a report: the sweep's own data and artifacts, as far as they are at hand."""

from typing import TYPE_CHECKING

from harness.data import DataSource
from harness.gates import Checked, check
from harness.report._queries import Facts

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["checked"]


def checked(store: "Store", facts: Facts, *, artifacts: bool) -> Checked:
    """Ask the gates about a sweep.

    The documents and training rows are read where the suite's data is a folder that is still there; the hub is not
    asked for a report.

    Args:
        store: ingested already.
        facts: the sweep.
        artifacts: also read the artifacts of the final runs whole, for their digest.
    """
    source = DataSource(str(facts.settings.get("data", "hub")))
    at_hand = source.folder is not None and source.problem() is None
    return check(store, facts.sweep, source=source if at_hand else None, results=store.results if artifacts else None)
