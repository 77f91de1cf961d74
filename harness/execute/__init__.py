"""Running stages and measurements in worker processes: a JSON spec in, a result out."""

from harness.execute._local import LocalExecutor
from harness.execute._open import open_executor
from harness.execute._run import run_spec
from harness.execute._spec import (
    ENDPOINT,
    Executor,
    Item,
    ItemKind,
    JudgeSpec,
    MeasureSpec,
    Progress,
    Resources,
    Result,
    StageSpec,
    read_spec,
    resources_of,
)

__all__ = [
    "ENDPOINT",
    "Executor",
    "Item",
    "ItemKind",
    "JudgeSpec",
    "LocalExecutor",
    "MeasureSpec",
    "Progress",
    "Resources",
    "Result",
    "StageSpec",
    "open_executor",
    "read_spec",
    "resources_of",
    "run_spec",
]
