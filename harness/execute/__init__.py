"""Running stages and measurements in worker processes: a JSON spec in, a result out."""

from harness.execute._local import LocalExecutor
from harness.execute._spec import Executor, Item, MeasureSpec, Progress, Result, StageSpec

__all__ = ["Executor", "Item", "LocalExecutor", "MeasureSpec", "Progress", "Result", "StageSpec"]
