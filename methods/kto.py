"""KTO: answers that are good or bad by themselves, valued as people value gains and losses against a reference point.

Ethayarajh et al. 2024, arXiv:2402.01306. With r = beta (log p(answer) - log p_ref(answer)) and z the KL divergence from
the reference times beta, the loss of a good answer is 1 - sigmoid(r - z), that of a bad one 1 - sigmoid(z - r). A
preference set is taken apart: its pairs become single answers with a label, shuffled.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from harness.method import Context, tunable
from methods._adapters import AdapterParams
from methods._head import use_completion_head
from methods._pairs_method import PAIR_METRICS, PairRows, PairsMethod, Prepared, as_given
from methods._peft_model import with_adapters
from methods._reference_logprobs import PREPARATION, reference_of_answers
from methods._rows import single_answers
from methods._trl import rows_wanted, training_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

__all__ = ["KTO", "KTOParams"]


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
    version = 2
    params = KTOParams
    # Of single answers there is no accuracy, and there is the KL term.
    logged: ClassVar[Mapping[str, str]] = {
        **{k: v for k, v in PAIR_METRICS.items() if k != "rewards/accuracies"},
        "kl": "kl",
    }

    @classmethod
    def prepares(cls, settings: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
        """The reference's log-probabilities."""
        params = cls.params.model_validate(settings)
        rows = {name: getattr(params, name) for name in ("dataset", "max_length", "batch_size")}
        of = "neighbours" if params.loss_type == "kto" else "answers"
        return PREPARATION, {**rows, "rows": rows_wanted(params), "of": of}

    def trainer(
        self,
        model: "PreTrainedModel",
        tokenizer: object,
        pairs: PairRows,
        params: KTOParams,
        context: Context,
        prepared: Prepared = None,
    ) -> "Trainer":
        """See `PairsMethod`."""
        return _make_trainer(model, tokenizer, _answers(pairs, params, context.seed), params, context, prepared)


def _answers(pairs: PairRows, params: KTOParams, seed: int) -> list[dict[str, Any]]:
    # The KL term is estimated from the answers to a batch's other prompts.
    batch = params.batch_size if params.loss_type == "kto" else None
    return single_answers(pairs, rows_wanted(params), seed, batch)


def _make_trainer(
    model: "PreTrainedModel",
    tokenizer: object,
    answers: list[dict[str, Any]],
    params: KTOParams,
    context: Context,
    prepared: Prepared = None,
) -> "Trainer":
    import datasets
    from trl import KTOConfig, KTOTrainer

    # Before adapters are put in, some of which change the weights.
    reference = prepared or reference_of_answers(model, answers, params.batch_size, context)
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
    trained: Trainer = as_given(KTOTrainer)(
        **with_adapters(model, params, context.seed),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([{**a, **said} for a, said in zip(answers, reference, strict=True)]),
        processing_class=tokenizer,
    )
    use_completion_head(model)
    return trained
