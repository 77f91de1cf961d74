"""The targets that the doctor asks about: each device, type, backend and attention, one thing varied at a time."""

from collections.abc import Iterator

from harness.targets import RUNTIMES, Target

__all__ = ["grid"]


def grid() -> Iterator[Target]:
    """A target for each device, type, backend and attention that could run somewhere, one thing varied at a time."""
    for device in ("cpu", "cuda"):
        for dtype in ("float32", "bfloat16", "float16"):
            yield Target.model_validate({"name": f"{device} {dtype}", "device": device, "dtype": dtype})
    yield Target(name="auto placement over GPUs", device="auto")
    yield Target(name="offload to CPU memory", device="offload")
    yield Target(name="backend eager, cpu")
    yield Target(name="backend inductor, cpu", backend="inductor")
    for backend in RUNTIMES:
        yield Target.model_validate({"name": f"backend {backend}, cpu", "backend": backend})
    for backend in ("eager", "inductor", "tensorrt"):
        told = {"name": f"backend {backend}, cuda", "device": "cuda", "dtype": "bfloat16", "backend": backend}
        yield Target.model_validate(told)
    for attention in ("eager", "sdpa", "flex"):
        yield Target.model_validate({"name": f"attention {attention}, cpu", "attention": attention})
    for attention in ("eager", "sdpa", "flash", "flex"):
        told = {"name": f"attention {attention}, cuda", "device": "cuda", "dtype": "bfloat16", "attention": attention}
        yield Target.model_validate(told)
