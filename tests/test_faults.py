"""Damaged artifacts, full disks, folders that cannot be written: what is noticed and kept, and what the user reads."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import pytest

from harness import _digests
from harness._disk import discard, replace, results_problem, storage_error
from harness.errors import StorageError, UserError
from harness.execute import StageSpec, run_spec
from harness.folders import Folders
from harness.store import Store
from tests.disks import leave, remount, small_disk
from tests.in_process import commanded

ROOT = Path(__file__).parent.parent
WEIGHTS = bytes(range(256)) * 40


def _write(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "config.json").write_text("{}")


def _quietly_change(file: Path, content: bytes) -> None:
    """As a failing disk does: the size and the time of the file stay."""
    before = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _later(folders: Folders) -> Folders:
    """The folders as another process sees them, which has read nothing yet."""
    _digests._SOUND.clear()
    return folders


def test_a_manifest_lists_every_file_and_gives_back_what_it_was_given(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folder = folders.put("k", {"method": "sft", "metrics": {"loss": 0.1}}, _write)
    listed = json.loads((folder / "stage.json").read_text())["files"]
    assert set(listed) == {"model.safetensors", "adapter/config.json"}
    assert listed["model.safetensors"]["size"] == len(WEIGHTS)
    assert folders.manifest("k") == {"method": "sft", "metrics": {"loss": 0.1}}
    assert _later(folders).check("k") is None
    assert folders.model("k") == folder


_DAMAGE: dict[str, tuple[str, Callable[[Path], object], str, bool]] = {
    "cut off": (
        "model.safetensors",
        lambda f: f.write_bytes(WEIGHTS[:-1]),
        "10239 bytes, 10240 were written",
        False,
    ),
    "gone": ("adapter/config.json", Path.unlink, "No such file", False),
    "flipped": ("model.safetensors", lambda f: _quietly_change(f, WEIGHTS[:-1] + b"\0"), "content of model", True),
    "manifest cut off": ("stage.json", lambda f: f.write_bytes(f.read_bytes()[:40]), "stage.json: ", False),
    "manifest empty": ("stage.json", lambda f: f.write_bytes(b""), "stage.json: ", False),
    "manifest no text": ("stage.json", lambda f: f.write_bytes(b"\xff" * 40), "stage.json: ", False),
    "manifest changed": ("stage.json", lambda f: f.write_text(f.read_text().replace("0.1", "0.2")), "sha256", False),
    "manifest gone": ("stage.json", Path.unlink, "stage.json is not there", False),
}


@pytest.mark.parametrize("name", _DAMAGE)
def test_a_damaged_artifact_is_never_used(tmp_path: Path, name: str) -> None:
    file, change, reason, complete = _DAMAGE[name]
    folders = Folders(tmp_path)
    folder = folders.put("k", {"loss": 0.1}, _write)
    change(folder / file)
    assert _later(folders).has("k") is complete
    assert reason in (folders.check("k") or "sound")
    with pytest.raises(StorageError, match=r"is damaged: .* Run the same command again: it sets the artifact aside"):
        folders.model("k")
    aside = folders.set_aside("k")
    assert aside.name == ".damaged-k"
    assert not folders.holds("k")
    folders.put("k", {"loss": 0.1}, _write)
    assert _later(folders).check("k") is None
    # What is left of the damaged one is kept, also through the next start of a sweep, and beside the next such one.
    folders.sweep_out()
    assert aside.is_dir()
    assert folders.set_aside("k").name == ".damaged-k-2"


def test_a_damaged_artifact_does_not_keep_a_new_one_out(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folder = folders.put("k", {}, _write)
    _quietly_change(folder / "model.safetensors", b"\0" * len(WEIGHTS))
    _later(folders).put("k", {}, _write)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folders.artifacts / ".damaged-k").is_dir()


def test_an_artifact_of_before_counts_as_complete(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folder = folders.artifacts / "old"
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text('{"method": "sft"}\n')
    assert folders.has("old")
    assert folders.check("old") is None
    assert folders.manifest("old") == {"method": "sft"}
    with pytest.raises(UserError, match="no complete artifact other"):
        folders.model("other")


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, read = Folders(tmp_path), []
    facts_of = _digests.facts_of
    monkeypatch.setattr(_digests, "facts_of", lambda file: read.append(file.name) or facts_of(file))
    folder = folders.put("k", {}, _write)
    read.clear()
    # This process has read it when it wrote it.
    assert folders.check("k") is None
    assert read == []
    _later(folders).model("k")
    folders.model("k")
    assert sorted(read) == ["config.json", "model.safetensors"]
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    assert folders.check("k") is None
    assert read[2:] == ["model.safetensors"]


def _torch_save(folder: Path) -> None:
    import torch

    torch.save({"weight": torch.ones(2**18)}, folder / "rows.pt")


def _safetensors_save(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2**18)}, folder / "model.safetensors")


@pytest.mark.parametrize("write", [_torch_save, _safetensors_save, lambda f: (f / "a").write_bytes(b"a" * 2**20)])
def test_a_disk_that_fills_up_leaves_no_half_artifact(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        folders = Folders(disk / "results")
        folders.put("first", {}, _write)
        ballast = leave(disk, 512)
        with pytest.raises(StorageError) as caught:
            folders.put("k", {}, write)
        assert re.fullmatch(
            rf"cannot write in {folders.artifacts}: No space left on device \(\d\.\d MiB free\)\. Nothing that was "
            "finished is lost: free some space there, and run the same command again",
            str(caught.value),
        )
        assert [p.name for p in folders.artifacts.iterdir()] == ["first"]
        ballast.unlink()
        folders.put("k", {}, write)
        assert _later(folders).check("k") is None
        assert folders.check("first") is None


def test_what_was_being_written_when_its_process_was_killed_goes_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, other = tmp_path / "a.result", tmp_path / "ab.result"
    for one in (file, other):
        replace(one, "{}")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: pytest.fail("killed here", pytrace=False))
        with pytest.raises(pytest.fail.Exception, match="killed here"):
            replace(file, "{}")
    assert len(list(tmp_path.iterdir())) == 3
    discard(file)
    assert list(tmp_path.iterdir()) == [other]
    discard(file)


def test_a_methods_own_error_is_no_fault_of_the_disk(tmp_path: Path) -> None:
    def wrong(folder: Path) -> None:
        raise RuntimeError(f"no gradient in {folder}")

    with pytest.raises(RuntimeError, match="no gradient"):
        Folders(tmp_path).put("k", {}, wrong)
    # Refused elsewhere it is the method's affair; below the results, or for want of space anywhere, it is not.
    assert storage_error(PermissionError(13, "Permission denied", "/etc/shadow"), tmp_path) is None
    assert storage_error(PermissionError(13, "Permission denied", str(tmp_path / "scratch" / "a")), tmp_path)
    found = storage_error(OSError(28, "No space left on device", "/tmp/cache/a"), tmp_path)
    assert "cannot write in /tmp/cache: " in str(found)


def _stage(model: Path, key: str, **inputs: str) -> StageSpec:
    return StageSpec(
        key=key,
        method="sft",
        version=_version("sft"),
        params={"dataset": "instructions", "steps": 1, "batch_size": 2},
        inputs=inputs or {"policy": f"model:{model}"},
        dataset="instructions",
        data="bundled",
        seed=0,
        precision="float32",
        label="sft",
    )


def _version(method: str) -> int:
    from harness.method import find_method

    return find_method(method).version


def test_a_stage_on_a_full_disk_or_a_damaged_input_is_not_the_methods_failure(tiny_model: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4096) as disk:
        ballast = leave(disk, 300)
        result = run_spec(_stage(tiny_model, "first"), disk / "results", lambda _: None)
        assert (result.state, result.storage) == ("failed", True)
        assert "No space left on device" in result.message
        assert "run the same command again" in result.message
        ballast.unlink()
        assert run_spec(_stage(tiny_model, "first"), disk / "results", lambda _: None).state == "complete"
        weights = _later(Folders(disk / "results")).artifacts / "first" / "model.safetensors"
        _quietly_change(weights, weights.read_bytes()[:-1] + b"\x7f")
        result = run_spec(_stage(tiny_model, "second", policy="first"), disk / "results", lambda _: None)
        assert result.storage
        assert "first is damaged: the content of model.safetensors is not what was written" in result.message


def test_a_place_that_cannot_hold_results_is_told_before_anything_runs(tmp_path: Path) -> None:
    assert results_problem(tmp_path / "new" / "results") is None
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, said in (
        (tmp_path / "file", "file is a file, not a folder"),
        (tmp_path / "file" / "results", "file is a file, not a folder"),
        (tmp_path / "link", "link is a link to nothing"),
        (Path("/proc/results"), "cannot write in /proc: "),
    ):
        assert said in (results_problem(path) or "")
        assert "--results" in (results_problem(path) or "")
    (tmp_path / "shards").write_text("mine")
    assert "shards is not a folder" in (results_problem(tmp_path) or "")


def test_a_read_only_or_full_disk_is_told_before_anything_runs(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 512) as disk:
        assert results_problem(disk / "results") is None
        leave(disk, 0)
        assert re.search(r"No space left on device \(0\.0 MiB free\); free some", results_problem(disk) or "")
        remount(disk, "ro")
        assert "Read-only file system; make it writable for you" in (results_problem(disk / "results") or "")
        with pytest.raises(StorageError, match="Read-only file system"):
            Folders(disk).put("k", {}, _write)


@pytest.mark.skipif(os.getuid() != 0, reason="becoming a user without rights takes root")
def test_folders_of_another_user_are_told_before_anything_runs(tmp_path: Path) -> None:
    for part in takewhile(lambda folder: folder != Path(tempfile.gettempdir()), (tmp_path, *tmp_path.parents)):
        part.chmod(0o755)
    (tmp_path / "mine").mkdir(mode=0o777)
    (tmp_path / "mine").chmod(0o777)
    (tmp_path / "mine" / "harness.duckdb").write_text("")
    (tmp_path / "theirs").mkdir(mode=0o755)
    code = (
        "import os, sys\nfrom pathlib import Path\nimport polars\nfrom harness._disk import results_problem\n"
        "from harness.errors import StorageError\nfrom harness.store import Store\n"
        "os.setuid(65534)\n"
        "for name in ('mine', 'theirs', 'theirs/results'):\n    print(results_problem(Path(sys.argv[1], name)))\n"
        "row = {'environment': 'e', 'json': '{}'}\n"
        "try:\n    Store(Path(sys.argv[1], 'theirs')).append('environment_rows', [row])\n"
        "except StorageError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    mine, theirs, below, store = done.stdout.splitlines()
    assert mine.startswith(f"cannot write to {tmp_path}/mine/harness.duckdb; make it writable")
    assert theirs.startswith(f"cannot write in {tmp_path}/theirs: Permission denied; make it writable for you")
    assert below.startswith(f"cannot write in {tmp_path}/theirs: Permission denied")
    assert store.startswith(f"cannot write in {tmp_path}/theirs/shards: Permission denied")


SUITE = """
name: faults
question: Does it go on?
models: [{model}]
recipes:
  sft: [{{sft: {{steps: 2, batch_size: 2}}}}]
  dpo: [{{use: sft}}, {{dpo: {{steps: 2, batch_size: 2}}}}]
