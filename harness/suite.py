"""The suite: one YAML file with the question, the recipes, the targets, the measures and the budget.

Strict and typed: unknown keys are refused, and everything wrong is said at once, each with file, line and column.

A recipe that uses another (`use: sft`) begins with that recipe's *result*: the used recipe is tuned in its own cell,
and its steps then run with the settings chosen there. So a cell searches its recipe's own steps only, and every cell
of a suite has the same budget.
"""

from harness._budget import Budget, EarlyStopping
from harness._measures import (
    Constraint,
    Direction,
    Endpoint,
    Gold,
    Judge,
    Measure,
    Pairwise,
    Profile,
    Quality,
    Speaker,
    Task,
)
from harness._spaces import Setting, Space
from harness._steps import Step
from harness._suite import Suite
from harness._suite_file import load_suite
from harness._suite_schema import schema_text, suite_json_schema

__all__ = [
    "Budget",
    "Constraint",
    "Direction",
    "EarlyStopping",
    "Endpoint",
    "Gold",
    "Judge",
    "Measure",
    "Pairwise",
    "Profile",
    "Quality",
    "Setting",
    "Space",
    "Speaker",
    "Step",
    "Suite",
    "Task",
    "load_suite",
    "schema_text",
    "suite_json_schema",
]
