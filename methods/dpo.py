"""Direct preference optimization: raise the margin of chosen over rejected answers against a frozen reference."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from harness.method import Context, Inputs, Trained, tunable
from methods._adapters import AdapterMethod, AdapterParams, finished
from methods._head import use_completion_head
from methods._rows import preference_rows, training_order
from methods._trl import lora_config, need_dataset, rows_wanted, train, training_arguments

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer

__all__ = ["DPO", "DPOParams"]

_METRICS = {
    "rewards/margins": "rewards_margin",
    "rewards/accuracies": "rewards_accuracy",
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
}


class DPOParams(AdapterParams):
    """Settings of direct preference optimization."""

    dataset: str = Field("preferences", description="training set of kind preferences (prompt, chosen, rejected)")
    learning_rate: float = Field(
        1e-5,
        gt=0,
        description="peak learning rate of AdamW; about ten times as much suits LoRA",
        json_schema_extra=tunable(1e-6, 1e-4, log=True),
    )
    beta: float = Field(
        0.1,
        gt=0,
        description="strength of the pull to the reference: the implicit reward is beta times the log-ratio (nats)",
        json_schema_extra=tunable(0.01, 0.5, log=True),
    )
    loss_type: Literal["sigmoid", "ipo", "hinge", "robust"] = Field(
        "sigmoid",
        description="sigmoid: DPO; ipo: squared loss on per-token log-ratios (arXiv:2310.12036); hinge: SLiC "
        "(arXiv:2305.10425); robust: DPO corrected for flipped labels (arXiv:2403.00409)",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="assumed probability that a label is flipped; with loss_type robust only"
    )

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> "DPOParams":
        # TRL ignores the value under its other losses without a word.
        if self.label_smoothing > 0 and self.loss_type != "robust":
            raise ValueError("label_smoothing needs loss_type: robust; the other losses do not use it")
        return self


class DPO(AdapterMethod[DPOParams]):
    """Preference learning without a reward model; the reference is the policy as it came in."""

    name = "dpo"
    summary = "direct preference optimization against the incoming policy as reference"
    paper = "Rafailov et al. 2023, arXiv:2305.18290"
    version = 1
    params = DPOParams
    needs = frozenset({"policy"})
    dataset_kind = "preferences"

    def run(self, inputs: Inputs, params: DPOParams, context: Context) -> Trained:
        """Train the policy in place.

        Raises:
            UserError: no dataset, no usable pair, no chat template.
            InfeasibleError: diverged, or out of memory.
            PrunedError: past the deadline.
        """
        from methods._ppo_attention import quick_attention

        policy = inputs.load("policy")
        dataset = need_dataset(inputs, self.name)
        rows = preference_rows(dataset, policy.tokenizer, params.max_length)
        # Around both: the reference's log-probabilities must come from the very arithmetic of training.
        with quick_attention(policy.model):
            trainer = _make_trainer(policy.model, policy.tokenizer, rows, params, context)
            metrics = train(trainer, context, _METRICS)
        metrics["rows_left_out"] = float(len(dataset) - len(rows))
        return finished(trainer, policy.tokenizer, params, metrics, context)


def _make_trainer(
    model: "PreTrainedModel",
    tokenizer: object,
    rows: list[dict[str, list[int]]],
    params: DPOParams,
    context: Context,
) -> "Trainer":
    import datasets
    from trl import DPOConfig, DPOTrainer

    class Precomputed(DPOTrainer):  # type: ignore[misc]  # trl is untyped
        """DPO whose reference is the policy in memory before its first update.

        Left alone, the trainer would load the reference from the path in the model's config, or write the
        log-probabilities of the whole dataset to a cache file.
        """

        def _prepare_dataset(self, dataset: "Dataset", *_: object) -> "Dataset":
            return dataset

        def _precompute_ref_logps(self, dataset: "Dataset", _name: str, batch_size: int) -> "Dataset":
            use_completion_head(model)
            return _with_reference(self, dataset, batch_size, context)

    order = training_order(len(rows), rows_wanted(params), context.seed)
    arguments = training_arguments(
        DPOConfig,
        params,
        params.learning_rate,
        context,
        model.device.type,
        beta=params.beta,
        loss_type=[params.loss_type],
        label_smoothing=params.label_smoothing,
        max_length=None,
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    return Precomputed(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{**rows[i], "row": i} for i in order]),
        processing_class=tokenizer,
        peft_config=lora_config(params, "CAUSAL_LM"),
    )


def _with_reference(trainer: Any, dataset: "Dataset", batch_size: int, context: Context) -> "Dataset":  # noqa: ANN401  # trl is untyped
    """Add the reference's log-probabilities (nats, summed over the completion) of the rows this run will see.

    The batches are those of training, so that policy and reference round alike and the first margins are exactly 0;
    a row seen again in a later epoch is not computed again.
    """
    import datasets

    pairs = dataset.to_list()
    known: dict[int, dict[str, float]] = {}
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        if all(pair["row"] in known for pair in batch):
            continue
        context.check()
        tensors = {name: t.to(trainer.accelerator.device) for name, t in trainer.data_collator(batch).items()}
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, tensors)
        for pair, good, bad in zip(batch, chosen.tolist(), rejected.tolist(), strict=True):
            known.setdefault(pair["row"], {"ref_chosen_logps": good, "ref_rejected_logps": bad})
    return datasets.Dataset.from_list([{**pair, **known[pair["row"]]} for pair in pairs])
