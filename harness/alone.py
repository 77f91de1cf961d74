"""One stage or measurement that failed, run again alone: in this process, its errors on this terminal."""

import os
import re
import sys
import time
from pathlib import Path

from pydantic import ValidationError

from harness._printable import printable
from harness.errors import UserError
from harness.execute import MeasureSpec, Progress, StageSpec, read_spec, run_spec
from harness.folders import Folders

__all__ = ["run_alone"]

_SAY_EVERY_S = 5.0


def run_alone(wanted: str, results: Path) -> bool:
    """Run the stage or measurement of this key, or of this file; True where it completes.

    It is the same work as in the sweep, with the same key: if it completes, its artifact or rows are there for the
    sweep, which `harness retry` lets go on. No time or memory limit is put on it. A debugger works in it:
    `python -m pdb -m harness.cli run-stage KEY`.

    Raises:
        UserError: nothing of that name is kept here, or the file holds no spec.
    """
    results = results.resolve()
    spec = _read(wanted, results)
    # As the workers have it, and before torch is imported: threads decide how sums are rounded.
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

    print(f"harness: {spec.label} ({spec.kind} {spec.key})", file=sys.stderr)
    said = 0.0

    def report(sign: Progress) -> None:
        nonlocal said
        if sign.step == sign.total or time.monotonic() - said > _SAY_EVERY_S:
            said = time.monotonic()
            figures = "  ".join(f"{name} {value:.4g}" for name, value in sign.metrics.items())
            print(f"harness: step {sign.step} of {sign.total}  {figures}".rstrip(), file=sys.stderr)

    result = run_spec(spec, results, report)
    if result.state == "complete":
        what = "its artifact is" if isinstance(spec, StageSpec) else "its rows are"
        print(f"Complete in {result.seconds:.1f} s: {what} in {results}. `harness retry SUITE` goes on from here.")
        return True
    print(printable(result.traceback), file=sys.stderr, end="")
    print(f"harness: {result.state} after {result.seconds:.1f} s: {printable(result.message)}", file=sys.stderr)
    return False


def _read(wanted: str, results: Path) -> StageSpec | MeasureSpec:
    file = Path(wanted) if wanted.endswith(".json") else Folders(results).kept_spec(wanted)
    if not file.is_file():
        kept = sorted(p.stem for p in file.parent.glob("*.json")) if file.parent.is_dir() else []
        there = f"there are: {', '.join(kept[:8])}" if kept else "none has failed there"
        raise UserError(f"no failed stage or measurement {wanted} in {results / 'failed'}; {there}")
    try:
        spec = read_spec(file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(
            f"{file}: not a stage or measurement as a sweep keeps them ({'.'.join(map(str, first['loc']))}: "
            f"{first['msg']})"
        ) from error
    # The key names the folder that the artifact is written to.
    if not re.fullmatch(r"[A-Za-z0-9_-]+", spec.key):
        raise UserError(f"{file}: key: expected a key as a sweep makes them, letters and digits, got {spec.key!r}")
    return spec
