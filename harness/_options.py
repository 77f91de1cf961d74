"""Options that several commands have."""

import argparse
from pathlib import Path

__all__ = ["results_option", "sweep_option"]


def results_option(sub: argparse.ArgumentParser) -> None:
    """Where artifacts and store are."""
    sub.add_argument("--results", type=Path, default=Path("results"), help="artifacts and store (default: results)")


def sweep_option(
    sub: argparse.ArgumentParser, what: str = "a suite's file or name, or a sweep (default: the latest)"
) -> None:
    """Which sweep; the latest where none is named."""
    sub.add_argument("sweep", nargs="?", metavar="SUITE|SWEEP", help=what)
