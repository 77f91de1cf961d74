"""120 suites that are none: each is refused with its place, before anything else is looked at."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.measure.tasks import leaf_tasks
from tests.bad_input.conftest import Refused

SUITES = Path(__file__).parent / "suites"
EXPECTED = [
    line.split("\t") for line in (SUITES / "expected.tsv").read_text(encoding="utf-8").splitlines() if line.strip()
]
"""File, line:column, part of the message."""

SECOND_LINES = {"misspelt_budget"}
"""Two things are wrong in these: a key that is missing, and one that nobody knows."""


@pytest.fixture(scope="module", autouse=True)
def index() -> None:
    """The index of tasks: made once by a process, which takes seconds that no suite is to blame for."""
    leaf_tasks("hellaswag")


def test_the_corpus_is_whole() -> None:
    assert {name for name, _, _ in EXPECTED} == {path.stem for path in SUITES.glob("*.yaml")}
    assert len(EXPECTED) >= 120


@pytest.mark.parametrize(("name", "place", "message"), EXPECTED, ids=[name for name, _, _ in EXPECTED])
def test_refused_with_its_place(refused: Refused, name: str, place: str, message: str) -> None:
    path = SUITES / f"{name}.yaml"
    before = time.process_time()
    said = refused(path)
    assert time.process_time() - before < 5
    lines = said.split("\n")
    where = f"{path}:{place}: " if place else f"{path}: "
    assert any(line.startswith(where) and message in line for line in lines), said
    assert len(lines) == 1 + (name in SECOND_LINES)


@pytest.mark.parametrize("name", ["billion_laughs", "deep", "large", "wide"])
def test_a_bomb_takes_neither_time_nor_memory(name: str) -> None:
    code = (
        "import resource, sys\n"
        "from harness.cli import main\n"
        # Address space of 2 GiB: one that unfolds would not fit.
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "sys.exit(main(['plan', sys.argv[1]]))\n"
    )
    command = [sys.executable, "-c", code, str(SUITES / f"{name}.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
