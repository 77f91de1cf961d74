"""The profile: rows that agree with each other, made in a fresh process that measures only itself."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.errors import InfeasibleError, MeasurementError, UserError
from harness.measure._profile_run import _prompt, _Session, is_out_of_memory
from harness.measure.profile import measure_profile
from harness.targets import Target

CPU = Target(name="cpu")
SHORT = {"prompt_tokens": 8, "new_tokens": 3, "batch_sizes": [2, 1], "repeats": 3, "warmup": 1}
ROOT = Path(__file__).parent.parent.parent


def _by_metric(rows: list[dict[str, object]]) -> dict[tuple[str, str], list[float]]:
    found = defaultdict(list)
    for row in rows:
        values = found[str(row["setting"]), str(row["metric"])]
        assert row["repeat"] == len(values)
        values.append(float(str(row["value"])))
    return dict(found)


def test_rows_agree_with_the_definitions(tiny_model: Path) -> None:
    from harness.models import load_model

    found = _by_metric(measure_profile(tiny_model, Target(name="b", dtype="bfloat16"), SHORT, 120))
    for batch in (1, 2):
        one = {m: v for (s, m), v in found.items() if s == f"batch={batch}"}
        assert {m: len(v) for m, v in one.items()} == {
            **dict.fromkeys(["ttft_ms", "tpot_ms", "e2e_ms", "tokens_per_s", "prefill_tokens_per_s"], 3),
            **dict.fromkeys(["other_load", "peak_rss_mb"], 1),
        }
        for i in range(3):
            assert one["e2e_ms"][i] == pytest.approx(one["ttft_ms"][i] + 2 * one["tpot_ms"][i])
            assert one["tokens_per_s"][i] == pytest.approx(batch * 3 / one["e2e_ms"][i] * 1e3)
            assert one["prefill_tokens_per_s"][i] == pytest.approx(batch * 8 / one["ttft_ms"][i] * 1e3)
            assert one["ttft_ms"][i] > 0
    model = load_model(tiny_model).model
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    parameters = sum(p.numel() for p in model.parameters())
    assert found["load", "weight_mb"] == [pytest.approx((parameters * 2 + buffers) / 2**20, rel=0.01)]
    disk = (tiny_model / "model.safetensors").stat().st_size
    assert found["load", "weight_disk_mb"] == [pytest.approx(disk / 2**20)]
    assert found["load", "load_ms"][0] > 0
    assert found["batch=2", "peak_rss_mb"][0] >= found["batch=1", "peak_rss_mb"][0] > 50


def test_memory_is_that_of_the_fresh_process_not_of_its_parent() -> None:
    code = "from harness.targets import peak_rss_mb; print(peak_rss_mb())"
    parent = f"""
import subprocess, sys
ballast = b"x" * (400 * 2**20)
print(subprocess.run([sys.executable, "-c", {code!r}], capture_output=True, text=True, check=True).stdout)
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True, cwd=ROOT)
    assert float(done.stdout) < 300


def test_a_target_of_another_machine_is_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="'half' cannot run on this machine: float16"):
        measure_profile(tiny_model, Target(name="half", dtype="float16"), SHORT, 60)


def test_bad_settings_are_refused(tiny_model: Path) -> None:
    with pytest.raises(UserError, match="new_tokens"):
        measure_profile(tiny_model, CPU, {**SHORT, "new_tokens": 0}, 60)


def test_a_model_that_cannot_be_loaded_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot load the model"):
        measure_profile(tmp_path, CPU, SHORT, 120)


