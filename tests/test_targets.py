"""Targets: what they accept, and what this machine cannot run."""

import sys

import pytest
from pydantic import ValidationError

from harness.targets import Target, cpu_flags, fast_bf16, machine, target_problem


def test_numerics_leave_out_what_does_not_decide_scores() -> None:
    one = Target(name="a", device="cuda:0", threads=1, dtype="bfloat16")
    other = Target(name="b", device="cuda:1", threads=4, dtype="bfloat16")
    assert one.numerics() == other.numerics()
    changed = [{"dtype": "float32"}, {"backend": "inductor"}, {"attention": "eager"}, {"device": "cpu"}]
    for change in changed:
        assert one.model_copy(update=change).numerics() != one.numerics()


@pytest.mark.parametrize(
    "bad", [{"device": "tpu"}, {"device": "cuda:x"}, {"dtype": "int8"}, {"threads": 0}, {"name": ""}, {"cores": 2}]
)
def test_what_is_no_target_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Target.model_validate({"name": "x", **bad})


def test_problems_of_this_machine() -> None:
    import torch

    assert target_problem(Target(name="a")) is None
    assert "float16" in str(target_problem(Target(name="b", dtype="float16")))
    problem = target_problem(Target(name="c", device="cuda:63"))
    assert problem is not None
    assert ("device 63" in problem) == torch.cuda.is_available()


def test_the_machine_describes_itself() -> None:
    found = machine()
    assert isinstance(found["cores"], int)
    assert found["cores"] >= 1
    assert found["amx"] == fast_bf16() == ("amx_bf16" in cpu_flags())
    if sys.platform == "linux":
        assert cpu_flags() or "x86" not in str(found["system"])
