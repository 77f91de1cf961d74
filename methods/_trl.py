"""What the methods on TRL share: settings, training arguments, the callback into the context, the loop."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from harness.errors import InfeasibleError, UserError
from harness.method import Context, Inputs
from methods._compute import Compute
from methods._meter import Meter
from methods._optimizer import OptimizerParams, choose_optimizer, optimizer_arguments, state_mb
from methods._peft import PeftParams
from methods._peft_model import leave
from methods._sparsity import KeptZeros

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer, TrainerCallback

    from methods._checkpoint import Checkpoints

__all__ = [
    "TrainingParams",
    "finish",
    "need_dataset",
    "rows_wanted",
    "train",
    "training_arguments",
]

Config = TypeVar("Config")


class TrainingParams(OptimizerParams, PeftParams):
    """Settings that every gradient-trained method has."""

    steps: int = Field(100, ge=1, description="optimizer steps; exact, whatever the size of the dataset")
    batch_size: int = Field(8, ge=1, description="rows (or pairs) of one forward pass")
    gradient_accumulation: int = Field(1, ge=1, description="forward passes of one optimizer step")
    max_length: int = Field(512, ge=8, description="tokens of prompt and completion; longer rows are left out")
    warmup_fraction: float = Field(
        0.1, ge=0, lt=1, description="fraction of the steps in which the learning rate rises linearly from 0"
    )
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="the learning rate after the warm-up: falling to 0 (linear, cosine) or constant"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of AdamW, per step times learning rate")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this global L2 norm")
    lora_alpha: int = Field(
        32, ge=1, description="adapters are multiplied by lora_alpha / lora_rank; rslora: by lora_alpha over its root"
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: less memory, about a third slower"
    )


def need_dataset(inputs: Inputs, method: str) -> "Dataset":
    """The stage's dataset.

    Raises:
        UserError: it has none.
    """
    if inputs.dataset is None:
        raise UserError(f"{method} needs a dataset; set its `dataset`")
    return inputs.dataset


def rows_wanted(params: TrainingParams) -> int:
    """How many rows a run sees, counted with repetition."""
    return params.steps * params.batch_size * params.gradient_accumulation


def training_arguments(
    config: type[Config], params: TrainingParams, learning_rate: float, context: Context, device: str, **extra: object
) -> Config:
    """A TRL config from our settings: nothing reported, saved or printed; rows taken in the order given.

    TRL's own defaults (bf16 wherever nothing else is said, gradient checkpointing, a log every tenth step) are all
    replaced. Weights stay fp32: bf16 is autocast, on CPU too.

    Raises:
        UserError: the chosen optimizer cannot run on this device.
    """
    scheduler = "constant_with_warmup" if params.lr_scheduler == "constant" else params.lr_scheduler
    arguments: dict[str, object] = {
        "output_dir": str(context.scratch / "trainer"),
        "max_steps": params.steps,
        "per_device_train_batch_size": params.batch_size,
        "gradient_accumulation_steps": params.gradient_accumulation,
        "learning_rate": learning_rate,
        # A number below 1 is read as a fraction of the steps.
        "warmup_steps": params.warmup_fraction,
        "lr_scheduler_type": scheduler,
        "weight_decay": params.weight_decay,
        "max_grad_norm": params.max_grad_norm,
        "gradient_checkpointing": params.gradient_checkpointing,
        "bf16": context.precision == "bfloat16",
        "use_cpu": device == "cpu",
        "seed": context.seed,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "steps",
        "logging_steps": 1,
        # Otherwise a NaN loss is logged as the last good one.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "save_strategy": "no",
        "eval_strategy": "no",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        **optimizer_arguments(params, device, params.ratio),
    }
    return config(**{**arguments, **extra})


def _make_callback(
    context: Context, steps: int, names: Mapping[str, str], kept: "Checkpoints", meter: Meter, zeros: KeptZeros
) -> "TrainerCallback":
    from transformers import TrainerCallback

    class Report(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
        def on_log(self, _args: object, state: Any, _control: object, logs: dict[str, float], **_: object) -> None:  # noqa: ANN401  # the Trainer's state is untyped
            if "loss" not in logs:
                return
            metrics = {ours: float(logs[theirs]) for theirs, ours in names.items() if theirs in logs}
            finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
            kept.log(state.global_step, steps, finite)
            for name in ("loss", "grad_norm"):
                if name in metrics and name not in finite:
                    raise InfeasibleError(
                        f"{name} became {metrics[name]} at step {state.global_step} of {steps}", step=state.global_step
                    )

        def on_step_begin(self, *_args: object, **_: object) -> None:
            context.check()

        def on_step_end(self, *_args: object, **_: object) -> None:
            zeros.restore()
            meter.tick()

    return Report()


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InfeasibleError(f"out of memory: {error}") from error
    except RuntimeError as error:
        # The CPU allocator has no exception type of its own.
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise InfeasibleError(f"out of memory: {error}") from error


def train(trainer: "Trainer", context: Context, names: Mapping[str, str]) -> dict[str, float]:
    """Run the training loop, logging every step to the context; it goes on from the stage's checkpoint, if it has one.

    Args:
        names: the Trainer's metric names → ours, beside loss, grad_norm and learning_rate.

    Returns:
        `steps`; `train_tokens` (prompt and completion, without padding); `final_loss`, the mean over the last tenth
        of the steps; `trained_parameters` and `train_flops` (see `Compute`); `optimizer_state_mb`, and the meter's
        `step_ms`, `train_peak_mb`, … where they are known.

    Raises:
        UserError: adapters on a model that was pruned weight by weight.
        InfeasibleError: the loss, a gradient or a weight is not finite, memory or time ran out.
    """
    import torch
    from transformers import PrinterCallback

    from methods._checkpoint import Checkpoints
    from methods._resume import checkpointing

    steps = trainer.args.max_steps
    base = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "learning_rate"}
    trainer.remove_callback(PrinterCallback)
    choose_optimizer(trainer)
    compute = Compute(trainer.model)
    meter = Meter(trainer.args.device.type)
    zeros = KeptZeros(trainer.model)
    kept = Checkpoints(context, trainer.args.device.type)
    trainer.add_callback(_make_callback(context, steps, {**base, **names}, kept, meter, zeros))
    with _memory_errors(), zeros:
        trainer.train(resume_from_checkpoint=checkpointing(trainer, kept, context.scratch))
    figures = {**meter.figures(), "optimizer_state_mb": state_mb(trainer.optimizer)}
    if not all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters() if p.requires_grad):
        raise InfeasibleError(f"a weight is not finite after {steps} steps", step=steps)
    last = kept.logged("loss")[-max(1, steps // 10) :]
    tokens = float(trainer._total_train_tokens)
    return {
        "steps": float(trainer.state.global_step),
        "train_tokens": tokens,
        **compute.figures(tokens, recomputed=trainer.args.gradient_checkpointing),
        "final_loss": sum(last) / len(last),
        **figures,
    }


def finish(trainer: "Trainer", kept: Path | None = None) -> "PreTrainedModel":
    """The trained model as an ordinary one, in eval mode: the Trainer's wrappers off, adapters as `leave` does."""
    from accelerate.utils import is_peft_model

    model = trainer.model
    _unwrap(model)
    if is_peft_model(model):
        _unwrap(model.get_base_model())
        model = leave(model, kept)
    if trainer.args.gradient_checkpointing:
        model.gradient_checkpointing_disable()
    # Trainers turn it off; saved so, every later generation would crawl.
    model.config.use_cache = True
    model.zero_grad(set_to_none=True)
    model.requires_grad_(True)
    return model.eval()


def _unwrap(model: "torch.nn.Module") -> None:
    # TRL's head and accelerate's autocast are instance attributes in front of the class's own forward.
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(name, None)
