"""Openings of the database: each file as if it were alone, and an error ends with it."""

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from harness.errors import UserError
from harness.store._connection import connect


def _made(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with connect(path, write=True) as connection:
        connection.execute("CREATE SCHEMA raw")
        connection.execute("CREATE TABLE raw.kept (v BIGINT)")
        connection.execute("CREATE VIEW main.seen AS SELECT v FROM raw.kept")
        connection.execute("INSERT INTO raw.kept VALUES (?)", [value])
    return path


def _value(path: Path) -> object:
    with connect(path, write=False) as connection:
        return connection.execute("SELECT v FROM seen").fetchall()


def test_two_files_in_turn_and_a_name_with_a_quote(tmp_path: Path) -> None:
    first, second = _made(tmp_path / "it's" / "a.duckdb", 1), _made(tmp_path / "b.duckdb", 2)
    assert _value(first) == [(1,)]
    assert _value(second) == [(2,)]
    # As the file alone, without the instance it was made in.
    first.rename(tmp_path / "moved.duckdb")
    with duckdb.connect(str(tmp_path / "moved.duckdb"), read_only=True) as connection:
        assert connection.execute("SELECT v FROM seen").fetchall() == [(1,)]


def test_an_error_in_the_block_leaves_the_file_free_and_takes_nothing_half(tmp_path: Path) -> None:
    path = _made(tmp_path / "a.duckdb", 1)
    statements = ["BEGIN", "INSERT INTO raw.kept VALUES (2)", "SELECT * FROM nowhere"]
    with pytest.raises(duckdb.CatalogException), connect(path, write=True) as connection:
        any(connection.execute(statement) is None for statement in statements)
    assert _value(path) == [(1,)]
    elsewhere = f"import duckdb; print(duckdb.connect({str(path)!r}).execute('SELECT v FROM seen').fetchall())"
    found = subprocess.run([sys.executable, "-c", elsewhere], capture_output=True, text=True, check=True)
    assert found.stdout == "[(1,)]\n"


def test_a_reader_does_not_write(tmp_path: Path) -> None:
    path = _made(tmp_path / "a.duckdb", 1)
    with pytest.raises(duckdb.InvalidInputException), connect(path, write=False) as connection:
        connection.execute("INSERT INTO raw.kept VALUES (2)")
    assert _value(path) == [(1,)]


def test_a_file_that_another_process_holds_is_waited_for_then_named(tmp_path: Path) -> None:
    path = _made(tmp_path / "a.duckdb", 1)
    hold = f"import duckdb; c = duckdb.connect({str(path)!r}); print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="is held by another process"), connect(path, write=True, wait=0.2):
            pass
        other.communicate("\n", timeout=60)
    assert _value(path) == [(1,)]


def test_a_process_that_ends_says_nothing(tmp_path: Path) -> None:
    path = _made(tmp_path / "a.duckdb", 1)
    code = (
        "from pathlib import Path\nfrom harness.store._connection import connect\n"
        f"with connect(Path({str(path)!r}), write=False) as c:\n    print(c.execute('SELECT v FROM seen').fetchall())\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("[(1,)]\n", "")
