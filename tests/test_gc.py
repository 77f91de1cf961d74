"""What is removed, what stays, and that nothing is lost that a sweep cannot compute again."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli import main
from harness.folders import Folders
from harness.gc import find_garbage, remove
from harness.lock import only_one
from harness.provenance import environment
from harness.store import Store
from tests.test_cli import ROOT

EVENT = {"question": "", "yaml": "", "suite_json": {}, "plan_json": {}, "data": "bundled", "environment": "e"}
ROW = {"model": "m", "trial": 0, "seed": 0}


def _artifact(results: Path, key: str, **inputs: str) -> Path:
    manifest = {"method": "sft", "inputs": inputs}
    return Folders(results).put(key, manifest, lambda folder: (folder / "model.bin").write_bytes(b"x" * 1000) and None)


def _link(store: Store, sweep: str, *keys: str) -> None:
    link = {**ROW, "sweep": sweep, "recipe": "r", "step": "sft", "reused": False}
    store.append("stage_links", [{**link, "stage": key, "position": n} for n, key in enumerate(keys)])


def _sweep(store: Store, sweep: str, suite: str, state: str) -> None:
    store.append("sweep_events", [{**EVENT, "sweep": sweep, "suite": suite, "state": state, "at": environment().now()}])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two versions of suite `s`, one sweep of suite `t`, an artifact that was linked by none, and leftovers."""
    results = tmp_path / "results"
    store = Store(results)
    for key, inputs in {
        "shared": {},
        "input": {},
        "old": {"policy": "input"},
        "new": {"policy": "shared", "reference": "model:base"},
        "other": {},
        "loose": {"policy": "shared"},
        "byhand": {},
    }.items():
        _artifact(results, key, **inputs)
    _link(store, "s-1", "old", "shared")
    # By name it goes by `new` alone: `shared` is what that was made from.
    _link(store, "s-2", "new")
    _link(store, "t-1", "other")
    failure: dict[str, object] = dict.fromkeys(("measurement", "peak_mb", "step", "seconds", "command"))
    told = {"kind": "failed", "message": "", "traceback": "", "at": environment().now()}
    store.append("failure_events", [{**failure, **ROW, **told, "sweep": "s-2", "recipe": "r", "stage": "byhand"}])
    _sweep(store, "s-1", "s", "complete")
    _sweep(store, "t-1", "t", "complete")
    _sweep(store, "s-2", "s", "running")
    for leftover in (
        "artifacts/.half.abc/model.bin",
        "artifacts/.damaged-gone/x",
        "scratch/k.1/x",
        "work/1a/spec.json",
    ):
        (results / leftover).parent.mkdir(parents=True)
        (results / leftover).write_text("left")
    store.ingest()
    return store


LEFT = {".half.abc", ".damaged-gone", "k.1", "1a"}


def test_what_nothing_refers_to_and_leftovers_are_found(store: Store) -> None:
    found = {one.path.name: one for one in find_garbage(store)}
    assert set(found) == {"loose", *LEFT}
    assert (found["loose"].method, found["loose"].why) == ("sft", "no run of any sweep goes by it")
    assert found["loose"].bytes > 1000
    assert 0 <= found["loose"].age_s < 600
    assert found[".damaged-gone"].why == "damaged, set aside by a sweep"
    # A later version that has not run to its end has not replaced anything: it still finds what it needs.
    assert {one.path.name for one in find_garbage(store, superseded=True)} == set(found)


def test_what_only_replaced_sweeps_go_by_is_found_on_demand(store: Store) -> None:
    _sweep(store, "s-2", "s", "complete")
    store.ingest()
    assert {one.path.name for one in find_garbage(store)} == {"loose", *LEFT}
    found = {one.path.name: one.why for one in find_garbage(store, superseded=True)}
    assert set(found) == {"loose", "old", "input", *LEFT}
    assert found["old"] == found["input"] == "only replaced sweeps go by it: s-1 (now s-2)"
    # The other version again, run to its end last: it is the one that counts now.
    _sweep(store, "s-1", "s", "complete")
    store.ingest()
    assert {one.path.name for one in find_garbage(store, superseded=True)} == {"loose", "new", "byhand", *LEFT}


