"""The command line: frozen, instant, and clear about bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import build_parser, main

ROOT = Path(__file__).parent.parent


def test_command_line_is_frozen() -> None:
    """Scripts of users depend on these words; a change here is a change for them, and wants a line in the CHANGELOG."""
    parser = build_parser()
    commands = next(a for a in parser._actions if a.dest == "command").choices
    assert commands is not None
    found = {
        name: sorted(s for a in sub._actions for s in (a.option_strings or [a.dest]) if s not in ("-h", "--help"))
        for name, sub in dict(commands).items()
    }
    assert found == {
        "plan": ["--data", "--results", "--set", "--skip-unavailable", "--trust-remote-code", "suite"],
        "sweep": [
            *("--address", "--data", "--dry-run", "--executor", "--reports", "--results", "--set"),
            *("--skip-unavailable", "--slurm", "--track", "--trust-remote-code", "--workers", "suite"),
        ],
        "retry": [
            *("--address", "--data", "--executor", "--kind", "--model", "--recipe", "--reports", "--results", "--set"),
            *("--skip-unavailable", "--slurm", "--track", "--trial", "--trust-remote-code", "--workers", "suite"),
        ],
        "run-stage": ["--results", "--trust-remote-code", "spec"],
        "gc": ["--results", "--superseded", "--yes"],
        "db": ["--results", "action"],
        "status": ["--results"],
        "report": ["--check-artifacts", "--format", "--open", "--reports", "--results", "sweep"],
        "compare": ["--results", "--to", "names"],
        "check": ["--against", "--results", "sweep"],
        "power": ["--effect", "--results", "sweep"],
        "publish": ["--merge", "--no-texts", "--results", "--to", "sweeps"],
        "verify": ["export"],
        "import": ["--allow-mismatch", "--name", "--results", "folder", "kind"],
        "export": ["--results", "--to", "kind", "sweep"],
        "human": ["action"],
        "sql": ["--format", "--results", "query"],
        "list": ["--data", "what"],
        "doctor": ["--offline"],
        "schema": [],
    }
    actions = next(a for a in dict(commands)["human"]._actions if a.dest == "action").choices
    assert actions is not None
    assert {
        name: sorted(s for a in sub._actions for s in (a.option_strings or [a.dest]) if s not in ("-h", "--help"))
        for name, sub in dict(actions).items()
    } == {
        "create": [
            *("--answers-from", "--checks", "--criteria", "--format", "--model", "--no-pairs", "--overlap", "--pairs"),
            *("--prompts", "--raters", "--recipes", "--results", "--sample", "--seed", "--to", "--together", "-o"),
            "sweep",
        ],
        "import": ["--replace", "--results", "files"],
        "report": ["--failed-checks", "--results", "sweep"],
    }


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"], ["--version"]])
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom harness.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'optuna', 'polars', 'duckdb', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MISSPELT = """name: s
models: [smollm2-135m-instruct]
recipes:
  sft:
    - sft: {learning_rat: 1e-5}
measure: {gold: {}}
budget: {trials_per_cell: 0}
"""
WITHOUT_DOCUMENTS = """name: s
models: [smollm2-135m-instruct]
recipes:
  sft: [{sft: {}}]
measure: {tasks: {mmlu: {}, winogrande: {}}}
budget: {trials_per_cell: 1}
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(MISSPELT, ["s.yaml:5:", "did you mean learning_rate?", "s.yaml:7:"], id="misspelt"),
        pytest.param(WITHOUT_DOCUMENTS, ["mmlu_nutrition", "winogrande", "--data hub"], id="without-documents"),
    ],
)
def test_a_suite_that_cannot_run_is_refused_with_every_reason(
    text: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text(text)
    assert main(["plan", str(suite), "--results", str(tmp_path / "results")]) == 2
    said = capsys.readouterr().err
    assert not [word for word in words if word not in said]
    assert not (tmp_path / "results").exists()


def test_a_missing_suite_and_an_empty_store_are_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path / "none.yaml")]) == 2
    for command in (["status"], ["report"], ["sql", "FROM scores"]):
        assert main([*command, "--results", str(tmp_path / "nothing")]) == 2
        assert "harness sweep" in capsys.readouterr().err


def test_schema_is_the_shipped_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((ROOT / "harness" / "suite.schema.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("what", "word"), [("methods", "generate_preferences"), ("models", "smollm2-135m-instruct"), ("tasks", "gsm8k")]
)
def test_list(what: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    assert word in capsys.readouterr().out
