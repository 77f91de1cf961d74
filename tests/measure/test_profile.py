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

from harness._percentiles import NEEDED, far_apart, needed, percentiles
from harness.errors import InfeasibleError, MeasurementError, UserError
from harness.measure._backends import make_prompt, request
from harness.measure._energy import Counter, Meter, clocks, counters, rapl_counters, rapl_problem
from harness.measure._placement import device_map
from harness.measure._profile_run import _batch_rows, is_out_of_memory, request_rows
from harness.measure._torch_session import TorchSession, compile_settings
from harness.measure._weights import resident_bytes, stored_bytes
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
            **dict.fromkeys(["other_load", "peak_rss_mb", *clocks([])], 1),
            **{f"energy_{counter.device}_j": 1 for counter in counters([])},
            "itl_ms": 3 * 2,
        }
        for i in range(3):
            assert one["e2e_ms"][i] == pytest.approx(one["ttft_ms"][i] + 2 * one["tpot_ms"][i])
            assert one["tokens_per_s"][i] == pytest.approx(batch * 3 / one["e2e_ms"][i] * 1e3)
            assert one["prefill_tokens_per_s"][i] == pytest.approx(batch * 8 / one["ttft_ms"][i] * 1e3)
            assert one["ttft_ms"][i] > 0
            gaps = one["itl_ms"][2 * i : 2 * i + 2]
            assert min(gaps) > 0
            assert one["ttft_ms"][i] + sum(gaps) == pytest.approx(one["e2e_ms"][i])
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
    assert _greedy(load_model(tiny_model), Target(name="x")) == _greedy(
        load_model(tiny_model), Target(name="x", backend="inductor")
    )


def _greedy(loaded: Any, target: Target) -> list[object]:
    """The tokens of a request, made through the session; a second request finds the cache used and the same tokens."""
    session = TorchSession(loaded, target, prompt_tokens=8, new_tokens=5)
    assert session.static == (target.backend != "eager")
    prompt = make_prompt(session.ordinary_tokens(), 2, 8)
    assert not set(prompt.flatten().tolist()) & set(loaded.tokenizer.all_special_ids)
    assert (prompt[0] != prompt[1]).any()
    step, tokens = session.step, []

    def watched(given: Any) -> Any:
        chosen = step(given)
        tokens.append(chosen.tolist())
        return chosen

    session.step = watched  # type: ignore[method-assign]  # watched from outside, as it is called
    session.prepare()
    times = request(session, prompt, 5)
    assert times == sorted(times)
    assert times[0] > 0
    request(session, prompt, 5)
    assert tokens[:5] == tokens[5:]
    return tokens


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


def test_a_request_has_the_times_of_its_tokens() -> None:
    rows = request_rows("batch=2", [0.5, 0.6, 0.9], batch=2, prompt_tokens=10, repeat=1)
    found = {(str(r["metric"]), r["repeat"]): r["value"] for r in rows}
    assert found == pytest.approx(
        {
            ("ttft_ms", 1): 500.0,
            ("tpot_ms", 1): 200.0,
            ("itl_ms", 2): 100.0,
            ("itl_ms", 3): 300.0,
            ("e2e_ms", 1): 900.0,
            ("tokens_per_s", 1): 2 * 3 / 0.9,
            ("prefill_tokens_per_s", 1): 2 * 10 / 0.5,
        }
    )


def test_one_token_has_no_time_between_tokens() -> None:
    rows = list(request_rows("batch=1", [0.5], batch=1, prompt_tokens=10, repeat=0))
    assert {str(r["metric"]) for r in rows} == {"ttft_ms", "e2e_ms", "tokens_per_s", "prefill_tokens_per_s"}


def test_percentiles_need_their_samples() -> None:
    assert dict(NEEDED) == {"p50": 1, "p90": 44, "p95": 90, "p99": 459}
    for q in (0.9, 0.95, 0.99):
        assert 1 - q ** needed(q) >= 0.99 > 1 - q ** (needed(q) - 1)
    have = {n: "".join(percentiles([float(i) for i in range(n)])) for n in (0, 1, 43, 44, 89, 90, 458, 459)}
    assert have == {
        0: "",
        **dict.fromkeys((1, 43), "p50"),
        **dict.fromkeys((44, 89), "p50p90"),
        **dict.fromkeys((90, 458), "p50p90p95"),
        459: "p50p90p95p99",
    }


def test_percentiles_are_numpys() -> None:
    import numpy as np

    samples = list(np.random.default_rng(0).lognormal(size=500))
    expected = dict(zip(NEEDED, np.quantile(samples, [0.5, 0.9, 0.95, 0.99]), strict=True))
    assert percentiles(samples) == pytest.approx(expected)


