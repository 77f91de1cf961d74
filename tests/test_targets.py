"""Targets: what they accept, what no machine could run, and what this machine lacks."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness import targets
from harness._grid import grid
from harness.targets import RUNTIMES, Target, compiler, cpu_flags, fast_bf16, machine, target_problem


def test_numerics_leave_out_what_does_not_decide_scores() -> None:
    one = Target(name="a", device="cuda:0", threads=1, dtype="bfloat16")
    other = Target(name="b", device="cuda:1", threads=4, dtype="bfloat16")
    assert one.numerics() == other.numerics()
    changed = [{"dtype": "float32"}, {"backend": "inductor"}, {"attention": "eager"}, {"device": "cpu"}]
    for change in changed:
        assert one.model_copy(update=change).numerics() != one.numerics()


def test_what_differs_in_more_than_threads_has_a_key_of_its_own() -> None:
    """A profile's key is made of the numerics: two that were equal would share their latency."""
    apart = {(t.device, t.dtype, t.backend, t.attention): str(t.numerics()) for t in grid()}
    assert len(set(apart.values())) == len(apart)
    for place, field in enumerate(("device", "backend", "attention")):
        wanted = {"device": 4, "backend": 3 + len(RUNTIMES), "attention": 4}[field]
        assert len({key[place if not place else place + 1] for key in apart}) == wanted


def test_what_was_measured_before_keeps_its_key() -> None:
    """A change here measures everything anew."""
    assert Target(name="a", device="cuda:1").numerics() == {
        "device": "cuda",
        "dtype": "float32",
        "backend": "eager",
        "attention": "sdpa",
    }


