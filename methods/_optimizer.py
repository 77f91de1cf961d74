"""The optimizer a recipe chooses, by what it costs in memory: the same choice for every method that trains.

Bytes of state for each trained weight beside the weight and its gradient: adamw 8, adamw_8bit 2, adafactor about 0,
sgd 0. Paged variants keep their state in memory that the CUDA driver moves to the host when the GPU is full;
`offload_optimizer` keeps state and step on the host from the start.
"""

import importlib
import importlib.util
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from harness.errors import UserError
from harness.method import Params
from harness.targets import compiler

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

__all__ = [
    "OptimizerName",
    "OptimizerParams",
    "choose_optimizer",
    "make_optimizer",
    "optimizer_arguments",
    "set_rate",
    "spread_rates",
    "state_mb",
]

OptimizerName = Literal["adamw", "adamw_8bit", "adamw_paged", "adamw_8bit_paged", "adafactor", "sgd"]

_PAGED = ("adamw_paged", "adamw_8bit_paged")


class OptimizerParams(Params):
    """The optimizer, and where its state lies.

    The defaults are what was always done, before there was a choice, and are left out of a stage's stored settings:
    so its key stays what it was. They must not change.
    """

    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw; adamw_8bit: a quarter of its state, in 8-bit blocks (torchao, arXiv:2110.02861), "
        "several times slower a step on a CPU; "
        "adamw_paged, adamw_8bit_paged: state that moves to the host when a GPU is full (bitsandbytes, CUDA only); "
        "adafactor: row and column sums for the second moment (arXiv:1804.04235); sgd: no state, far larger rates",
        exclude_if=lambda name: bool(name == "adamw"),
    )
    offload_optimizer: bool = Field(
        False,
        description="keep the optimizer's state on the host and step there; CUDA only: less GPU memory, slower",
        exclude_if=operator.not_,
    )

    @model_validator(mode="after")
    def _paged_or_offloaded(self) -> Self:
        if self.offload_optimizer and self.optimizer in _PAGED:
            raise ValueError(f"optimizer {self.optimizer} pages its own state; leave offload_optimizer out")
        return self


def _check(name: str, offload: bool, device: str) -> None:
    on_gpu = device == "cuda"
    if name in _PAGED and not on_gpu:
        raise UserError(
            f"optimizer {name} pages its state between a GPU and the host, so it needs a CUDA device; this stage "
            f"trains on {device}: use adamw, adamw_8bit or adafactor"
        )
    if offload and not on_gpu:
        raise UserError(
            f"offload_optimizer moves the optimizer's state off a CUDA device; this stage trains on {device}, where it "
            "would move nothing: leave it out"
        )
    if name in _PAGED and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"optimizer {name} is bitsandbytes'; install it with: pip install bitsandbytes")
    if name == "adamw_8bit":
        if importlib.util.find_spec("torchao") is None:
            raise UserError("optimizer adamw_8bit is torchao's; install it with: pip install torchao")
        if (offload or not on_gpu) and compiler() is None:
            raise UserError(
                "optimizer adamw_8bit compiles its step on a CPU and found no C++ compiler; install g++, or use "
                "adafactor, which needs less memory still"
            )


def _class_of(name: str, betas: tuple[float, float]) -> tuple[type[Any], dict[str, object]]:
    import torch

    adam: dict[str, object] = {"betas": betas, "eps": 1e-8}
    if name == "adamw":
        return torch.optim.AdamW, {**adam, "fused": True}
    if name == "adamw_8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit, adam
    if name in _PAGED:
        # Not imported by name: it is no dependency of this project.
        bitsandbytes = importlib.import_module("bitsandbytes.optim")
        return bitsandbytes.AdamW, {**adam, "optim_bits": 8 if "8bit" in name else 32, "is_paged": True}
    if name == "adafactor":
        from transformers.optimization import Adafactor

        # Its own, rising rate would go before the recipe's.
        return Adafactor, {"scale_parameter": False, "relative_step": False}
    return torch.optim.SGD, {}


