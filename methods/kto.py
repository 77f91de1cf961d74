"""KTO: answers that are good or bad by themselves, valued as people value gains and losses against a reference point.

Ethayarajh et al. 2024, arXiv:2402.01306. With r = beta (log p(answer) - log p_ref(answer)) and z the KL divergence from
the reference times beta, the loss of a good answer is 1 - sigmoid(r - z), that of a bad one 1 - sigmoid(z - r). A
preference set is taken apart: its pairs become single answers with a label, shuffled.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.method import Context, tunable
from methods._adapters import AdapterParams
from methods._pairs_method import PAIR_METRICS, PairRows, PairsMethod, own_reference
from methods._peft_model import with_adapters
from methods._rows import training_order
from methods._trl import rows_wanted, training_arguments

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer

__all__ = ["KTO", "KTOParams"]

Answer = dict[str, Any]


class KTOParams(AdapterParams):
    """Settings of Kahneman-Tversky optimization. `batch_size` counts single answers, half as many as pairs."""

    dataset: str = Field("preferences", description="training set of kind preferences (prompt, chosen, rejected)")
    learning_rate: float = Field(
        5e-6,
        gt=0,
        description="peak learning rate of AdamW; about ten times as much suits LoRA",
        json_schema_extra=tunable(5e-7, 5e-5, log=True),
    )
    beta: float = Field(
        0.1,
        gt=0,
        description="strength of the pull to the reference: the implicit reward is beta times the log-ratio (nats)",
        json_schema_extra=tunable(0.01, 0.5, log=True),
    )
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
        "kto",
        description="kto: against the batch's estimate of the KL divergence, which costs a forward pass; "
        "apo_zero_unpaired: against the reference itself (arXiv:2408.06266)",
    )
    desirable_weight: float = Field(
        1.0,
        gt=0,
        description="weight of good answers, the paper's lambda_D; it advises 1 to 1.33 of undesirable_weight",
    )
    undesirable_weight: float = Field(1.0, gt=0, description="weight of bad answers, the paper's lambda_U")

    @model_validator(mode="after")
    def _has_strangers(self) -> "KTOParams":
        if self.loss_type == "kto" and self.batch_size < 2:
            raise ValueError(
                "loss_type kto estimates the KL divergence from the answers to a batch's other prompts: set batch_size "
                "above 1, or loss_type: apo_zero_unpaired"
            )
        return self


class KTO(PairsMethod[KTOParams]):
    """Learning from good and bad answers without pairs; the reference is the policy as it came in."""

    name = "kto"
    summary = "Kahneman-Tversky optimization: single answers labelled good or bad, against the incoming policy"
    paper = "Ethayarajh et al. 2024, arXiv:2402.01306"
    version = 1
    params = KTOParams
    # Of single answers there is no accuracy, and there is the KL term.
    logged: ClassVar[Mapping[str, str]] = {
        **{k: v for k, v in PAIR_METRICS.items() if k != "rewards/accuracies"},
        "kl": "kl",
    }

    def trainer(
        self, model: "PreTrainedModel", tokenizer: object, pairs: PairRows, params: KTOParams, context: Context
    ) -> "Trainer":
        """See `PairsMethod`."""
        return _make_trainer(model, tokenizer, _answers(pairs, params, context.seed), params, context)


def _answers(pairs: PairRows, params: KTOParams, seed: int) -> list[Answer]:
    """The answers a run sees, in order, each with its label and, for the KL term, its neighbour's in the batch."""
    single = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[side], "label": side == "chosen_ids"}
        for pair in pairs
        for side in ("chosen_ids", "rejected_ids")
    ]
    order = [single[i] for i in training_order(len(single), rows_wanted(params), seed)]
    if params.loss_type == "apo_zero_unpaired":
        return order
    found = []
    for start in range(0, len(order), params.batch_size):
        batch = order[start : start + params.batch_size]
        found += [
            {**answer, "KL_completion_ids": before["completion_ids"]}
            for before, answer in zip([batch[-1], *batch[:-1]], batch, strict=True)
        ]
    return found


def _make_trainer(
    model: "PreTrainedModel", tokenizer: object, answers: list[Answer], params: KTOParams, context: Context
) -> "Trainer":
    import datasets
    from trl import KTOConfig, KTOTrainer

    arguments = training_arguments(
        KTOConfig,
        params,
        params.learning_rate,
        context,
        model.device.type,
        beta=params.beta,
        loss_type=params.loss_type,
        desirable_weight=params.desirable_weight,
        undesirable_weight=params.undesirable_weight,
        max_length=None,
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    made = own_reference(KTOTrainer, model, partial(_with_reference, context=context))
    trained: Trainer = made(
        **with_adapters(model, params, context.seed),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(answers),
        processing_class=tokenizer,
    )
    return trained


def _with_reference(trainer: Any, dataset: "Dataset", batch_size: int, context: Context) -> "Dataset":  # noqa: ANN401  # trl is untyped
    """Add the reference's log-probabilities (nats, summed) of each answer and of its neighbour's.

    The batches are those of training, so that policy and reference round alike and the first rewards are exactly 0.
    """
    import datasets

    answers = dataset.to_list()
    found: list[Answer] = []
    for start in range(0, len(answers), batch_size):
        context.check()
        batch = answers[start : start + batch_size]
        tensors = {name: t.to(trainer.accelerator.device) for name, t in trainer.data_collator(batch).items()}
        own, neighbours = trainer.compute_ref_log_probs(trainer.model, tensors)
        added = {"ref_logps": own.tolist()}
        if neighbours is not None:
            added["ref_KL_logps"] = neighbours.tolist()
        found += [{**row, **{name: values[i] for name, values in added.items()}} for i, row in enumerate(batch)]
    return datasets.Dataset.from_list(found)
