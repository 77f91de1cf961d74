"""The measuring side of a profile: one model, one target, in the process that `harness.measure.profile` starts."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from harness._percentiles import far_apart
from harness.measure._backends import Session, import_libraries, make_prompt, open_session, request
from harness.measure._energy import Meter, clocks, counters
from harness.measure._placement import gpus
from harness.measure._weights import stored_bytes
from harness.targets import Target, peak_rss_mb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MB", "ProfileRow", "is_out_of_memory", "profile_rows", "request_rows"]

MB = 2**20
"""Bytes of every figure in `_mb`."""

_WATCHED_S = 0.3

_OUTLIERS_FROM = 10
"""Repeats from which outliers are counted: of fewer, the usual distance from the median is itself a guess."""

ProfileRow = dict[str, object]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python failed for want of memory, on the CPU or an accelerator."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _row(metric: str, setting: str, value: float, repeat: int = 0) -> ProfileRow:
    return {"metric": metric, "setting": setting, "repeat": repeat, "value": float(value)}


def profile_rows(
    folder: Path,
    target: Target,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch_sizes: list[int],
    repeats: int,
    warmup: int,
) -> Iterator[ProfileRow]:
    """Measure in this process; see `harness.measure.profile`. torch must not have been used before."""
    import_libraries(target)
    yield _row("other_load", "load", psutil.cpu_percent(_WATCHED_S))
    start = time.perf_counter()
    session = open_session(folder, target, prompt_tokens, new_tokens)
    yield _row("load_ms", "load", (time.perf_counter() - start) * 1e3)
    resident = session.weight_bytes()
    if resident is not None:
        yield _row("weight_mb", "load", resident / MB)
    if stored := stored_bytes(folder, target):
        yield _row("weight_disk_mb", "load", stored / MB)
    yield _row("peak_rss_mb", "load", peak_rss_mb())
    devices = gpus(target)
    # From small to large, so that a high-water mark is that of its own batch size.
    for batch in sorted(batch_sizes):
        prompt = make_prompt(session.ordinary_tokens(), batch, prompt_tokens)
        yield from _batch_rows(session, prompt, devices, new_tokens, repeats, warmup)


def _batch_rows(
    session: Session, prompt: "NDArray[np.int64]", devices: list[int], new_tokens: int, repeats: int, warmup: int
) -> Iterator[ProfileRow]:
    batch, length = prompt.shape
    setting = f"batch={batch}"
    session.prepare()
    if session.compiles:
        yield _row("compile_ms", setting, request(session, prompt, new_tokens)[-1] * 1e3)
    for _ in range(warmup):
        request(session, prompt, new_tokens)
    yield _row("other_load", setting, psutil.cpu_percent(_WATCHED_S))
    meter = Meter(counters(devices))
    found = []
    for _ in range(repeats):
        found.append(request(session, prompt, new_tokens))
        meter.tick()
    rates = clocks(devices)
    for repeat, times in enumerate(found):
        yield from request_rows(setting, times, batch, length, repeat)
    if repeats >= _OUTLIERS_FROM:
        yield _row("outliers", setting, sum(far_apart([times[-1] for times in found])))
    for metric, rate in rates.items():
        yield _row(metric, setting, rate)
    for device, joules in meter.joules.items():
        yield _row(f"energy_{device}_j", setting, joules / repeats)
    yield _row("peak_rss_mb", setting, peak_rss_mb())
    for metric, peak in session.device_peaks().items():
        yield _row(f"{metric}_mb", setting, peak / MB)


def request_rows(setting: str, times: list[float], batch: int, prompt_tokens: int, repeat: int) -> Iterator[ProfileRow]:
    """The rows of one request, from the seconds to each of its tokens; `harness.measure.profile` defines them."""
    first, last, gaps = times[0], times[-1], len(times) - 1
    yield _row("ttft_ms", setting, first * 1e3, repeat)
    if gaps:
        yield _row("tpot_ms", setting, (last - first) / gaps * 1e3, repeat)
    for i, (before, after) in enumerate(itertools.pairwise(times)):
        yield _row("itl_ms", setting, (after - before) * 1e3, repeat * gaps + i)
    yield _row("e2e_ms", setting, last * 1e3, repeat)
    yield _row("tokens_per_s", setting, batch * len(times) / last, repeat)
    yield _row("prefill_tokens_per_s", setting, batch * prompt_tokens / first, repeat)
