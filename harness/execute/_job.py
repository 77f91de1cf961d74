"""What a Slurm job runs: one spec, its signs of life appended to a file, its result left by rename.

A job outlives the sweep that submitted it, whatever kills that. It ends by itself when the sweep's heart, a file that
changes while the sweep lives, has stood still for long.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from pydantic import BaseModel, ConfigDict

from harness._disk import replace
from harness.execute._there import Message, leave_seats, serve

__all__ = ["Papers", "leave_result"]

_STOPS = (signal.SIGTERM, signal.SIGUSR2)
"""Cancelled or preempted; nearly out of time."""


class Papers(BaseModel):
    """The files by which a job and the sweep know of each other, and how long a heart may stand still, in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signs: Path
    result: Path
    heart: Path
    orphan_s: float


def leave_result(spec: str, ground: str, papers: str) -> None:
    """Run the spec of a job. Stopped by a signal (cancelled, preempted, out of time) it leaves no result."""
    files = Papers.model_validate_json(papers)
    for number in _STOPS:
        signal.signal(number, _stop)
    threading.Thread(target=_watch, args=(files.heart, files.orphan_s), daemon=True).start()
    last = Message(problem="a seat ended without a result")
    try:
        with files.signs.open("a", encoding="utf-8") as signs:
            for text in serve(spec, ground):
                last = Message.model_validate_json(text)
                if last.result is None and last.problem is None:
                    signs.write(text + "\n")
                    signs.flush()
    finally:
        # Said twice, or said at the end, it would interrupt the clearing up.
        _heed_no_more()
        leave_seats()
    replace(files.result, last.model_dump_json())


def _heed_no_more() -> None:
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)


def _stop(number: int, _: FrameType | None) -> None:
    _heed_no_more()
    raise KeyboardInterrupt(signal.Signals(number).name)


def _watch(heart: Path, orphan_s: float) -> None:
    # Its content and not its time: clocks of two machines differ.
    seen, since = b"", time.monotonic()
    while time.monotonic() - since < orphan_s:
        time.sleep(min(10.0, orphan_s / 5))
        now = heart.read_bytes() if heart.is_file() else b""
        if now and now != seen:
            seen, since = now, time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)