def make_optimizer(
    groups: Iterable[dict[str, Any]],
    params: OptimizerParams,
    device: str,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    fused: bool | None = True,
) -> "torch.optim.Optimizer":
    """The chosen optimizer over groups of weights, each with its `lr`.

    Args:
        device: the type of the weights' device (cpu, cuda).
        betas: AdamW's; the others have none.
        fused: torch's fused AdamW, which rounds otherwise than its plain one (None: torch chooses).

    Raises:
        UserError: this device or installation cannot run it.
    """
    _check(params.optimizer, params.offload_optimizer, device)
    made, kwargs = _class_of(params.optimizer, betas)
    kwargs["weight_decay"] = weight_decay
    if "fused" in kwargs:
        kwargs["fused"] = fused
    if params.offload_optimizer:
        from methods._host_optimizer import HostOptimizer

        return HostOptimizer(groups, made, **kwargs)
    optimizer: torch.optim.Optimizer = made(groups, **kwargs)
    return optimizer


def optimizer_arguments(params: OptimizerParams, device: str, ratio: float = 1.0) -> dict[str, object]:
    """What a Trainer's arguments say of the choice, read again by `choose_optimizer`; nothing for the default.

    Args:
        ratio: see `spread_rates`.

    Raises:
        UserError: this device or installation cannot run it.
    """
    if params.optimizer == "adamw" and not params.offload_optimizer and ratio == 1.0:
        # The Trainer's own AdamW: what was trained before there was a choice keeps its numbers, bit for bit.
        return {}
    _check(params.optimizer, params.offload_optimizer, device)
    return {"optim_args": f"optimizer={params.optimizer},offload={params.offload_optimizer},ratio={ratio}"}


def choose_optimizer(trainer: "Trainer") -> None:
    """Let a Trainer whose arguments carry a choice make that optimizer; one that has an optimizer keeps it."""
    args = trainer.args
    if not args.optim_args or trainer.optimizer is not None:
        return
    choice = dict(part.split("=", 1) for part in args.optim_args.split(","))
    params = OptimizerParams.model_validate({"optimizer": choice["optimizer"], "offload_optimizer": choice["offload"]})
    betas = (args.adam_beta1, args.adam_beta2)
    if (ratio := float(choice["ratio"])) != 1.0:
        group = {"params": [p for p in trainer.model.parameters() if p.requires_grad], "lr": args.learning_rate}
        trainer.optimizer = make_optimizer(
            spread_rates([group], trainer.model, ratio),
            params,
            args.device.type,
            betas=betas,
            weight_decay=args.weight_decay,
        )
        return
    made, kwargs = _class_of(params.optimizer, betas)
    kwargs["lr"] = args.learning_rate
    if params.offload_optimizer:
        from methods._host_optimizer import HostOptimizer

        kwargs = {"inner": made, **kwargs}
        made = HostOptimizer
    trainer.optimizer_cls_and_kwargs = (made, kwargs)


def spread_rates(groups: Sequence[dict[str, Any]], model: "torch.nn.Module", ratio: float) -> list[dict[str, Any]]:
    """The groups, and after them the second matrices of their LoRA adapters at `ratio` times their rate (LoRA+)."""
    if ratio == 1.0:
        return list(groups)
    fast = {id(p) for name, p in model.named_parameters() if "lora_B" in name.split(".")}
    found, faster = [], []
    for group in groups:
        found.append({**group, "params": [p for p in group["params"] if id(p) not in fast]})
        second = [p for p in group["params"] if id(p) in fast]
        if second:
            faster.append({**group, "params": second, "lr": group["lr"] * ratio})
    return [*found, *faster]


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set the learning rate of an optimizer's group; torchao's keep theirs in a tensor."""
    if isinstance(group["lr"], float | int):
        group["lr"] = rate
    else:
        group["lr"].fill_(rate)


def state_mb(optimizer: Any) -> float:  # noqa: ANN401  # also accelerate's wrapper, which is untyped
    """Memory of an optimizer's state, MB; with `offload_optimizer` it is the host's."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    inner = getattr(inner, "inner", inner)
    seen = [v for state in inner.state.values() for v in state.values()]
    return sum(_bytes(v) for v in seen) / 2**20


def _bytes(value: object) -> int:
    import torch

    if not isinstance(value, torch.Tensor):
        return 0
    parts = getattr(value, "__tensor_flatten__", None)
    if parts is not None:
        # A quantised state reports the bytes of the tensor it stands for.
        return sum(_bytes(getattr(value, name)) for name in parts()[0])
    return value.numel() * value.element_size()
