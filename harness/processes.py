"""Processes that the harness starts do not outlive it."""

import ctypes
import os
import signal
import sys

__all__ = ["adopt_orphans", "die_with_parent"]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Have what descends from this process stay below it when its own parent ends, also a daemon; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int | None = None) -> None:
    """Have this process killed when the one that started it ends, however it ends; on Linux only.

    What starts it must do so from a thread that lives as long as it is wanted: the system watches that thread.

    Args:
        parent: the starting process, for one that may have ended before this call: then this process ends now.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
