"""The trainer of next-token loss on completions, for the methods whose loss it is."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from methods._head import use_completion_head
from methods._peft_model import with_adapters
from methods._rows import training_order
from methods._trl import TrainingParams, rows_wanted, training_arguments

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer

    from harness.method import Context
    from methods._ewc import Anchor

__all__ = ["make_trainer"]


def make_trainer(
    model: "PreTrainedModel",
    tokenizer: object,
    rows: Sequence[dict[str, list[int]]],
    params: TrainingParams,
    learning_rate: float,
    context: "Context",
    *,
    ordered: bool = False,
    anchor: "Callable[[Any], Anchor] | None" = None,
) -> "Trainer":
    """A trainer over rows of `input_ids` and `labels` (-100 on the prompt), drawn by the seed.

    Args:
        ordered: the rows are those of the whole run in order, and none is drawn.
        anchor: makes of the model to be trained what holds it near where it was.

    Raises:
        UserError: the chosen optimizer cannot run on this device.
    """
    import datasets
    from trl import SFTConfig

    order = range(len(rows)) if ordered else training_order(len(rows), rows_wanted(params), context.seed)
    arguments = training_arguments(
        SFTConfig,
        params,
        learning_rate,
        context,
        model.device.type,
        max_length=None,
        packing=False,
        # The rows carry their own labels.
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = _class()(
        **with_adapters(model, params, context.seed),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([rows[i] for i in order]),
        processing_class=tokenizer,
    )
    if anchor is not None:
        trainer.anchor = anchor(trainer.model)
    use_completion_head(model)
    return trainer


def _class() -> Any:  # noqa: ANN401  # trl is untyped
    from trl import SFTTrainer

    class AnchoredTrainer(SFTTrainer):  # type: ignore[misc]  # trl is untyped
        anchor: "Anchor | None" = None

        def training_step(self, *args: object, **kwargs: object) -> "torch.Tensor":
            # Beside the loss and not in it: its forward pass need not know, and the loss logged stays the data's.
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            if self.anchor is not None:
                self._penalty = self.anchor.add_gradient(1 / self.args.gradient_accumulation_steps)
            return loss

        def log(self, logs: dict[str, float], *args: object, **kwargs: object) -> None:
            if self.anchor is not None and "loss" in logs:
                logs["ewc_penalty"] = self._penalty
            super().log(logs, *args, **kwargs)

    return AnchoredTrainer
