"""The errors that carry meaning for the command line and the store."""

__all__ = ["InfeasibleError", "MeasurementError", "PrunedError", "StorageError", "UserError"]


class UserError(Exception):
    """Bad input: what was expected and what to do. The command line prints it and exits with 2; nothing was run."""


class _AtStepError(Exception):
    """`step` is the training step at which it ended, where there is one."""

    def __init__(self, message: str, *, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class InfeasibleError(_AtStepError):
    """These settings cannot be run (out of memory, diverged to NaN): the trial is infeasible, nothing is broken.

    `step` is the training step at which it showed, where there is one.
    """


class PrunedError(_AtStepError):
    """Stopped on purpose before its end (past its deadline, hopeless at a rung): the trial is pruned.

    `step` is the training step at which it was stopped, where there is one.
    """


class MeasurementError(Exception):
    """A measurement without a meaningful result (NaN scores, no scores per document): nothing of it is stored."""


class StorageError(Exception):
    """The disk refuses (full, over quota, read-only, unreadable), or what lies there is damaged: the whole sweep ends.

    Nothing that was finished is lost: once the cause is removed, the same command goes on. The message names the
    folder and says what to do.
    """
