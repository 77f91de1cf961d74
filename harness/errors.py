"""The errors that carry meaning for the command line and the store."""

__all__ = ["InfeasibleError", "MeasurementError", "UserError"]


class UserError(Exception):
    """Bad input: what was expected and what to do. The command line prints it and exits with 2; nothing was run."""


class InfeasibleError(Exception):
    """These settings cannot be run (out of memory, diverged to NaN): the trial is infeasible, nothing is broken."""


class MeasurementError(Exception):
    """A measurement without a meaningful result (NaN scores, no scores per document): nothing of it is stored."""
