"""The trainer of preference losses that need no reference model: the policy's own log-probabilities of a pair.

TRL's experimental trainers for these losses are not used: they tokenize by rules of their own, make logits at every
position, and take ORPO's likelihood over the prompt too. Here the rows, the head and the loop are those of DPO.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from harness.method import Context, tunable
from methods._adapters import AdapterParams
from methods._head import use_completion_head
from methods._pairs_method import PairRows, PairsMethod, Prepared, as_given
from methods._peft_model import with_adapters
from methods._rows import training_order
from methods._trl import rows_wanted, training_arguments

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, Trainer

__all__ = ["Objective", "Outcome", "ReferenceFreeMethod", "ReferenceFreeParams", "Side"]


@dataclass(frozen=True)
class Side:
    """The chosen or the rejected answers of a batch: log-probabilities in nats, each of shape [pairs]."""

    summed: "torch.Tensor"
    mean: "torch.Tensor"
    """Over the answer's tokens, the end of sequence included."""


@dataclass(frozen=True)
class Outcome:
    """What a loss makes of a batch: every tensor of shape [pairs]. `figures` are logged by name, as means."""

    loss: "torch.Tensor"
    chosen_reward: "torch.Tensor"
    rejected_reward: "torch.Tensor"
    figures: Mapping[str, "torch.Tensor"] = field(default_factory=dict)


Objective = Callable[[Side, Side], Outcome]


class ReferenceFreeParams(AdapterParams):
    """Settings that all of them have."""

    dataset: str = Field("preferences", description="training set of kind preferences (prompt, chosen, rejected)")
    learning_rate: float = Field(
        1e-5,
        gt=0,
        description="peak learning rate of AdamW; about ten times as much suits LoRA",
        json_schema_extra=tunable(1e-6, 1e-4, log=True),
    )


P = TypeVar("P", bound=ReferenceFreeParams)


class ReferenceFreeMethod(PairsMethod[P]):
    """A method that trains the policy by `objective`, and holds no other model."""

    @staticmethod
    @abstractmethod
    def objective(params: P) -> Objective:
        """The loss with these settings, of the chosen and the rejected answers of a batch."""

    def trainer(
        self,
        model: "PreTrainedModel",
        tokenizer: object,
        pairs: PairRows,
        params: P,
        context: Context,
        prepared: Prepared = None,
    ) -> "Trainer":
        """See `PairsMethod`; there is no reference that could be prepared."""
        return _make_trainer(model, tokenizer, pairs, params, self.objective(params), context)


def _make_trainer(
    model: "PreTrainedModel",
    tokenizer: object,
    rows: PairRows,
    params: ReferenceFreeParams,
    objective: Objective,
    context: Context,
) -> "Trainer":
    import datasets
    from trl import DPOConfig, DPOTrainer

    class ReferenceFree(as_given(DPOTrainer)):  # type: ignore[misc]  # trl is untyped
        """DPO's batches and bookkeeping with a loss of the policy alone."""

        def _compute_loss(self, model: Any, inputs: Mapping[str, "torch.Tensor"], _outputs: bool) -> "torch.Tensor":  # noqa: ANN401  # wrapped or not
            chosen, rejected, extra = _sides(self, model, inputs)
            found = objective(chosen, rejected)
            self._total_train_tokens += int(inputs["attention_mask"].sum())
            for name, value in {**_logged(chosen, rejected, found), **found.figures}.items():
                self._metrics["train"][name].append(value.detach().float().mean().item())
            return found.loss.mean() + extra

    order = training_order(len(rows), rows_wanted(params), context.seed)
    arguments = training_arguments(
        DPOConfig,
        params,
        params.learning_rate,
        context,
        model.device.type,
        max_length=None,
        # Or the trainer would load a reference from the path in the model's config.
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    trainer = ReferenceFree(
        **with_adapters(model, params, context.seed),
        args=arguments,
        train_dataset=datasets.Dataset.from_list([rows[i] for i in order]),
        processing_class=tokenizer,
    )
    use_completion_head(model)
    return trainer


def _sides(
    trainer: Any,  # noqa: ANN401  # trl is untyped
    model: Any,  # noqa: ANN401  # wrapped or not
    inputs: Mapping[str, "torch.Tensor"],
) -> "tuple[Side, Side, torch.Tensor | float]":
    # The third is the load-balancing loss of a mixture of experts, as DPO adds it.
    mask = inputs["completion_mask"]
    wanted = {"output_router_logits": True} if trainer.aux_loss_enabled else {}
    output = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        labels=inputs["input_ids"].masked_fill(mask == 0, -100),
        use_cache=False,
        fused_lm_head=True,
        **wanted,
    )
    summed = output.log_probs.sum(dim=1)
    mean = summed / mask[:, 1:].sum(dim=1)
    half = len(summed) // 2
    extra = trainer.router_aux_loss_coef * output.aux_loss if trainer.aux_loss_enabled else 0.0
    return Side(summed[:half], mean[:half]), Side(summed[half:], mean[half:]), extra


def _logged(chosen: Side, rejected: Side, found: Outcome) -> dict[str, "torch.Tensor"]:
    margin = found.chosen_reward - found.rejected_reward
    return {
        "rewards/chosen": found.chosen_reward,
        "rewards/rejected": found.rejected_reward,
        "rewards/margins": margin,
        "rewards/accuracies": margin > 0,
        "logps/chosen": chosen.summed,
        "logps/rejected": rejected.summed,
    }
