"""One way to ask the command line for what must be refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Plan a suite (a file, or its text); returns the error, which is one of the user's: code 2, nothing was made."""
    monkeypatch.chdir(tmp_path)

    def plan(suite: Path | str, *more: str) -> str:
        if isinstance(suite, str):
            (tmp_path / "suite.yaml").write_text(suite, encoding="utf-8")
            suite = Path("suite.yaml")
        before = {p.name for p in tmp_path.iterdir()}
        code = main(["plan", str(suite), "--results", "results", *more])
        said = capsys.readouterr()
        assert code == 2, said.err
        assert said.out == ""
        assert said.err.startswith("harness: ")
        assert "Traceback" not in said.err
        # What a terminal would obey is never printed raw.
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said.err)
        assert {p.name for p in tmp_path.iterdir()} == before
        return said.err.removeprefix("harness: ").rstrip("\n")

    return plan


def suite_text(**changes: str) -> str:
    """A suite that can be run as it is, with these keys' YAML instead of its own."""
    keys = {
        "name": "s",
        "models": "[smollm2-135m-instruct]",
        "recipes": "{a: [{sft: {steps: 1}}]}",
        "measure": "{gold: {limit: 8}}",
        "budget": "{trials_per_cell: 1}",
        **changes,
    }
    return "".join(f"{key}: {value}\n" for key, value in keys.items())
