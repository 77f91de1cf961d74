"""What models, files and servers say is stored as it is, and never obeyed by a terminal."""

import io
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness import show
from harness._printable import printable
from harness.progress import Display
from harness.store._query import format_rows

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\x08\x7f\u202egnp.exe\u2066\ud800\r\x00"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=50))
def test_printable_text_is_the_text_without_what_terminals_obey(text: str) -> None:
    shown = printable(text)
    assert not RAW.search(shown)
    shown.encode()
    assert printable(shown) == shown
    if text.isprintable() and not RAW.search(text):
        assert shown == text


def test_newlines_and_tabs_stay_and_escapes_are_written_out() -> None:
    assert printable("a\n\tb\x1b[0m\u202e") == "a\n\tb\\x1b[0m\\u202e"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_shows_no_escapes(terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, color_system=None, width=200)
    with Display(console) as display:
        display.note(f"said {ESCAPES}")
        display.waiting("k", f"label {ESCAPES}")
        display.finished("k", "complete")
    # A live display moves the cursor itself; what is left must be none of theirs.
    left = re.sub(r"\x1b\[\??[0-9;]*[A-Za-z]|\r", "", file.getvalue().replace("\x1b[2J", "OWNED"))
    assert "OWNED" not in left
    assert "\\x1b[2J" in left
    assert not RAW.search(left)


def test_tables_show_no_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    table = show._table("what")
    table.add_row(f"cell {ESCAPES}")
    Console().print(table)
    shown = capsys.readouterr().out
    assert "cell" in shown
    assert not RAW.search(shown)


def test_the_table_of_sql_shows_no_escapes_and_the_formats_for_programs_keep_them() -> None:
    text = ESCAPES.replace("\ud800", "")
    frame = pl.DataFrame({"response": [text]})
    assert not RAW.search(format_rows(frame, "table").decode())
    assert pl.read_parquet(io.BytesIO(format_rows(frame, "parquet")))["response"][0] == text
    assert "\x1b" not in format_rows(frame, "json").decode()


def test_a_folder_whose_name_is_markup_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.cli import main

    suite = tmp_path / "s.yaml"
    suite.write_text(
        'name: s\nmodels: ["./[/bold]"]\nrecipes: {a: [{sft: {}}]}\nmeasure: {gold: {}}\nbudget: {trials_per_cell: 1}\n'
    )
    assert main(["plan", str(suite), "--results", str(tmp_path / "r")]) == 2
    assert "no such folder" in capsys.readouterr().err
