"""Real processes, killed for real: no half batch is ever seen, no acknowledged one is lost; locks are waited for."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.store import Store

_APPEND = """
import sys
from pathlib import Path
from harness.store import Store
store = Store(Path(sys.argv[1]))
for number in range(10_000):
    step = [{"stage": f"s{number}", "step": i, "metric": "loss", "value": 1.0} for i in range(200)]
    store.append_many({"training_steps": step, "environment_rows": [{"environment": f"s{number}", "json": "{}"}]})
    print(number, flush=True)
"""
_INGEST = """
import sys
from pathlib import Path
from harness.store import Store
store = Store(Path(sys.argv[1]))
print("up", flush=True)
for _ in range(10_000):
    (store.ingest if _ % 5 else store.rebuild)()
    print("done", flush=True)
"""
_HOLD = """
import sys, time
import duckdb
with duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read"):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


def _child(script: str, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, args)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def _kill_after(child: subprocess.Popen[str], lines: int, seconds: float) -> list[str]:
    """Kill -9 the child a moment after it printed so many lines; returns all it printed."""
    assert child.stdout is not None
    printed = [child.stdout.readline() for _ in range(lines)]
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    printed += child.stdout.readlines()
    child.wait()
    child.stdout.close()
    return [line for line in printed if line.endswith("\n")]


def test_killed_writers_leave_whole_batches_and_lose_none(tmp_path: Path) -> None:
    for attempt in range(4):
        results = tmp_path / str(attempt)
        lines = _kill_after(_child(_APPEND, results), 5, 0.003 * attempt + 0.001)
        acknowledged = {f"s{line.strip()}" for line in lines}
        assert len(acknowledged) >= 5
        store = Store(results)
        store.ingest()
        steps = dict(store.query("SELECT stage, count(*) FROM raw.training_steps GROUP BY stage").rows())
        other = {row[0] for row in store.query("SELECT environment FROM environments").rows()}
        assert acknowledged <= steps.keys()
        assert steps.keys() == other
        assert set(steps.values()) == {200}


def test_killed_ingests_and_rebuilds_lose_and_repeat_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    expected = 0
    for attempt in range(6):
        for _ in range(8):
            rows = [{"stage": f"s{expected}", "step": expected + i, "metric": "loss", "value": 1.0} for i in range(500)]
            store.append("training_steps", rows)
            expected += 500
        _kill_after(_child(_INGEST, tmp_path), 1, 0.02 + 0.025 * attempt)
    store.ingest()
    count, distinct = store.query("SELECT count(*), count(DISTINCT step) FROM raw.training_steps").row(0)
    assert (count, distinct) == (expected, expected)


@pytest.mark.parametrize("held", ["read", "write"])
def test_another_process_is_waited_for(tmp_path: Path, held: str) -> None:
    store = Store(tmp_path)
    store.append("environment_rows", [{"environment": "e", "json": "{}"}])
    store.ingest()
    store.append("environment_rows", [{"environment": "f", "json": "{}"}])
    child = _child(_HOLD, store.database, held, 1.0)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    assert store.ingest() == 1
    assert child.wait() == 0
    child.stdout.close()
    assert store.query("SELECT count(*) FROM environments").item() == 2


def test_a_lock_that_stays_is_a_clear_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.ingest()
    child = _child(_HOLD, store.database, "write", 60)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"held by another process .*PID {child.pid}"):
        store.query("FROM suites", wait=0.2)
    child.kill()
    child.wait()
    child.stdout.close()
    assert store.query("FROM suites").height == 0


def test_threads_read_while_one_writes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.ingest()
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(store.query("SELECT count(*) FROM environments").item())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(10):
        store.append("environment_rows", [{"environment": str(number), "json": "{}"}])
        store.ingest()
    stop.set()
    reader.join()
    assert seen == sorted(seen)
    assert store.query("SELECT count(*) FROM environments").item() == 10


def test_importing_the_store_is_light() -> None:
    code = (
        "import sys, harness.store; "
        "print([m for m in ('torch', 'duckdb', 'polars', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "[]\n"
