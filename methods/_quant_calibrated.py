"""Rounding that looks at activations, by llmcompressor: GPTQ, alone or after SmoothQuant."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness._packed import quiet_bars
from harness.errors import InfeasibleError, UserError
from methods._quant_format import Grid, Matrix
from methods._quant_verify import quiet_logging

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["gptq"]


@contextlib.contextmanager
def _silently() -> Iterator[Any]:
    """llmcompressor's `oneshot`, without its log and its bars."""
    with quiet_logging(), quiet_bars():
        import llmcompressor
        from loguru import logger

        # Turned on by their imports.
        logger.disable("llmcompressor")
        logger.disable("compressed_tensors")
        yield llmcompressor.oneshot


def _scheme(grid: Grid, names: list[str]) -> Any:  # noqa: ANN401  # compressed-tensors is untyped
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    inputs = QuantizationArgs(num_bits=8, strategy="token", dynamic=True, symmetric=grid.activations == "symmetric")
    return QuantizationScheme(
        targets=names,
        weights=QuantizationArgs(
            num_bits=grid.bits,
            symmetric=grid.symmetric,
            strategy="channel" if grid.group_size is None else "group",
            group_size=grid.group_size,
        ),
        input_activations=None if grid.activations is None else inputs,
    )


def gptq(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    names: list[str],
    grid: Grid,
    rows: "Sequence[dict[str, Tensor]]",
    *,
    dampening: float,
    smoothing: float | None,
) -> dict[str, Matrix]:
    """Quantise these layers in place, column by column, later columns making up for the errors of earlier ones.

    The model then computes with the quantised weights (and rounded inputs). With `smoothing`, the norms before the
    layers are changed too: outliers of activations are moved into the weights first.

    Args:
        rows: `input_ids` and `attention_mask`, 1 × tokens each, on which the layers' inputs are seen.
        dampening: added to the diagonal of the Hessian, as a fraction of its mean.
        smoothing: SmoothQuant's migration strength, or None for GPTQ alone.

    Raises:
        UserError: no calibration row reached a layer.
        InfeasibleError: a Hessian could not be inverted, or a weight is not finite.
    """
    from torch.utils.data import DataLoader

    with _silently() as oneshot:
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        steps: list[Any] = []
        plain: list[str] = []
        if smoothing is not None:
            steps.append(SmoothQuantModifier(smoothing_strength=smoothing))

        class Strict(GPTQModifier):  # type: ignore[misc]  # llmcompressor is untyped
            def _log_rtn_fallback_summary(self) -> None:
                # Where a Hessian has no inverse it rounds to nearest and goes on.
                plain.extend(self._rtn_fallback_module_names)

        steps.append(Strict(config_groups={"group_0": _scheme(grid, names)}, dampening_frac=dampening))
        try:
            oneshot(
                model=model,
                processor=tokenizer,
                dataset=DataLoader(list(rows), batch_size=None),  # type: ignore[arg-type]  # any sequence will do
                recipe=steps,
                num_calibration_samples=len(rows),
                clear_sparse_session=True,
            )
        finally:
            # It puts a wrapper in the place of the method.
            if "save_pretrained" in vars(model):
                del model.save_pretrained
    if plain:
        raise InfeasibleError(f"GPTQ cannot invert the Hessian of {', '.join(plain[:3])}; raise dampening")
    return {name: _matrix(model.get_submodule(name), name, grid) for name in names}


def _matrix(linear: Any, name: str, grid: Grid) -> Matrix:  # noqa: ANN401  # a layer with what llmcompressor hung on it
    import torch

    if not hasattr(linear, "weight_scale"):
        raise UserError(f"GPTQ did not quantise {name}: no calibration row reached it")
    scale = linear.weight_scale.detach().float().reshape(linear.weight.shape[0], -1)
    zero = None if grid.symmetric else linear.weight_zero_point.detach().reshape(scale.shape)
    # Its weights lie on the grid already: this finds the points.
    groups = linear.weight.detach().float().unflatten(1, (scale.shape[1], -1)) / scale[..., None]
    if not bool(groups.isfinite().all()):
        raise InfeasibleError(f"the quantised weights of {name} are not finite")
    if zero is not None:
        groups = groups + zero[..., None]
    top = 2 ** (grid.bits - 1)
    return Matrix(groups.round().clamp(-top, top - 1).flatten(1).to(torch.int8), scale, zero)
