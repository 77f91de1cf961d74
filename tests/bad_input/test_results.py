"""A results folder with what does not belong there: each command says in a line what it found, or computes it again."""

import hashlib
import json
from pathlib import Path

import polars as pl
import pytest

from harness.cli import main
from harness.folders import Folders
from tests.bad_input.conftest import Refused, suite_text

KEY = "a" * 32


def _ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(list(arguments))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [["plan", "s.yaml"], ["sweep", "s.yaml"], ["status"], ["report"], ["run-stage", KEY], ["gc"], ["db", "rebuild"]],
)
def test_results_that_are_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(suite_text())
    (tmp_path / "results").write_text("no folder")
    code, said = _ask(capsys, *command, "--results", "results")
    assert code == 2
    assert len(said.splitlines()) == 1
    assert said.startswith("harness: ")
    assert (tmp_path / "results").read_text() == "no folder"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _foreign_parquet() -> bytes:
    import io

    buffer = io.BytesIO()
    pl.DataFrame({"evil": [1]}).write_parquet(buffer)
    return buffer.getvalue()


SHARDS: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing in it": ({}, "not a batch of the store"),
    "no manifest": ({"samples.parquet": b"x"}, "not a batch of the store"),
    "a broken manifest": ({"manifest.json": b"{"}, "not a batch of the store"),
    "a manifest of a list": ({"manifest.json": b"[]"}, "expected a mapping of file names"),
    "garbage": ({"samples.parquet": b"PAR1 garbage PAR1"}, "samples.parquet: not a Parquet file"),
    "another table": ({"samples.parquet": _foreign_parquet()}, "unknown column evil"),
    "a table that is none": ({"evil.parquet": _foreign_parquet()}, "the store has no such table"),
}


@pytest.mark.parametrize("case", SHARDS)
@pytest.mark.parametrize("command", ["status", "plan"])
def test_a_shard_that_is_garbage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path, case: str, command: str
) -> None:
    files, expected = SHARDS[case]
    batch = tmp_path / "results" / "shards" / "20260101T000000-garbage"
    batch.mkdir(parents=True)
    if files and "manifest.json" not in files:
        listed = {} if case == "no manifest" else {name: _digest(content) for name, content in files.items()}
        if listed:
            files = {**files, "manifest.json": json.dumps(listed).encode()}
    for name, content in files.items():
        (batch / name).write_bytes(content)
    suite = tmp_path / "s.yaml"
    suite.write_text(suite_text(models=f"[{tiny_model}]"))
    more = [str(suite)] if command == "plan" else []
    code, said = _ask(capsys, command, *more, "--results", str(tmp_path / "results"))
    assert code == 2
    assert expected in said
    assert str(batch) in said
    assert "Traceback" not in said
    assert "db rebuild" in said


MANIFESTS = {
    "truncated": b'{"method": "sf',
    "empty": b"",
    "a list": b"[]",
    "of nothing": b"{}",
    "not UTF-8": b'{"method": "\xff"}',
}


@pytest.mark.parametrize("case", [c for c in MANIFESTS if c != "of nothing"])
def test_an_artifact_with_a_broken_manifest_is_none(tmp_path: Path, case: str) -> None:
    folder = tmp_path / "artifacts" / KEY
    folder.mkdir(parents=True)
    (folder / "stage.json").write_bytes(MANIFESTS[case])
    assert not Folders(tmp_path).has(KEY)


def test_an_artifact_that_lost_its_weights_is_none(tmp_path: Path) -> None:
    folders = Folders(tmp_path)

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"x" * 10)

    made = folders.put(KEY, {"method": "sft"}, write)
    assert folders.has(KEY)
    (made / "model.safetensors").unlink()
    assert not folders.has(KEY)


def test_foreign_things_among_the_artifacts_stay_and_disturb_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    results = tmp_path / "results"
    artifacts = results / "artifacts"
    (artifacts / "mine").mkdir(parents=True)
    (artifacts / "mine" / "thesis.tex").write_text("all of it")
    (artifacts / "note.txt").write_text("a note")
    (artifacts / "b").symlink_to("/etc")
    for index, content in enumerate(MANIFESTS.values()):
        folder = artifacts / (f"{index}" * 32)
        folder.mkdir()
        (folder / "stage.json").write_bytes(content)
    suite = tmp_path / "s.yaml"
    suite.write_text(suite_text(models=f"[{tiny_model}]"))
    code, said = _ask(capsys, "plan", str(suite), "--results", str(results))
    assert code == 0, said
    main(["gc", "--yes", "--results", str(results)])
    assert (artifacts / "mine" / "thesis.tex").read_text() == "all of it"
    assert (artifacts / "note.txt").exists()
    assert Path("/etc/passwd").exists()


def test_a_database_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "harness.duckdb").write_bytes(b"not a database" * 1000)
    code, said = _ask(capsys, "status", "--results", str(tmp_path))
    assert code == 2
    assert "db rebuild" in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not a stage or measurement"),
        ("[]", "not a stage or measurement"),
        ('{"kind": "stage"}', "Field required"),
        (
            '{"kind": "stage", "key": "../../out", "method": "sft", "version": 1, "params": {}, "inputs": {}, '
            '"data": "bundled", "seed": 0, "precision": "float32"}',
            "key: expected a key",
        ),
    ],
)
def test_a_spec_that_is_none_or_leaves_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, expected: str
) -> None:
    (tmp_path / "spec.json").write_text(content)
    code, said = _ask(capsys, "run-stage", str(tmp_path / "spec.json"), "--results", str(tmp_path / "results"))
    assert code == 2
    assert expected in said
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "results").exists()


def test_an_existing_suite_writes_nowhere_else(refused: Refused) -> None:
    """Names are all that a suite has a say in, where files are written."""
    for changes in (
        {"name": "../up"},
        {"recipes": "{../up: [{sft: {}}]}"},
        {"targets": "[{name: ../up}]"},
        {"name": "a/b"},
        {"name": "'a\\b'"},
    ):
        assert "expected a name of letters" in refused(suite_text(**changes))