def test_the_criterion_keeps_its_word() -> None:
    """Of samples just large enough, about one in a hundred lies wholly below the true percentile; of 10, a third do."""
    import numpy as np

    draw = np.random.default_rng(0)
    below = [(draw.random((20_000, n)).max(axis=1) < 0.9).mean() for n in (NEEDED["p90"], 10)]
    assert 0.006 < below[0] <= 0.0125
    assert below[1] > 0.3


def test_outliers_are_flagged_in_either_direction_and_hide_nothing() -> None:
    steady = [10.0, 10.1, 9.9, 10.2, 9.8, 10.0, 10.1, 9.9, 10.0]
    assert sum(far_apart(steady)) == 0
    assert far_apart([*steady, 30.0, 1.0]) == [False] * 9 + [True, True]
    # Of a standard deviation, one wild value among few is never three away.
    assert far_apart([10.0, 10.1, 9.9, 10.2, 9.8, 1000.0]) == [False] * 5 + [True]
    assert far_apart([5.0] * 10) == [False] * 10
    assert far_apart([5.0] * 10 + [9.0]) == [False] * 10 + [True]
    assert far_apart([]) == []


class _Clockwork:
    """A session that takes the time it is told to: `slow` seconds a step in the first requests, 1 ms in later ones."""

    def __init__(self, slow: float, slow_requests: int, *, compiles: bool = False) -> None:
        self.slow, self.slow_requests, self.compiles = slow, slow_requests, compiles
        self.requests = self.prepared = 0

    def ordinary_tokens(self) -> list[int]:
        return [1, 2]

    def weight_bytes(self) -> None:
        return None

    def prepare(self) -> None:
        self.prepared += 1

    def begin(self, prompt: Any) -> Any:
        self.requests += 1
        return prompt

    def step(self, tokens: Any) -> Any:
        time.sleep(self.slow if self.requests <= self.slow_requests else 0.001)
        return tokens[:, -1:]

    def device_peaks(self) -> dict[str, int]:
        return {"peak_cuda": 3 * 2**20}


def test_warm_up_and_compilation_are_no_repeats() -> None:
    session = _Clockwork(0.2, 2, compiles=True)
    prompt = make_prompt([1, 2], 3, 4)
    found = _by_metric(list(_batch_rows(session, prompt, [], new_tokens=2, repeats=9, warmup=1)))
    assert (session.prepared, session.requests) == (1, 1 + 1 + 9)
    one = {metric: values for (setting, metric), values in found.items() if setting == "batch=3"}
    assert one["compile_ms"][0] >= 400
    assert max(one["e2e_ms"]) < 200
    assert one["peak_cuda_mb"] == [3]
    # Of nine repeats the usual distance from the median is a guess.
    assert "outliers" not in one


def test_an_outlier_is_counted_and_kept() -> None:
    found = _by_metric(list(_batch_rows(_Clockwork(0.3, 1), make_prompt([1], 1, 4), [], 1, repeats=12, warmup=0)))
    assert found["batch=1", "outliers"][0] >= 1
    assert len(found["batch=1", "e2e_ms"]) == 12
    assert max(found["batch=1", "e2e_ms"]) >= 300


