"""What the methods on pairs share: rows, loop and end; and how a reference that is known is given to a trainer."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from harness.method import Context, Inputs, Trained
from methods._adapters import AdapterMethod, AdapterParams, finished
from methods._rows import preference_rows
from methods._trl import need_dataset, train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer

__all__ = ["PAIR_METRICS", "PairRows", "PairsMethod", "Prepared", "as_given"]

PAIR_METRICS = {
    "rewards/margins": "rewards_margin",
    "rewards/accuracies": "rewards_accuracy",
    "rewards/chosen": "rewards_chosen",
    "rewards/rejected": "rewards_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
}
"""What TRL logs of pairs → our names."""

PairRows = list[dict[str, list[int]]]
"""Tokens of prompt, chosen and rejected answer of each pair."""
Prepared = Sequence[Mapping[str, object]] | None
"""What the reference says of the rows; None where it was not computed before."""

P = TypeVar("P", bound=AdapterParams)


class PairsMethod(AdapterMethod[P]):
    """A method that trains the policy on a set of preferences by a trainer of TRL's kind."""

    needs = frozenset({"policy"})
    dataset_kind = "preferences"
    logged: ClassVar[Mapping[str, str]] = PAIR_METRICS
    """The trainer's names of what is logged → ours."""

    @abstractmethod
    def trainer(
        self,
        model: "PreTrainedModel",
        tokenizer: object,
        pairs: PairRows,
        params: P,
        context: Context,
        prepared: Prepared = None,
    ) -> "Trainer":
        """The trainer of a run, ready to train."""

    def run(self, inputs: Inputs, params: P, context: Context) -> Trained:
        """Train the policy in place.

        Raises:
            UserError: no dataset, no usable pair, no chat template.
            InfeasibleError: diverged, or out of memory.
            PrunedError: past the deadline.
        """
        from methods._shared_prompt import shared_attention

        policy = inputs.load("policy")
        dataset = need_dataset(inputs, self.name)
        pairs = preference_rows(dataset, policy.tokenizer, params.max_length)
        # Around both: a reference's log-probabilities must come from the very arithmetic of training. Trained vectors
        # before the prompt come as embeddings, of which no tree is made.
        with shared_attention(policy.model, wanted=params.adapter != "prompt_tuning") as shared:
            trainer = self.trainer(policy.model, policy.tokenizer, pairs, params, context, inputs.prepared)
            metrics = train(trainer, context, dict(self.logged))
        metrics |= {"rows_left_out": float(len(dataset) - len(pairs)), "shared_prompt": float(shared)}
        return finished(trainer, policy.tokenizer, params, metrics, context)


def as_given(trainer: Any) -> Any:  # noqa: ANN401  # trl is untyped
    """A class of trainers that take their rows, and what a reference says of them, as they are given.

    Left alone, TRL's would load a reference from the path in the model's config, or write the log-probabilities of the
    whole dataset to a cache file.
    """

    class AsGiven(trainer):  # type: ignore[misc]  # trl is untyped
        def _prepare_dataset(self, dataset: "Dataset", *_: object) -> "Dataset":
            return dataset

        def _precompute_ref_logps(self, dataset: "Dataset", *_: object) -> "Dataset":
            return dataset

    return AsGiven
