"""Copies of a sweep in the trackers that people use: TensorBoard, MLflow, W&B and trackio, and Optuna's storage.

They are made from the store, which stays the only truth: a tracker may be left out, lose what it had or come later.
Nothing goes over the network unless the user has said where to.
"""

from harness.trackers._live import tracking
from harness.trackers._open import TRACKERS, open_tracker, refuse_missing
from harness.trackers._optuna import export_studies, storage_url
from harness.trackers._protocol import TrackedRun, TrackedSweep, Tracker
from harness.trackers._track import track

__all__ = [
    "TRACKERS",
    "TrackedRun",
    "TrackedSweep",
    "Tracker",
    "export_studies",
    "open_tracker",
    "refuse_missing",
    "storage_url",
    "track",
    "tracking",
]
