"""Validity gates: what would make a sweep's figures worthless, looked for before anyone reads them.

Each gate is a function of its own file that reads the evidence and says what it found, in figures, or why it could not
look. A gate never stays silent because something was missing.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data import DataSource
from harness.gates._chance import at_chance
from harness.gates._constant_choice import constant_choice
from harness.gates._contamination import contamination
from harness.gates._digest import artifact_digest
from harness.gates._evidence import Evidence, read_evidence
from harness.gates._fewshot import small_fewshot_split
from harness.gates._length import length_drift
from harness.gates._nan import not_a_number
from harness.gates._truncated import truncated_prompts
from harness.gates._types import MATERIAL, Checked, Flag, Gate, Severity, Unchecked

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["GATES", "MATERIAL", "Checked", "Evidence", "Flag", "Gate", "Severity", "Unchecked", "check"]

GATES: Mapping[str, Gate] = {
    "NaN": not_a_number,
    "constant choice": constant_choice,
    "at chance": at_chance,
    "output length drift": length_drift,
    "truncated prompts": truncated_prompts,
    "few-shot split": small_fewshot_split,
    "contamination": contamination,
    "digest": artifact_digest,
}
"""Name → gate, in the order in which they are asked."""


def check(store: "Store", sweep: str, *, source: DataSource | None = None, results: Path | None = None) -> Checked:
    """Ask every gate about a sweep's final runs. Reads only; what a gate lacks is in the answer's `unchecked`.

    Args:
        store: ingested already.
        sweep: the sweep's id, finished or not.
        source: where the sweep's documents and training rows came from. Reading them changes the current folder
            meanwhile (main thread only) and takes as long as loading the tasks and datasets does.
        results: the folder with the sweep's artifacts, which are read whole for their digest.

    Raises:
        UserError: the store knows no such sweep.
    """
    with store.reading():
        evidence = read_evidence(store, sweep, source, results)
        said = [one for gate in GATES.values() for one in gate(evidence)]
    flags = [one for one in said if isinstance(one, Flag)]
    return Checked(
        sorted(flags, key=lambda f: f.severity != "invalid"),
        # Reasons come from libraries too, some in several lines.
        list(dict.fromkeys(replace(u, why=" ".join(u.why.split())) for u in said if isinstance(u, Unchecked))),
    )
