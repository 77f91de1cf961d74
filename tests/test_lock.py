"""One command at a time in a results folder, with real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.lock import only_one

HOLDER = """
import sys, time
from pathlib import Path
from harness.errors import UserError
from harness.lock import only_one
folder, go, hold = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
try:
    with only_one(folder, "the sweep test-1"):
        print("won", flush=True)
        time.sleep(hold)
except UserError as error:
    print("refused:", error, flush=True)
"""


def _start(folder: Path, go: Path, hold: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER, str(folder), str(go), str(hold)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_of_processes_that_start_together_exactly_one_wins(tmp_path: Path) -> None:
    go = tmp_path / "go"
    children = [_start(tmp_path / "results", go, 3.0) for _ in range(4)]
    go.touch()
    said = [child.communicate(timeout=60)[0] for child in children]
    (winner,) = [child.pid for child, text in zip(children, said, strict=True) if text == "won\n"]
    refused = [text for text in said if text.startswith("refused: ")]
    assert len(refused) == 3
    for text in refused:
        assert f"the sweep test-1 is at work in {tmp_path / 'results'}: process {winner} on " in text
        assert f"kill {winner}" in text
        assert "since 20" in text
        assert "--results" in text


def test_a_killed_process_locks_nobody_out(tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.touch()
    child = _start(tmp_path, go, 60.0)
    assert child.stdout is not None
    assert child.stdout.readline() == "won\n"
    with pytest.raises(UserError, match=f"process {child.pid} on"), only_one(tmp_path, "harness gc"):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    # What it wrote is there still, and means nothing.
    assert str(child.pid) in (tmp_path / ".sweep.lock").read_text()
    began = time.monotonic()
    with only_one(tmp_path, "harness gc"):
        assert str(os.getpid()) in (tmp_path / ".sweep.lock").read_text()
    assert time.monotonic() - began < 1
    assert (tmp_path / ".sweep.lock").read_text() == ""


def test_a_command_line_with_a_secret_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["harness", "sweep", "s.yaml", "--set", "x=hf_abcdefghijklmnopqrstuvwx"])
    with only_one(tmp_path, "the sweep s"):
        told = (tmp_path / ".sweep.lock").read_text()
    assert "harness sweep s.yaml" in told
    assert "hf_abc" not in told
