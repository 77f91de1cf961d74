"""A worker process: reads spec files named on standard input, runs them, leaves a result file by rename.

    python -m harness.execute.worker RESULTS

Each input line is `SPEC_FILE RESULT_FILE` as JSON; progress goes to standard output, a JSON object a line. What the
libraries print goes to standard error, which the sweep keeps in a log file.
"""

import json
import os
import sys
from pathlib import Path

from pydantic import TypeAdapter

from harness._secrets import RedactedStream
from harness.execute._run import run_spec
from harness.execute._spec import MeasureSpec, Progress, StageSpec
from harness.processes import die_with_parent

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Serve until standard input closes."""
    # A worker left behind by a killed sweep would compute beside the sweep that resumes.
    die_with_parent()
    results = Path(arguments[0])
    # The real standard output carries progress only; a library's stray print must not corrupt it.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # What Python code prints goes to the log without secrets. Both streams, as descriptor 1 is the log's as well now.
    sys.stdout = sys.stderr = RedactedStream(sys.stderr)

    def report(sign: Progress) -> None:
        print(sign.model_dump_json(), file=out, flush=True)

    adapter: TypeAdapter[StageSpec | MeasureSpec] = TypeAdapter(StageSpec | MeasureSpec)
    for line in sys.stdin:
        request = json.loads(line)
        spec = adapter.validate_json(Path(request["spec"]).read_bytes())
        result = run_spec(spec, results, report)
        target = Path(request["result"])
        aside = target.with_suffix(".aside")
        with aside.open("w", encoding="utf-8") as file:
            file.write(result.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        aside.rename(target)
        print(json.dumps({"done": spec.key}), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
