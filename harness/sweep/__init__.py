"""Running a plan to its end: `_loop` decides what comes next, `_work` computes it once, `_records` writes it down."""

from harness.sweep._loop import Outcome, run_sweep

__all__ = ["Outcome", "run_sweep"]
