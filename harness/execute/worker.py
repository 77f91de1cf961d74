"""A worker process: reads spec files named on standard input, runs them, leaves a result file by rename.

    python -m harness.execute.worker RESULTS

Each input line is `{"spec": FILE, "result": FILE}`. What it tells goes to standard output, a JSON object a line:
`taken` when it begins with a spec, `ready` when it has the libraries for it, signs of life, `done`. What the libraries
print goes to standard error, which the sweep keeps in a log file.
"""

import faulthandler
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

from harness._disk import replace
from harness._secrets import RedactedStream
from harness.execute._run import run_spec
from harness.execute._spec import Progress, read_spec
from harness.processes import adopt_orphans, die_with_parent

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Serve until standard input closes."""
    # A worker left behind by a killed sweep would compute beside the sweep that resumes.
    die_with_parent()
    # What a method starts stays below this process, where the sweep finds it.
    adopt_orphans()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    own = os.getpid()
    results = Path(arguments[0])
    # The real standard output carries progress only; a library's stray print must not corrupt it.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # What Python code prints goes to the log without secrets, to which both descriptors lead now.
    sys.stdout = sys.stderr = RedactedStream(sys.stderr)

    def tell(text: str) -> None:
        # A forked child must not speak in its parent's name.
        if os.getpid() == own:
            print(text, file=out, flush=True)

    def report(sign: Progress) -> None:
        tell(sign.model_dump_json())

    for line in sys.stdin:
        request = json.loads(line)
        spec = read_spec(Path(request["spec"]).read_bytes())
        tell(json.dumps({"taken": spec.key}))
        result = run_spec(spec, results, report, ready=partial(tell, json.dumps({"ready": spec.key})))
        if os.getpid() != own:
            # A child that a method forked came back here with it: the result is its parent's.
            os._exit(0)
        replace(Path(request["result"]), result.model_dump_json())
        tell(json.dumps({"done": spec.key}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
