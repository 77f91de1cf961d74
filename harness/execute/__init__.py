"""Running stages and measurements in worker processes: a JSON spec in, a result out."""

from harness.execute._local import LocalExecutor
from harness.execute._open import EXECUTORS, open_executor
from harness.execute._run import run_spec
from harness.execute._spec import Executor, Item, MeasureSpec, Progress, Resources, Result, StageSpec, resources_of

__all__ = [
    "EXECUTORS",
    "Executor",
    "Item",
    "LocalExecutor",
    "MeasureSpec",
    "Progress",
    "Resources",
    "Result",
    "StageSpec",
    "open_executor",
    "resources_of",
    "run_spec",
]
