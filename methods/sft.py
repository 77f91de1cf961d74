"""Supervised fine-tuning: next-token loss on demonstrations, on the completion's tokens only.

Where several datasets come one after the other, each a step, two settings keep what earlier ones taught: `replay` mixes
their rows into every batch, `ewc_weight` holds the weights that they need (elastic weight consolidation,
arXiv:1612.00796).
"""

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from harness.method import Context, DatasetKind, Inputs, LoadedModel, Trained, tunable
from methods._adapters import AdapterMethod, AdapterParams, finished
from methods._replay import mixed
from methods._rows import instruction_rows, training_order
from methods._sft_trainer import make_trainer
from methods._trl import need_dataset, train

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from methods._ewc import Anchor

__all__ = ["SFT", "SFTParams"]

_FRACTION = 0.25
_ROWS = 64


class SFTParams(AdapterParams):
    """Settings of supervised fine-tuning; those of continual learning are left out of what is stored at the default."""

    dataset: str = Field("instructions", description="training set of kind instructions (prompt, completion)")
    learning_rate: float = Field(
        2e-5,
        gt=0,
        description="peak learning rate of AdamW; about ten times as much suits LoRA",
        json_schema_extra=tunable(1e-6, 2e-4, log=True),
    )
    replay: str | list[str] | None = Field(
        None,
        description="earlier training sets of kind instructions, one or several, from which a part of each batch comes",
        exclude_if=operator.not_,
    )
    replay_fraction: float = Field(
        _FRACTION,
        gt=0,
        lt=1,
        description="with replay: the part of the rows that comes from the earlier sets, in turns",
        json_schema_extra=tunable(0.05, 0.5),
        exclude_if=lambda fraction: bool(fraction == _FRACTION),
    )
    ewc_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the EWC penalty, which is about the divergence from the incoming policy on ewc_dataset, "
        "nats per token; 0: none. Keeps a copy of the weights and their Fisher information (8 bytes a weight)",
        json_schema_extra=tunable(1.0, 1000.0, log=True),
        exclude_if=operator.not_,
    )
    ewc_dataset: str | None = Field(
        None,
        min_length=1,
        description="with ewc_weight: the training set of kind instructions that must not be forgotten",
        exclude_if=operator.not_,
    )
    ewc_rows: int = Field(
        _ROWS,
        ge=1,
        description="with ewc_weight: rows of ewc_dataset on which the Fisher information is estimated, before the "
        "first step; a forward and a backward pass each",
        exclude_if=lambda rows: bool(rows == _ROWS),
    )

    @property
    def replayed(self) -> tuple[str, ...]:
        """The earlier sets, none or several."""
        return (self.replay,) if isinstance(self.replay, str) else tuple(self.replay or ())

    @model_validator(mode="after")
    def _continual(self) -> Self:
        names = self.replayed
        if not all(names) or len(set(names)) < len(names):
            raise ValueError("replay: expected the names of training sets, each once")
        if not names and self.replay_fraction != _FRACTION:
            raise ValueError("replay_fraction needs earlier training sets: set replay")
        if self.ewc_weight and self.ewc_dataset is None:
            raise ValueError("ewc_weight needs the data that must not be forgotten: set ewc_dataset")
        if not self.ewc_weight and (self.ewc_dataset is not None or self.ewc_rows != _ROWS):
            raise ValueError("ewc_dataset and ewc_rows are used with an ewc_weight above 0 only")
        return self


class SFT(AdapterMethod[SFTParams]):
    """Maximum likelihood of the demonstrated answers."""

    name = "sft"
    summary = "supervised fine-tuning: imitate the demonstrated answers"
    paper = "Ouyang et al. 2022, arXiv:2203.02155"
    version = 1
    params = SFTParams
    needs = frozenset({"policy"})
    dataset_kind = "instructions"

    @classmethod
    def datasets(cls, settings: Mapping[str, object]) -> Mapping[str, DatasetKind]:
        """The sets that are replayed, and the one that must not be forgotten."""
        replay = settings.get("replay")
        named = [*(replay if isinstance(replay, list) else [replay]), settings.get("ewc_dataset")]
        return {str(name): "instructions" for name in named if name}

    def run(self, inputs: Inputs, params: SFTParams, context: Context) -> Trained:
        """Train the policy in place.

        Metrics beside those of training: `replayed_rows`, how many of the rows seen came from earlier sets; logged with
        EWC at every step: `ewc_penalty` (nats per token), which the loss does not hold.

        Raises:
            UserError: no dataset, no usable row, no chat template; EWC with adapters that it cannot hold.
            InfeasibleError: diverged, or out of memory.
            PrunedError: past the deadline.
        """
        from methods._ppo_attention import quick_attention

        policy = inputs.load("policy")
        dataset = need_dataset(inputs, self.name)
        rows = instruction_rows(dataset, policy.tokenizer, params.max_length)
        earlier = [
            instruction_rows(inputs.named(name), policy.tokenizer, params.max_length) for name in params.replayed
        ]
        seen = rows
        if earlier:
            batches = params.steps * params.gradient_accumulation
            fraction, size = params.replay_fraction, params.batch_size
            seen = mixed(rows, earlier, fraction=fraction, batches=batches, batch_size=size, seed=context.seed)
        with quick_attention(policy.model):
            anchor = _anchor(inputs, policy, params, context) if params.ewc_weight else None
            trainer = make_trainer(
                policy.model,
                policy.tokenizer,
                seen,
                params,
                params.learning_rate,
                context,
                ordered=bool(earlier),
                anchor=anchor,
            )
            metrics = train(trainer, context, {"ewc_penalty": "ewc_penalty"})
        metrics["rows_left_out"] = float(len(dataset) - len(rows))
        if earlier:
            metrics["replayed_rows"] = float(int(len(seen) * params.replay_fraction + 1e-9))
        return finished(trainer, policy.tokenizer, params, metrics, context)


def _anchor(inputs: Inputs, policy: LoadedModel, params: SFTParams, context: Context) -> "Callable[[Any], Anchor]":
    from methods._ewc import Anchor, fisher

    rows = instruction_rows(inputs.named(str(params.ewc_dataset)), policy.tokenizer, params.max_length)
    order = training_order(len(rows), min(params.ewc_rows, len(rows)), context.seed)
    importance = fisher(policy.model, [rows[i] for i in order], context)
    return lambda model: Anchor(model, importance, params.ewc_weight)
