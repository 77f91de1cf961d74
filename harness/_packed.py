"""Quantised linear layers that stay packed in memory, for folders in the compressed-tensors format.

transformers loads such a folder packed and then, at the first forward pass, dequantises every matrix for good: the
model would be small on disk only. Here each layer keeps its integers and makes floating-point weights, if at all, for
the length of its own call. The arithmetic is the format's: weight = (integer - zero point) × scale.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PackedLinear", "keep_packed", "quiet_bars"]

_SUPPORTED = (4, 8)

_FEW_TOKENS = 8
"""Up to so many tokens torch's bf16 kernel for int8 weights is faster on a CPU than a plain product."""


class PackedLinear(nn.Module):
    """A linear layer whose weight is held as integers.

    Buffers: `values` are int8 [N, K]; for 4 bits uint8 [N, K / 2], rounded up to a multiple of 4, plus 8, with the even
    column in the low half; or float8 [N, K]. `scale` is [N, G] for G runs of equally many columns, in the model's type;
    `zero` is int8 [N, G] or None.

    Args:
        activations: None, or how each token's input is rounded to 8 bits before the product: `symmetric`, `asymmetric`.
    """

    values: Tensor
    scale: Tensor
    zero: Tensor | None
    sums: Tensor | None

    def __init__(
        self,
        values: Tensor,
        scale: Tensor,
        zero: Tensor | None,
        bias: Tensor | None,
        *,
        bits: int,
        in_features: int,
        activations: str | None,
    ) -> None:
        super().__init__()
        self.bits, self.in_features, self.out_features = bits, in_features, len(values)
        self.activations = activations
        self.register_buffer("values", values)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        whole = values.dtype == torch.int8 and zero is None and scale.shape[1] == 1
        # Integers times integers are multiplied as such on a CPU; torch's CUDA kernel wants other shapes.
        self.integer = whole and activations is not None
        self.by_row = whole and activations is None
        sums = values.sum(1, dtype=torch.int32) if self.integer and activations == "asymmetric" else None
        self.register_buffer("sums", sums)

    @property
    def dtype(self) -> torch.dtype:
        """The type that the layer computes in."""
        return self.scale.dtype

    def extra_repr(self) -> str:
        """Sizes and scheme, for `repr`."""
        groups = self.scale.shape[1]
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits}, groups={groups}, "
            f"symmetric={self.zero is None}, activations={self.activations}"
        )

    def integers(self) -> Tensor:
        """The weight's integers [N, K] as int8, without zero point and scale (float8 values as they are)."""
        if self.values.dtype != torch.uint8:
            return self.values
        halves = torch.stack((self.values & 15, self.values >> 4), -1).view(torch.int8).flatten(1)
        return halves[:, : self.in_features].sub_(8)

    def dense(self) -> Tensor:
        """The weight [N, K] that the integers stand for, in the type of the scale."""
        groups = self.integers().to(self.dtype).view(self.out_features, self.scale.shape[1], -1)
        # In place: fresh memory for each step would take as long as the arithmetic.
        if self.zero is not None:
            groups.sub_(self.zero[..., None])
        return groups.mul_(self.scale[..., None]).view(self.out_features, -1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] → [..., N]."""
        if self.integer and not x.is_cuda:
            return self._integer(x)
        if self.activations is not None:
            x = self._rounded(x)
        if self.by_row and x.dtype == self.dtype:
            return self._by_row(x)
        return nn.functional.linear(x, self.dense().to(x.dtype), self.bias)

    def _by_row(self, x: Tensor) -> Tensor:
        scale = self.scale[:, 0]
        if x.dtype == torch.bfloat16 and not x.is_cuda and x.numel() <= _FEW_TOKENS * self.in_features:
            flat = x.reshape(-1, self.in_features)
            output: Tensor = torch._weight_int8pack_mm(flat, self.values, scale).view(*x.shape[:-1], -1)
        else:
            # 8 bits are exact in every floating-point type: the scale can wait until after the product.
            output = (x @ self.values.to(x.dtype).T) * scale
        return output if self.bias is None else output + self.bias

    def _integer(self, x: Tensor) -> Tensor:
        values, scale, zero = _quantised(x.reshape(-1, self.in_features), self.activations == "symmetric")
        product = torch._int_mm(values.to(torch.int8), self.values.T)
        if self.sums is not None:
            product = product - zero.to(torch.int32) * self.sums
        output: Tensor = (product * (scale * self.scale[:, 0].float())).to(x.dtype).view(*x.shape[:-1], -1)
        return output if self.bias is None else output + self.bias

    def _rounded(self, x: Tensor) -> Tensor:
        if self.values.dtype.is_floating_point:
            top = torch.finfo(self.values.dtype).max
            scale = x.float().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / top
            return ((x / scale).to(self.values.dtype).float() * scale).to(x.dtype)
        values, scale, zero = _quantised(x, self.activations == "symmetric")
        return ((values - zero) * scale).to(x.dtype)


def _quantised(x: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's integers -128 … 127 (as fp32), scale [..., 1] and zero point [..., 1]."""
    x = x.float()
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    least = torch.finfo(torch.float32).eps
    if symmetric:
        scale = (torch.maximum(-low, high) / 127.5).clamp_min(least)
        return (x / scale).round().clamp(-128, 127), scale, torch.zeros_like(scale)
    scale = ((high - low) / 255).clamp_min(least)
    zero = (-128 - (low / scale).round()).clamp(-128, 127)
    return ((x / scale).round() + zero).clamp(-128, 127), scale, zero


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """No progress bars of tqdm: compressed-tensors and llmcompressor draw theirs whatever transformers was told."""
    import tqdm

    before = tqdm.tqdm.__init__

    @functools.wraps(before)
    def quiet(self: object, *args: object, **kwargs: object) -> None:
        before(self, *args, **{**kwargs, "disable": True})

    tqdm.tqdm.__init__ = quiet
    try:
        yield
    finally:
        tqdm.tqdm.__init__ = before


