"""fp32 matrix products by the library that uses all of the CPU.

torch multiplies fp32 matrices with Intel's MKL, which on other makers' CPUs leaves AVX-512 unused. oneDNN, which torch
has for 16 bits, does not: on an AMD EPYC (Zen 5) it makes 210-250 GFLOP/s a core where MKL makes 85-110. Both sum in
fp32, in different orders.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["fast_products", "plain_linear", "product"]

_ROWS = 64
"""Of what is copied to its place, so many rows stay in the CPU's cache until then."""


@functools.cache
def _mkl_falls_short() -> bool:
    # A rule, and no trial of both: two runs on one machine must sum in one order.
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's own lacks a type
        return False
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    vendors = {line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")}
    return bool(vendors) and "GenuineIntel" not in vendors


def plain_linear(module: nn.Linear) -> bool:
    """Whether this is a plain matrix on a CPU, whose product may be made by other means than its own."""
    if type(module) is not nn.Linear or type(module.weight.data) is not Tensor:
        return False
    # Who has replaced it before us, such as accelerate's hooks, goes on doing so.
    return module.weight.device.type == "cpu" and "forward" not in vars(module)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """rows [..., K] times weight [N, K] transposed; where `out` [rows, N] is given, rows are [rows, K]."""
    if weight.dtype != torch.float32 or not _mkl_falls_short():
        if out is None:
            return nn.functional.linear(rows, weight, bias)
        torch.mm(rows, weight.t(), out=out)
        return out if bias is None else out.add_(bias)
    if out is None:
        return _one_dnn(rows, weight, bias)
    for low in range(0, len(rows), _ROWS):
        out[low : low + _ROWS] = _one_dnn(rows[low : low + _ROWS], weight, bias)
    return out


def _one_dnn(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return made


@contextlib.contextmanager
def fast_products(model: "PreTrainedModel") -> Iterator[None]:
    """Within this, the model's plain fp32 matrices multiply by `product`, where that is faster here."""
    replaced: list[nn.Linear] = []
    if model.device.type == "cpu" and _mkl_falls_short():
        linear = (m for m in model.modules() if isinstance(m, nn.Linear))
        replaced = [m for m in linear if plain_linear(m) and m.weight.dtype == torch.float32]
    for module in replaced:
        vars(module)["forward"] = functools.partial(product, weight=module.weight, bias=module.bias)
    try:
        yield
    finally:
        for module in replaced:
            del vars(module)["forward"]
