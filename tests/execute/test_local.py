"""Worker processes: results, failures with their tracebacks, crashes retried, and nothing left behind."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from harness.execute import LocalExecutor, Progress, Result, StageSpec
from harness.folders import Folders


def _spec(model: Path, key: str = "k1", **changes: Any) -> StageSpec:
    fields: dict[str, Any] = {
        "key": key,
        "method": "sft",
        "version": _version(),
        "params": {"dataset": "instructions", "steps": 2, "batch_size": 2},
        "inputs": {"policy": f"model:{model}"},
        "dataset": "instructions",
        "data": "bundled",
        "seed": 0,
        "precision": "float32",
        "label": "sft",
    }
    return StageSpec(**{**fields, **changes})


def _version() -> int:
    from methods.sft import SFT

    return SFT.version


def _run(results: Path, *specs: StageSpec) -> tuple[list[Result], list[Progress]]:
    signs: list[Progress] = []

    async def go() -> list[Result]:
        executor = LocalExecutor(results, 2)
        try:
            return [await executor.run(spec, signs.append) for spec in specs]
        finally:
            await executor.close()

    return asyncio.run(go()), signs


def test_one_worker_runs_several_specs_and_reports(tiny_model: Path, tmp_path: Path) -> None:
    broken = _spec(
        tiny_model, "k2", params={"dataset": "instructions", "steps": 4, "batch_size": 2, "learning_rate": 1e30}
    )
    stale = _spec(tiny_model, "k3", version=99)
    results, signs = _run(tmp_path, _spec(tiny_model), broken, stale)
    assert [r.state for r in results] == ["complete", "infeasible", "failed"]
    assert "version" in results[2].message
    assert "Traceback" in results[1].traceback
    assert {s.step for s in signs if s.key == "k1"} >= {1, 2}
    folders = Folders(tmp_path)
    assert folders.has("k1")
    assert folders.manifest("k1")["method"] == "sft"
    assert not folders.has("k2")
    assert not list(folders.artifacts.glob(".*"))


def test_a_worker_that_dies_is_replaced_once_then_the_crash_is_told(tmp_path: Path, tiny_model: Path) -> None:
    method = tmp_path / "deadly.py"
    method.write_text(
        "import os, pathlib\nfrom methods.sft import SFT\n"
        "class Deadly(SFT):\n    name = 'deadly'\n"
        "    def run(self, inputs, params, context):\n"
        f"        pathlib.Path({str(tmp_path)!r}, 'runs').open('a').write('x')\n        os._exit(7)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        results, _ = _run(tmp_path / "results", _spec(tiny_model, method="deadly:Deadly"), _spec(tiny_model, "k2"))
    assert [r.state for r in results] == ["crash", "complete"]
    assert "exit code 7" in results[0].message
    assert (tmp_path / "runs").read_text() == "xx"


def test_half_an_artifact_is_never_visible(tmp_path: Path) -> None:
    folders = Folders(tmp_path)

    def dies(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        folders.put("key", {}, dies)
    assert not folders.has("key")
    assert not list(folders.artifacts.iterdir())
    folders.put("key", {"a": 1}, lambda folder: (folder / "whole").write_text("w") and None)
    assert folders.manifest("key") == {"a": 1}
