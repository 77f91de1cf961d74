"""Imports that libraries make because something is there, not because it is used, and that take long."""

import importlib
import sys
from typing import Any

__all__ = ["import_generation"]

_MODULE = "transformers.generation.candidate_generator"


def import_generation() -> None:
    """Import transformers' text generation without scikit-learn, wherever that was not imported before.

    With SciPy's statistics it takes a second of every process that loads a model, for one function that assisted
    generation may call. It is imported when that function is called.
    """
    if _MODULE in sys.modules or "sklearn" in sys.modules:
        return
    from transformers import utils

    there = utils.is_sklearn_available
    utils.is_sklearn_available = lambda: False
    try:
        module = importlib.import_module(_MODULE)
    finally:
        utils.is_sklearn_available = there
    # What the module would have been: it asks again before each call.
    module.is_sklearn_available = there  # type: ignore[attr-defined]  # a name that it has imported
    module.roc_curve = _roc_curve  # type: ignore[attr-defined]  # the same


def _roc_curve(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401  # whatever scikit-learn takes and gives
    from sklearn.metrics import roc_curve

    return roc_curve(*arguments, **named)