def keep_packed(model: "PreTrainedModel") -> None:
    """Replace the packed linear layers of a model that transformers has just loaded by `PackedLinear`, in place.

    Raises:
        UserError: the folder holds a kind of quantisation that cannot be computed packed.
    """
    if not hasattr(model, "ct_decompress_hook"):
        return
    for name, module in list(model.named_modules()):
        if getattr(module, "quantization_scheme", None) is not None:
            model.set_submodule(name, _packed(name, module))
    model.ct_decompress_hook.remove()
    del model.ct_decompress_hook


def _packed(name: str, module: nn.Module) -> PackedLinear:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    scheme: Any = module.quantization_scheme
    if problem := _problem(module, scheme):
        raise UserError(f"{name} is quantised in a way that this version cannot run packed: {problem}")
    weights, inputs = scheme.weights, scheme.input_activations
    tensors = {n: t.detach() for n, t in (*module.named_parameters(), *module.named_buffers())}
    scale = tensors["weight_scale"]
    zero = tensors.get("weight_zero_point")
    if "weight" in tensors:
        values, width = tensors["weight"], tensors["weight"].shape[1]
    else:
        rows, width = (int(n) for n in tensors["weight_shape"])
        values = tensors["weight_packed"].view(torch.uint8)
        if weights.num_bits == 8:
            # The format adds 128; without it the bytes are signed integers.
            values = (values[:, :width] ^ 128).contiguous().view(torch.int8)
        if zero is not None:
            zero = unpack_from_int32(zero, weights.num_bits, torch.Size((rows, scale.shape[1])), packed_dim=0)
    return PackedLinear(
        values,
        scale,
        zero if zero is None else zero.to(torch.int8).contiguous(),
        tensors.get("bias"),
        bits=weights.num_bits,
        in_features=width,
        activations=None if inputs is None else "symmetric" if inputs.symmetric else "asymmetric",
    )


def _problem(module: nn.Module, scheme: Any) -> str | None:  # noqa: ANN401  # compressed-tensors is untyped
    weights, inputs = scheme.weights, scheme.input_activations
    if not isinstance(module, nn.Linear) or weights is None or scheme.output_activations is not None:
        return "expected the weights of linear layers, without rounding of outputs"
    if weights.num_bits not in _SUPPORTED or weights.strategy not in ("channel", "group"):
        return f"expected 4 or 8 bits by channel or group, found {weights.num_bits} bits by {weights.strategy}"
    if weights.type != "int" and weights.num_bits != 8:
        return f"expected int4, int8 or fp8 weights, found {weights.type}{weights.num_bits}"
    if inputs is not None and not (inputs.num_bits == 8 and inputs.dynamic is True and inputs.strategy == "token"):
        return "expected inputs of 8 bits, rounded for each token"
    if hasattr(module, "weight_g_idx"):
        return "expected groups of neighbouring columns, found reordered ones"
    return None
