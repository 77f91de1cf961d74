"""One spec in this process: what it raises becomes a result with its reason and its traceback."""

import gc
import math
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness._disk import storage_error
from harness._secrets import redacted
from harness.errors import InfeasibleError, PrunedError
from harness.execute._spec import MeasureSpec, Progress, Result, StageSpec
from harness.rungs import HopelessError
from harness.targets import forget_peak, peak_rss_mb

__all__ = ["run_spec"]

_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
_LONGEST_MESSAGE = 2000

Log = Callable[[int, int, Mapping[str, float]], None]


def run_spec(
    spec: StageSpec | MeasureSpec,
    results: Path,
    report: Callable[[Progress], None],
    ready: Callable[[], object] = lambda: None,
) -> Result:
    """Run a stage or measurements here and now; never raises for what the spec itself did.

    `ready` is called when the libraries are imported and the spec's own work begins.
    """
    started = time.monotonic()
    last: list[int] = []

    def log(step: int, total: int, metrics: Mapping[str, float]) -> None:
        if isinstance(spec, StageSpec):
            last[:] = [step]
        if isinstance(spec, MeasureSpec) and spec.limit_s is not None and time.monotonic() - started > spec.limit_s:
            # A stage learns of its deadline by `Context.check`.
            raise PrunedError(f"the measurement ran past its limit of {spec.limit_s:g} s (budget.measure_minutes)")
        # JSON has no NaN; what diverged is in the training curve and in the result.
        finite = {name: float(v) for name, v in metrics.items() if math.isfinite(v)}
        report(Progress(key=spec.key, label=spec.label, step=step, total=total, metrics=finite))

    forget_peak()
    _forget_gpus()
    try:
        _work(spec, results, log, ready)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever a method raises becomes a row in `failures`, with its traceback
        ended = _ended(spec, error, time.monotonic() - started, last[0] if last else None)
        if refused := storage_error(error, results):
            return ended.model_copy(update={"state": "failed", "storage": True, "message": str(refused)})
        return ended
    return Result(key=spec.key, state="complete", seconds=time.monotonic() - started, peak_mb=peak_rss_mb())


def _work(spec: StageSpec | MeasureSpec, results: Path, log: Log, ready: Callable[[], object]) -> None:
    import torch

    # Imported here and not above: a worker answers at once, and pays for torch with its first spec.
    if isinstance(spec, StageSpec):
        from harness.execute._stage import run_stage

        torch.set_num_threads(spec.threads)
        ready()
        run_stage(spec, results, log)
    else:
        from harness.execute._measurement import run_measurements

        torch.set_num_threads(int(spec.target["threads"]))
        ready()
        run_measurements(spec, results, log)


def _ended(spec: StageSpec | MeasureSpec, error: BaseException, seconds: float, step: int | None) -> Result:
    peak = peak_rss_mb()
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit):
        message = f"SystemExit: the process was told to exit with {error.code!r}"
    state = "failed"
    if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _MEMORY_WORDS):
        on_gpus = f" and {_gpu_peak_mb():.0f} MiB on GPUs" if _cuda() else ""
        state, message = "infeasible", f"out of memory, at a peak of {peak:.0f} MiB resident{on_gpus}: {message}"
    elif isinstance(error, InfeasibleError):
        state = "infeasible"
    elif isinstance(error, PrunedError):
        state = "pruned"
    named = error.step if isinstance(error, InfeasibleError | PrunedError) else None
    return Result.model_validate(
        {
            "key": spec.key,
            "state": state,
            "seconds": seconds,
            "message": _storable(message)[:_LONGEST_MESSAGE],
            "traceback": _storable("".join(traceback.format_exception(error))),
            "peak_mb": peak,
            "step": step if named is None else named,
            "reached": error.reached if isinstance(error, HopelessError) else {},
        }
    )


def _storable(text: str) -> str:
    # Half a character (a method may raise anything) can be written to no file.
    return redacted(text).encode(errors="backslashreplace").decode()


def _cuda() -> Any:  # noqa: ANN401  # the module torch.cuda
    """Torch's CUDA, if this process has used it: torch may not be imported for the question."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _gpu_peak_mb() -> float:
    cuda = _cuda()
    return float(sum(cuda.max_memory_allocated(device) for device in range(cuda.device_count()))) / 2**20


def _forget_gpus() -> None:
    """Give back what an earlier spec left on the GPUs, and count their peak from now on."""
    if cuda := _cuda():
        gc.collect()
        cuda.empty_cache()
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)
