"""A sweep that is killed at random moments, itself or its workers, ends with the tables of an undisturbed one."""

import json
import subprocess
import sys

from tests.test_cli import ROOT


def test_kills_at_random_moments_change_no_row() -> None:
    """A short run of benchmarks/chaos.py, which says what must hold; the long one has more than a hundred kills."""
    command = [sys.executable, "benchmarks/chaos.py", "--kills", "4", "--trials", "1", "--mean", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    counts = json.loads(done.stdout[: done.stdout.rindex("}") + 1])
    assert sum(counts["kills"].values()) >= 4
    assert counts["rows"]["samples"] > 100
    assert counts["rows_that_differ"] == counts["computed_though_finished"] == 0
