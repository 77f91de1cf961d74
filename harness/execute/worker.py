"""A worker process: reads spec files named on standard input, runs them, leaves a result file by rename.

    python -m harness.execute.worker RESULTS

Each input line is `SPEC_FILE RESULT_FILE` as JSON; progress goes to standard output, a JSON object a line. What the
libraries print goes to standard error, which the sweep keeps in a log file.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Literal, TextIO

from pydantic import TypeAdapter

from harness.errors import InfeasibleError
from harness.execute._spec import MeasureSpec, Progress, Result, StageSpec
from harness.processes import die_with_parent

__all__ = ["main"]

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def main(arguments: list[str]) -> int:
    """Serve until standard input closes."""
    # A worker left behind by a killed sweep would compute beside the sweep that resumes.
    die_with_parent()
    results = Path(arguments[0])
    # The real standard output carries progress only; a library's stray print must not corrupt it.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    adapter: TypeAdapter[StageSpec | MeasureSpec] = TypeAdapter(StageSpec | MeasureSpec)
    for line in sys.stdin:
        request = json.loads(line)
        spec = adapter.validate_json(Path(request["spec"]).read_bytes())
        result = _run(spec, results, out)
        target = Path(request["result"])
        aside = target.with_suffix(".aside")
        with aside.open("w", encoding="utf-8") as file:
            file.write(result.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        aside.rename(target)
        print(json.dumps({"done": spec.key}), file=out, flush=True)
    return 0


def _run(spec: StageSpec | MeasureSpec, results: Path, out: TextIO) -> Result:
    started = time.monotonic()

    def log(step: int, total: int, metrics: object, label: str = spec.label) -> None:
        sign = Progress.model_validate(
            {"key": spec.key, "label": label, "step": step, "total": total, "metrics": dict(metrics or {})}  # type: ignore[call-overload]  # a mapping or nothing
        )
        print(sign.model_dump_json(), file=out, flush=True)

    try:
        _limit_threads(spec)
        # Imported here and not above: a worker answers at once, and pays for torch with its first spec.
        if isinstance(spec, StageSpec):
            from harness.execute._stage import run_stage

            run_stage(spec, results, log)
        else:
            from harness.execute._measurement import run_measurements

            run_measurements(spec, results, log)
    except Exception as error:  # noqa: BLE001  # whatever a method raises becomes a row in `failures`, with its traceback
        memory = isinstance(error, MemoryError) or any(w in str(error).lower() for w in _MEMORY_WORDS)
        state: Literal["infeasible", "failed"] = (
            "infeasible" if memory or isinstance(error, InfeasibleError) else "failed"
        )
        message = f"{type(error).__name__}: {error}"
        return Result(
            key=spec.key,
            state=state,
            seconds=time.monotonic() - started,
            message=message[:2000],
            traceback=traceback.format_exc(),
        )
    return Result(key=spec.key, state="complete", seconds=time.monotonic() - started)


def _limit_threads(spec: StageSpec | MeasureSpec) -> None:
    import torch

    torch.set_num_threads(spec.threads if isinstance(spec, StageSpec) else int(spec.target["threads"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