def test_a_failing_process_is_told_with_its_traceback(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(MeasurementError, match=r"(?s)Traceback.*Error"):
        measure_profile(folder, CPU, SHORT, 120)


def test_a_process_past_its_time_is_ended(tiny_model: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"longer than 0\.2 s"):
        measure_profile(tiny_model, CPU, SHORT, 0.2)


def _profiling_child(parent: int) -> psutil.Process | None:
    for child in psutil.Process(parent).children():
        with contextlib.suppress(psutil.Error):
            # A child that has not come to its own program yet shows its parent's.
            if child.cmdline()[1:3] == ["-m", "harness.measure.profile"]:
                return child
    return None


def _ended(process: psutil.Process) -> bool:
    # Nobody may be there to collect an orphan, which then stays as a zombie.
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _wait(for_what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := for_what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize("at_work", [False, True])
def test_the_process_dies_with_the_one_that_started_it(tiny_model: Path, tmp_path: Path, at_work: bool) -> None:
    """Whether it has just been started or is at work; its parent is killed, and so cannot end it."""
    code = (
        "import pathlib, harness.measure.profile as p; from harness.targets import Target\n"
        f"p.measure_profile(pathlib.Path({str(tiny_model)!r}), Target(name='cpu'), {SHORT | {'repeats': 10**9}}, 600)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment) as parent:
        try:
            child: psutil.Process = _wait(lambda: _profiling_child(parent.pid))
            if at_work:
                _wait(lambda: any("libtorch" in m.path for m in child.memory_maps()))
        finally:
            parent.kill()
    try:
        _wait(lambda: _ended(child))
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def test_out_of_memory_is_infeasible(tiny_model: Path) -> None:
    # A cache of far more memory than any machine has: the allocation fails at once.
    with pytest.raises(InfeasibleError, match="out of memory on target 'cpu'"):
        measure_profile(tiny_model, CPU, {**SHORT, "prompt_tokens": 1, "batch_sizes": [10**13]}, 120)


def test_which_errors_are_want_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))


def test_threads_are_the_targets(tiny_model: Path, tmp_path: Path) -> None:
    """In the process itself, whatever the environment said before."""
    spec = {"folder": str(tiny_model), "target": {"name": "two", "threads": 2}, "settings": {**SHORT, "repeats": 1}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    code = (
        "import sys, harness.measure.profile as p; status = p.main(sys.argv[1:]); import torch;"
        "print('status', status, 'threads', torch.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "spec.json"), str(tmp_path / "out.json")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "status 0 threads 2" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["rows"]


def test_the_static_cache_gives_the_tokens_of_the_growing_one(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through dynamo, without the minutes of inductor, and on a second request, which finds the cache used."""
    import torch

    from harness.models import load_model

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    loaded = load_model(tiny_model)
    prompt = _prompt(loaded, 2, 8)
    assert not set(prompt.flatten().tolist()) & set(loaded.tokenizer.all_special_ids)
    chosen = {}
    for backend, static in (("eager", False), ("inductor", True)):
        session = _Session(loaded, Target(name="x", backend=backend), prompt_tokens=8, new_tokens=5)
        session.prepare()
        assert session.static == static
        step, tokens = session.step, []

        def watched(step: Any = step, tokens: list[object] = tokens, **call: object) -> Any:
            output = step(**call)
            tokens.append(output.logits[:, -1].argmax(-1).tolist())
            return output

        session.step = watched
        times = session.request(prompt)
        assert times == sorted(times)
        session.request(prompt)
        assert tokens[:5] == tokens[5:]
        chosen[backend] = tokens
    assert chosen["eager"] == chosen["inductor"]


@pytest.mark.skipif(
    not (os.environ.get("HARNESS_SLOW_TESTS") and shutil.which("g++")),
    reason="inductor compiles for up to two minutes; with g++ installed, set HARNESS_SLOW_TESTS=1",
)
def test_a_compiled_target_tells_its_compile_time_apart(tiny_model: Path) -> None:
    settings = {**SHORT, "batch_sizes": [1], "repeats": 2}
    found = _by_metric(measure_profile(tiny_model, Target(name="c", backend="inductor"), settings, 300))
    (compiling,) = found["batch=1", "compile_ms"]
    assert len(found["batch=1", "e2e_ms"]) == 2
    assert compiling > 5 * max(found["batch=1", "e2e_ms"])
