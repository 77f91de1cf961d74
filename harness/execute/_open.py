"""The executor that a sweep was asked to use, by its name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from harness.errors import UserError
from harness.execute._local import LocalExecutor
from harness.execute._spec import Executor

__all__ = ["open_executor"]

_EXECUTORS = ("local", "ray", "slurm")


def open_executor(
    name: str,
    results: Path,
    workers: int | None,
    retries: int = 2,
    *,
    address: str | None = None,
    options: Mapping[str, str] | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Executor:
    """Open an executor; whoever opens it closes it.

    Args:
        name: `local`, `ray` or `slurm`.
        results: the results folder; beyond one machine, a folder that all of them share under this path.
        workers: specs at work together. None: on a cluster as many as it has room for, with Slurm 100 jobs; `local`
            needs a number.
        retries: how often a spec is tried again whose worker, process or node died.
        address: of an existing Ray cluster, `host:port` or `auto`.
        options: of Slurm's sbatch, by their long names: partition, time, account, ...
        warn: told what the user should know while it works.

    Raises:
        UserError: there is no such executor, its library is not installed, or its cluster does not answer.
    """
    if name not in _EXECUTORS:
        raise UserError(f"--executor: expected {', '.join(_EXECUTORS)}, got {name}")
    if address is not None and name != "ray":
        raise UserError(f"--address is that of a Ray cluster: expected --executor ray, got {name}")
    if options and name != "slurm":
        raise UserError(f"options of sbatch go with --executor slurm, got {name}")
    if name == "ray":
        from harness.execute._ray import RayExecutor

        return RayExecutor(results, workers, retries, address=address, warn=warn)
    if name == "slurm":
        from harness.execute._slurm import SlurmExecutor

        return SlurmExecutor(results, workers, retries, options=options, warn=warn)
    if workers is None:
        raise UserError("--workers: expected at least 1 for workers on this machine")
    return LocalExecutor(results, workers, retries=retries, warn=warn)