def test_quantised_weights_count_what_is_inside_them(tiny_model: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    import torch

    from harness.models import load_model

    model = load_model(tiny_model).model
    before = resident_bytes(model)
    linear = [m.weight for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    elements, rows = sum(w.numel() for w in linear), sum(w.shape[0] for w in linear)

    def wanted(module: object, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and name != "lm_head"

    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), wanted)
    # An int8 for each weight, and a scale of its own for each row.
    assert before - resident_bytes(model) == pytest.approx(3 * elements - 4 * rows, rel=0.02)


def test_files_of_weights_are_those_that_the_target_reads(tmp_path: Path) -> None:
    for name, size in {
        "a.safetensors": 7, "b.safetensors": 5, "m.onnx": 3, "m.onnx.data": 11, "m.gguf": 13, "tokenizer.json": 17,
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(b"x" * size)
    read = {b: stored_bytes(tmp_path, Target.model_validate({"name": b, "backend": b})) for b in _BACKENDS}
    assert read == {"eager": 12, "onnxruntime": 14, "openvino": 0, "llamacpp": 13}


_BACKENDS = ("eager", "onnxruntime", "openvino", "llamacpp")


def test_placement_spreads_layers_over_gpus_and_splits_none(tiny_model: Path) -> None:
    """As far as it goes without GPUs: which part of the model goes where, for given free memory."""
    from harness.models import load_model

    model = load_model(tiny_model).model
    layer = sum(p.numel() * 4 for p in model.model.layers[0].parameters())
    rest = resident_bytes(model) - 2 * layer
    small = device_map(model, {0: rest + 2 * layer, 1: rest + 2 * layer, "cpu": 2**30})
    assert set(small.values()) <= {0, 1}
    spilled = device_map(model, {0: rest + layer, "cpu": 2**30})
    assert set(spilled.values()) == {0, "cpu"}
    for found in (small, spilled):
        assert not [name for name in found if name.count(".") > 2 and name.startswith("model.layers")]
    with pytest.raises(InfeasibleError, match="does not fit"):
        device_map(model, {0: layer, "cpu": layer})


def test_offloaded_weights_answer_as_placed_ones_do(tiny_model: Path) -> None:
    """accelerate's hooks, with the CPU in the GPU's place: the tokens stay the same, the weights leave the model."""
    import torch
    from accelerate import cpu_offload

    from harness.models import load_model

    offloaded = load_model(tiny_model)
    cpu_offload(offloaded.model, execution_device=torch.device("cpu"))
    assert {p.device.type for p in offloaded.model.parameters()} == {"meta"}
    assert _greedy(offloaded, CPU) == _greedy(load_model(tiny_model), CPU)


def test_tensorrt_is_compiled_as_it_is_configured(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it goes without a GPU: a backend of TensorRT's name gets both graphs, whole, with our options."""
    import torch
    from torch._dynamo.backends import registry

    from harness.measure import _torch_session
    from harness.models import load_model

    graphs: list[dict[str, object]] = []

    def stand_in(graph: Any, inputs: list[Any], options: dict[str, object] | None = None) -> Any:
        graphs.append(dict(options or {}))
        return graph.forward

    monkeypatch.setitem(registry._BACKENDS, "torch_tensorrt", None)
    monkeypatch.setitem(registry._COMPILER_FNS, "torch_tensorrt", stand_in)
    monkeypatch.setattr(_torch_session, "gpus", lambda target: [])
    monkeypatch.setattr(_torch_session, "input_device", lambda target: "cpu")
    target = Target(name="trt", device="cuda", backend="tensorrt")
    assert _greedy(load_model(tiny_model), target) == _greedy(load_model(tiny_model), CPU)
    options = compile_settings(target, static=True)["options"]
    assert options["pass_through_build_failures"]
    # Prefill and decoding, each one graph: a break would make more.
    assert graphs == [options] * 2
    torch.compiler.reset()


def test_tensorrt_refuses_a_model_of_several_graphs(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.measure import _torch_session
    from harness.models import load_model

    monkeypatch.setattr(_torch_session, "gpus", lambda target: [])
    loaded = load_model(tiny_model)
    monkeypatch.setattr(type(loaded.model), "_can_compile_fullgraph", False)
    with pytest.raises(UserError, match="one graph"):
        TorchSession(loaded, Target(name="trt", device="cuda", backend="tensorrt"), 8, 5)


def test_an_artifact_without_an_export_is_a_user_error(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.measure._backends import open_session

    with pytest.raises(UserError, match="must end with an export"):
        open_session(tiny_model, Target(name="o", backend="onnxruntime"), 8, 5)


def test_energy_is_what_the_counters_grew_by() -> None:
    values = iter([100.0, 130.0, 5.0, 7.0])
    gpu = iter([1.0, 2.0, 4.0, 4.0])
    meter = Meter([Counter("cpu", lambda: next(values), wraps=140.0), Counter("gpu", lambda: next(gpu))])
    for _ in range(3):
        meter.tick()
    # 30, then round the end of the counter (10 to it and 5 on), then 2.
    assert meter.joules == {"cpu": 30.0 + 15.0 + 2.0, "gpu": 3.0}
    assert Meter([]).joules == {}


def test_the_packages_counters_are_read_and_their_parts_are_not(tmp_path: Path) -> None:
    assert "no RAPL counter" in str(rapl_problem(tmp_path))
    for zone, name, microjoules in (("intel-rapl:0", "package-0", 2_500_000), ("intel-rapl:0:0", "core", 9)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text(f"{microjoules}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("262143328850\n")
    (counter,) = rapl_counters(tmp_path)
    assert (counter.device, counter.read(), counter.wraps) == ("cpu", 2.5, pytest.approx(262143.32885))
    assert rapl_problem(tmp_path) is None
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not a number")
    assert "cannot be read" in str(rapl_problem(tmp_path))


@pytest.mark.skipif(not shutil.which("g++"), reason="flex attention on a CPU is compiled with g++")
@pytest.mark.skipif(not os.environ.get("HARNESS_SLOW_TESTS"), reason="compiles for 20 s; set HARNESS_SLOW_TESTS=1")
def test_flex_attention_is_profiled_and_its_compilation_told_apart(tiny_model: Path) -> None:
    settings = {**SHORT, "batch_sizes": [1], "repeats": 2}
    found = _by_metric(measure_profile(tiny_model, Target(name="f", attention="flex"), settings, 300))
    assert found["batch=1", "compile_ms"][0] > 5 * max(found["batch=1", "e2e_ms"])
