"""Which trackers there are, and opening one for a sweep."""

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.trackers._protocol import Tracker
from harness.trackers._runs import read_sweep

if TYPE_CHECKING:
    from harness.store import Store

__all__ = ["TRACKERS", "open_tracker", "refuse_missing"]


@dataclass(frozen=True)
class _Kind:
    module: str
    """The library's, looked for before anything is run."""
    install: str
    place: str
    """Where it writes unless told otherwise, below the results folder."""


TRACKERS = {
    "tensorboard": _Kind("tensorboardX", "tensorboardX", "tensorboard"),
    "mlflow": _Kind("mlflow", "posttrain-harness[mlflow]", "mlflow.db"),
    "wandb": _Kind("wandb", "posttrain-harness[wandb]", "wandb"),
    "trackio": _Kind("trackio", "posttrain-harness[trackio]", "trackio"),
}
"""Name of a tracker → what it needs."""


def refuse_missing(names: Sequence[str]) -> None:
    """Refuse trackers that cannot be had here.

    Raises:
        UserError: one that is not known, or whose library is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"no tracker {name!r}; expected one of {', '.join(TRACKERS)}")
        if importlib.util.find_spec(TRACKERS[name].module) is None:
            raise UserError(f"{name} is not installed: pip install '{TRACKERS[name].install}'")


@contextlib.contextmanager
def open_tracker(name: str, place: str | None, store: "Store", sweep: str) -> Iterator[Tracker]:
    """A tracker's copy of a sweep, closed after the block.

    Args:
        name: one of `TRACKERS`.
        place: where it is: a folder, or for MLflow also the URI of a store or server; None: below the results folder,
            or for MLflow where `MLFLOW_TRACKING_URI` says.
        store: the truth, ingested.
        sweep: the sweep's id.

    Raises:
        UserError: an unknown tracker or sweep, one that is not installed, or a place that it cannot take.
    """
    refuse_missing([name])
    module = importlib.import_module(f"harness.trackers._{name}")
    try:
        tracker: Tracker = module.opened(place, store.results / TRACKERS[name].place, read_sweep(store, sweep))
        try:
            yield tracker
        finally:
            tracker.close()
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{name}: {error.filename} is in the way of a folder; name another place with --to") from error
