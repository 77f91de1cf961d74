"""Latency and memory of one artifact on one target, measured in a fresh process.

`python -m harness.measure.profile SPEC.json OUT.json [PARENT]` is that process; `measure_profile` starts it, as PARENT,
and reads it.

A request is a batch of prompts of `prompt_tokens` random, seeded, ordinary tokens each; exactly `new_tokens` are
generated greedily, whatever they are. Its times, as vLLM's serving benchmark and MLPerf Inference define them:

- `ttft_ms`: time to first token, from the start of the request to its first token (prefill and one choice);
- `tpot_ms`: time per output token after the first, (e2e − TTFT) / (new_tokens − 1), a mean within one request;
- `itl_ms`: inter-token latency, from one token to the next: new_tokens − 1 rows of each request, one after another;
- `e2e_ms`: end-to-end latency, from the start of the request to its last token;
- `tokens_per_s`: batch × new_tokens / e2e; `prefill_tokens_per_s`: batch × prompt_tokens / TTFT.

All sequences of a batch start together and are served alone, so each has the batch's times: there is no queue. The
first `warmup` requests of a batch size are discarded; each of the `repeats` after them is a row.

Once a process (setting `load`): `load_ms` (reading the model into memory, imports not counted, the files possibly in
the system's cache), `weight_mb` (memory held by weights, wherever it lies), `weight_disk_mb` (the files of weights).

Once a batch size (setting `batch=N`): `compile_ms` (the first request of what compiles), `outliers` (from 10 repeats
on: how many have an end-to-end latency far apart from the rest; none is dropped), `other_load` (percent of all CPU
cores that were busy just before, while this process waited: a figure taken beside other work says so), `cpu_mhz` and
`gpu_mhz` (the clock just after), `peak_rss_mb` (the largest resident memory of the process until then, libraries
included; batch sizes run from small to large), on GPUs `peak_cuda_mb` and `peak_cuda_reserved_mb` (the most that torch
allocated, and took from the device), and where the machine counts it `energy_cpu_j` and `energy_gpu_j` (joules of a
request, the mean over the repeats; absent without a counter, never estimated). MB is 2**20 bytes. Percentiles are shown
from the sample sizes that support them (`harness._percentiles`). More in docs/profiles.md.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError

from harness.errors import InfeasibleError, MeasurementError, UserError
from harness.measure._profile_run import ProfileRow, is_out_of_memory, profile_rows
from harness.processes import die_with_parent
from harness.targets import Target, target_problem

__all__ = ["measure_profile"]

_ROOT = Path(__file__).parent.parent.parent
_TAIL = 6000
"""Characters of a failed process's output that its error shows."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt_tokens: PositiveInt = 256
    new_tokens: PositiveInt = 64
    batch_sizes: list[PositiveInt] = [1]
    repeats: PositiveInt = 10
    warmup: int = 2


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path
    target: Target
    settings: _Settings


def _checked(folder: Path, target: Target, settings: Mapping[str, object]) -> _Spec:
    try:
        spec = _Spec(folder=folder, target=target, settings=_Settings.model_validate(dict(settings)))
    except ValidationError as error:
        raise UserError(f"profile settings: {error}") from error
    if problem := target_problem(target):
        raise UserError(f"target {target.name!r} cannot run on this machine: {problem}")
    return spec


def measure_profile(folder: Path, target: Target, settings: Mapping[str, object], timeout_s: float) -> list[ProfileRow]:
    """Profile a model folder on a target in a fresh process.

    Args:
        settings: prompt_tokens, new_tokens, batch_sizes, repeats, warmup, as in the suite.
        timeout_s: seconds until the process is ended.

    Returns:
        Rows of table `profile_samples` but for `measurement`: metric, setting (`load` or `batch=N`), repeat, value.

    Raises:
        UserError: bad settings, a model that cannot be loaded, or a target that this machine cannot run.
        InfeasibleError: out of memory, or past the time limit.
        MeasurementError: the process failed in another way; the message holds its traceback.
    """
    spec = _checked(folder, target, settings)
    with tempfile.TemporaryDirectory(prefix="profile-") as scratch:
        ask, answer, log = (Path(scratch) / name for name in ("spec.json", "out.json", "log.txt"))
        ask.write_text(spec.model_dump_json(), encoding="utf-8")
        code = _run_child(ask, answer, log, target.threads, timeout_s)
        if answer.exists():
            return _read(answer)
        tail = log.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
    # SIGKILL is how the system ends a process that takes more memory than there is.
    if code in (-9, 137):
        raise InfeasibleError(
            f"the profiling process was killed on target {target.name!r}: most likely out of memory\n{tail}"
        )
    raise MeasurementError(f"the profiling process failed with status {code} on target {target.name!r}:\n{tail}")


def _run_child(ask: Path, answer: Path, log: Path, threads: int, timeout_s: float) -> int:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, **_thread_variables(threads), "PYTHONPATH": os.pathsep.join(paths)}
    with log.open("w", encoding="utf-8") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "harness.measure.profile", str(ask), str(answer), str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise InfeasibleError(f"the profile took longer than {timeout_s:g} s") from None
        finally:
            _end(child)


def _end(child: "subprocess.Popen[bytes]") -> None:
    # The compiler's own workers are children of the child; none may outlive the measurement.
    if child.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(child.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        child.kill()
        child.wait()


def _thread_variables(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}


def _read(answer: Path) -> list[ProfileRow]:
    found = json.loads(answer.read_text(encoding="utf-8"))
    if "rows" in found:
        rows: list[ProfileRow] = found["rows"]
        return rows
    raise {"user": UserError, "infeasible": InfeasibleError}[found["error"]](found["message"])


def _answer(path: Path, content: Mapping[str, object]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(content), encoding="utf-8")
    aside.replace(path)


def main(arguments: list[str]) -> int:
    """The fresh process: SPEC.json in, OUT.json out. Other failures end it with their traceback on stderr."""
    if len(arguments) not in (2, 3):
        print("usage: python -m harness.measure.profile SPEC.json OUT.json [PARENT]", file=sys.stderr)
        return 2
    if len(arguments) == 3:
        # Left behind by a killed worker, it would load the machine beside the profile that is made anew.
        die_with_parent(int(arguments[2]))
    ask, answer = map(Path, arguments[:2])
    spec = _Spec.model_validate_json(ask.read_text(encoding="utf-8"))
    os.environ.update(_thread_variables(spec.target.threads))
    try:
        _checked(spec.folder, spec.target, spec.settings.model_dump())
        rows = list(profile_rows(spec.folder, spec.target, **spec.settings.model_dump()))
    except UserError as error:
        _answer(answer, {"error": "user", "message": str(error)})
        return 0
    except InfeasibleError as error:
        _answer(answer, {"error": "infeasible", "message": f"on target {spec.target.name!r}: {error}"})
        return 0
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"out of memory on target {spec.target.name!r}: {error}"
        _answer(answer, {"error": "infeasible", "message": message})
        return 0
    _answer(answer, {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