@pytest.mark.parametrize(
    "bad",
    [
        {"device": "tpu"},
        {"device": "cuda:x"},
        {"device": "auto:1"},
        {"dtype": "int8"},
        {"threads": 0},
        {"name": ""},
        {"cores": 2},
        {"backend": "onnx"},
        {"attention": "flash_attention_2"},
    ],
)
def test_what_is_no_target_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Target.model_validate({"name": "x", **bad})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"backend": "tensorrt"}, "NVIDIA GPUs only"),
        ({"backend": "tensorrt", "device": "cuda", "attention": "flex"}, "compiles no flex attention"),
        ({"backend": "inductor", "device": "auto"}, "only the eager backend"),
        ({"backend": "onnxruntime", "device": "offload"}, "only the eager backend"),
        ({"backend": "openvino", "device": "cuda"}, "expected device cpu"),
        ({"backend": "llamacpp", "dtype": "bfloat16"}, "leave dtype out"),
        ({"backend": "onnxruntime", "attention": "eager"}, "leave attention out"),
        ({"attention": "flash", "dtype": "bfloat16"}, "on a CPU, sdpa"),
        ({"attention": "flash", "device": "cuda"}, "no float32"),
    ],
)
def test_what_no_machine_could_run_is_refused_with_the_reason(bad: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Target.model_validate({"name": "x", **bad})


def test_attention_has_the_names_of_transformers() -> None:
    from transformers import AttentionInterface

    known = {"eager", *AttentionInterface().valid_keys()}
    assert {t.implementation for t in grid()} == {"eager", "sdpa", "flash_attention_2", "flex_attention"} <= known


def test_problems_of_this_machine() -> None:
    import torch

    assert target_problem(Target(name="a")) is None
    assert "float16" in str(target_problem(Target(name="b", dtype="float16")))
    problem = target_problem(Target(name="c", device="cuda:63"))
    assert problem is not None
    assert ("device 63" in problem) == torch.cuda.is_available()


def _without(*absent: str) -> Callable[[str], ModuleSpec | None]:
    found = importlib.util.find_spec
    return lambda name: None if name in absent else found(name)


@pytest.mark.parametrize("backend", list(RUNTIMES))
def test_an_absent_runtime_says_how_to_get_it(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, distribution = RUNTIMES[backend]
    monkeypatch.setattr(importlib.util, "find_spec", _without(module))
    problem = str(target_problem(Target.model_validate({"name": "x", "backend": backend})))
    assert f"pip install {distribution}" in problem


def test_what_compiles_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kinds = [Target(name="i", backend="inductor"), Target(name="f", attention="flex")]
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert compiler() is None
    assert all("install g++" in str(target_problem(t)) for t in kinds)
    own = tmp_path / "my-c++"
    own.write_text("")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", "my-c++")
    assert compiler() == str(own)
    assert target_problem(kinds[0]) is None


class _Gpu:
    """Stands in for torch.cuda: `count` devices of one compute capability."""

    def __init__(self, count: int, capability: tuple[int, int] = (9, 0)) -> None:
        self.count, self.capability = count, capability

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return self.capability

    def get_device_name(self, index: int) -> str:
        return "Old One"


@pytest.mark.parametrize(
    ("gpu", "target", "words"),
    [
        (_Gpu(0), {"device": "cuda"}, ["torch sees none"]),
        (_Gpu(0), {"device": "auto"}, ["torch sees none"]),
        (_Gpu(0), {"device": "offload"}, ["torch sees none"]),
        (_Gpu(2), {"device": "cuda:2"}, ["device 2; this machine has 2"]),
        (_Gpu(1), {"device": "auto"}, ["several CUDA devices"]),
        (_Gpu(2), {"device": "auto"}, []),
        (_Gpu(1), {"device": "offload"}, []),
        (_Gpu(1), {"device": "cuda", "dtype": "float16"}, []),
        (_Gpu(1), {"device": "cuda", "dtype": "bfloat16"}, []),
        (_Gpu(1, (7, 5)), {"device": "cuda", "dtype": "bfloat16"}, ["bfloat16", "Old One"]),
        (_Gpu(1), {"device": "cuda", "dtype": "bfloat16", "attention": "flash"}, ["flash-attn is not installed"]),
        (_Gpu(1), {"device": "cuda", "attention": "flex"}, ["pip install triton"]),
        (_Gpu(1), {"device": "cuda", "backend": "inductor"}, ["pip install triton"]),
        (_Gpu(1), {"device": "cuda", "backend": "tensorrt"}, ["posttrain-harness[tensorrt]"]),
        (_Gpu(0), {"device": "cuda", "backend": "tensorrt"}, ["posttrain-harness[tensorrt]", "torch sees none"]),
    ],
)
def test_problems_of_machines_with_gpus(
    gpu: _Gpu, target: dict[str, object], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch, "cuda", gpu)
    monkeypatch.setattr(importlib.util, "find_spec", _without("flash_attn", "triton", "torch_tensorrt"))
    problem = target_problem(Target.model_validate({"name": "x", **target}))
    assert (problem is None) == (not words)
    assert not [word for word in words if word not in str(problem)]


def test_a_torch_tensorrt_that_cannot_be_imported_is_a_reason_and_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it finds no TensorRT it raises a plain Exception, not an ImportError."""
    import torch

    (tmp_path / "torch_tensorrt.py").write_text("raise Exception('no libnvinfer here')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch_tensorrt", raising=False)
    target = Target(name="x", device="cuda", backend="tensorrt")
    # Without a GPU it is not even imported.
    monkeypatch.setattr(torch, "cuda", _Gpu(0))
    assert target_problem(target) == "needs a CUDA device; torch sees none"
    monkeypatch.setattr(torch, "cuda", _Gpu(1))
    assert "cannot be imported: no libnvinfer here" in str(target_problem(target))


def test_cpu_targets_ask_torch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert target_problem(Target(name="a", dtype="bfloat16")) is None
    assert targets.target_problem(Target(name="b", dtype="float16")) is not None


def test_the_machine_describes_itself() -> None:
    found = machine()
    assert isinstance(found["cores"], int)
    assert found["cores"] >= 1
    assert found["bf16"] == fast_bf16() == bool({"amx_bf16", "avx512_bf16"} & cpu_flags())
    if sys.platform == "linux":
        assert cpu_flags() or "x86" not in str(found["system"])
