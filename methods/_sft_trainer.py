"""The trainer of next-token loss on completions, for the methods whose loss it is."""

from typing import TYPE_CHECKING

from methods._head import use_completion_head
from methods._rows import training_order
from methods._trl import TrainingParams, lora_config, rows_wanted, training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    from harness.method import Context

__all__ = ["make_trainer"]


def make_trainer(
    model: "PreTrainedModel",
    tokenizer: object,
    rows: list[dict[str, list[int]]],
    params: TrainingParams,
    learning_rate: float,
    context: "Context",
) -> "Trainer":
    """A trainer over rows of `input_ids` and `labels` (-100 on the prompt), drawn by the seed.

    Raises:
        UserError: the chosen optimizer cannot run on this device.
    """
    import datasets
    from trl import SFTConfig, SFTTrainer

    order = training_order(len(rows), rows_wanted(params), context.seed)
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
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([rows[i] for i in order]),
        processing_class=tokenizer,
        peft_config=lora_config(params, "CAUSAL_LM"),
    )
    use_completion_head(model)
    return trainer