targets: [{{name: cpu, device: cpu, dtype: float32}}]
measure:
  tasks: {{truthfulqa_mc1: {{limit: 6}}}}
precision: float32
seeds: [0]
budget: {{trials_per_cell: 1}}
"""


def _sweep(suite: Path, results: Path, *, workers: bool) -> "subprocess.CompletedProcess[str]":
    places = ["--results", str(results), "--reports", str(suite.parent / "reports")]
    # As another process sees it, which has read nothing yet.
    _digests._SOUND.clear()
    return commanded("sweep", str(suite), "--workers", "1", *places, workers=workers)


def test_a_sweep_goes_on_after_a_full_disk_and_computes_a_damaged_artifact_anew(
    tiny_model: Path, tmp_path: Path
) -> None:
    suite = tmp_path / "faults.yaml"
    suite.write_text(SUITE.format(model=tiny_model))
    with small_disk(tmp_path / "disk", 2500) as disk:
        results = disk / "results"
        stopped = _sweep(suite, results, workers=True)
        assert stopped.returncode == 1, stopped.stderr
        (line,) = [said for said in stopped.stderr.splitlines() if said.startswith("harness: ")]
        assert line.startswith(f"harness: cannot write in {results}")
        assert line.endswith("free some space there, and run the same command again")
        assert "Traceback" not in stopped.stderr
        finished = {json.loads(p.read_text())["method"]: p.parent for p in results.glob("artifacts/*/stage.json")}
        kept = finished["sft"]
        remount(disk, "size=200m")
        weights = kept / "model.safetensors"
        sound = weights.read_bytes()
        _quietly_change(weights, sound[:-1] + bytes([sound[-1] ^ 1]))
        done = _sweep(suite, results, workers=False)
        assert done.returncode == 0, done.stderr
        assert f"artifact {kept.name} is damaged (the content of model.safetensors is not what was" in done.stderr
        assert "Report: " in done.stdout
        assert weights.read_bytes() == sound
        assert (kept.parent / f".damaged-{kept.name}" / "model.safetensors").is_file()
        shutil.copytree(results / "shards", tmp_path / "again" / "shards")
    store = Store(tmp_path / "again")
    store.ingest()
    states = store.query("SELECT recipe, state FROM trials ORDER BY ALL").rows()
    assert states == [("base", "complete"), ("dpo", "complete"), ("sft", "complete")]
    # Nothing failed, and of what was computed twice one row counts.
    assert store.query("SELECT count(*) FROM failures").item() == 0
    assert store.query("SELECT method, count(*) FROM stages GROUP BY ALL ORDER BY ALL").rows() == [
        ("dpo", 1),
        ("methods._reference_logprobs:ReferenceLogprobs", 1),
        ("sft", 1),
    ]