def test_a_damaged_manifest_does_not_unlink_what_the_store_knows(store: Store) -> None:
    row: dict[str, object] = {
        "stage": "old",
        "method": "sft",
        "method_version": 1,
        "params": {},
        "precision": "float32",
    }
    row |= {"inputs": {"policy": "input"}, "dataset": None, "dataset_fingerprint": None, "seed": 0, "seconds": 1.0}
    row |= {"peak_rss_mb": 1.0, "metrics": {}, "environment": "e", "at": environment().now()}
    store.append("stages", [row])
    store.ingest()
    (store.results / "artifacts" / "old" / "stage.json").write_text("{")
    assert "input" not in {one.path.name for one in find_garbage(store)}


def test_a_removal_that_is_cut_short_leaves_nothing_that_looks_complete(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (loose,) = [one for one in find_garbage(store) if one.path.name == "loose"]

    def dies(path: Path) -> None:
        del path
        raise KeyboardInterrupt

    removing: Callable[[Path], None] = shutil.rmtree
    monkeypatch.setattr("harness.gc.shutil.rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        remove(loose)
    monkeypatch.setattr("harness.gc.shutil.rmtree", removing)
    folders = Folders(store.results)
    assert not folders.holds("loose")
    found = {one.path.name: one for one in find_garbage(store)}
    assert found[".removed-loose"].why == "not wholly removed the last time"
    remove(found[".removed-loose"])
    assert not list(folders.artifacts.glob("*loose*"))


def test_the_command_shows_and_removes_only_when_told(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    results = store.results
    command = ["gc", "--results", str(results)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "loose" in shown
    assert "5 in all" in shown
    assert "Nothing was removed: add --yes" in shown
    assert (results / "artifacts" / "loose").is_dir()
    with only_one(results, "the sweep s-2"):
        assert main([*command, "--yes"]) == 2
    assert "the sweep s-2 is at work in" in capsys.readouterr().err
    assert main([*command, "--yes"]) == 0
    assert "Removed 5." in capsys.readouterr().out
    assert {p.name for p in (results / "artifacts").iterdir()} == {"shared", "input", "old", "new", "other", "byhand"}
    assert main([*command, "--yes"]) == 0
    assert capsys.readouterr().out == "Nothing to remove.\n"
    assert main(["gc", "--results", str(results / "none")]) == 2
    assert store.query("SELECT count(*) FROM raw.stage_links").rows() == [(4,)]


def test_the_database_is_made_anew_from_the_shards(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    before = store.query("FROM suites ORDER BY sweep").rows()
    store.database.write_bytes(b"no database")
    with only_one(store.results, "the sweep s-2"):
        assert main(["db", "rebuild", "--results", str(store.results)]) == 2
    assert "is at work in" in capsys.readouterr().err
    assert main(["db", "rebuild", "--results", str(store.results)]) == 0
    assert "made anew from the shards, 8 rows." in capsys.readouterr().out
    assert store.query("FROM suites ORDER BY sweep").rows() == before
    assert main(["db", "rebuild", "--results", str(store.results / "none")]) == 2
    assert "no shards under" in capsys.readouterr().err


def test_on_a_terminal_it_asks(store: Store) -> None:
    """A real one: `script` gives the command a pseudo terminal."""
    import pty

    command = [sys.executable, "-m", "harness.cli", "gc", "--results", str(store.results)]
    for answer, there in ((b"\n", True), (b"yes\n", False)):
        mine, theirs = pty.openpty()
        child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT)
        import os

        os.close(theirs)
        os.write(mine, answer)
        assert child.wait(timeout=60) == 0
        os.close(mine)
        assert (store.results / "artifacts" / "loose").is_dir() == there
    assert json.loads((store.results / "artifacts" / "new" / "stage.json").read_text())["method"] == "sft"
