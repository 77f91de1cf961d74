"""What the methods on pairs share: rows, loop and end; and a reference that is the policy in memory."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from harness.method import Context, Inputs, Trained
from methods._adapters import AdapterMethod, AdapterParams, finished
from methods._head import use_completion_head
from methods._rows import preference_rows
from methods._trl import need_dataset, train

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, Trainer

__all__ = ["PAIR_METRICS", "PairRows", "PairsMethod", "own_reference"]

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

P = TypeVar("P", bound=AdapterParams)


class PairsMethod(AdapterMethod[P]):
    """A method that trains the policy on a set of preferences by a trainer of TRL's kind."""

    needs = frozenset({"policy"})
    dataset_kind = "preferences"
    logged: ClassVar[Mapping[str, str]] = PAIR_METRICS
    """The trainer's names of what is logged → ours."""

    @abstractmethod
    def trainer(
        self, model: "PreTrainedModel", tokenizer: object, pairs: PairRows, params: P, context: Context
    ) -> "Trainer":
        """The trainer of a run, ready to train."""

    def run(self, inputs: Inputs, params: P, context: Context) -> Trained:
        """Train the policy in place.

        Raises:
            UserError: no dataset, no usable pair, no chat template.
            InfeasibleError: diverged, or out of memory.
            PrunedError: past the deadline.
        """
        from methods._ppo_attention import quick_attention

        policy = inputs.load("policy")
        dataset = need_dataset(inputs, self.name)
        pairs = preference_rows(dataset, policy.tokenizer, params.max_length)
        # Around both: a reference's log-probabilities must come from the very arithmetic of training.
        with quick_attention(policy.model):
            trainer = self.trainer(policy.model, policy.tokenizer, pairs, params, context)
            metrics = train(trainer, context, dict(self.logged))
        metrics["rows_left_out"] = float(len(dataset) - len(pairs))
        return finished(trainer, policy.tokenizer, params, metrics, context)


def own_reference(
    trainer: Any,  # noqa: ANN401  # trl is untyped
    model: "PreTrainedModel",
    add: "Callable[[Any, Dataset, int], Dataset]",
) -> Any:  # noqa: ANN401  # the same
    """A class of trainers whose reference is the policy in memory before its first update.

    Left alone, TRL's would load the reference from the path in the model's config, or write the log-probabilities of
    the whole dataset to a cache file.

    Args:
        trainer: the class that it is made of; its dataset is taken as it is given.
        model: the policy.
        add: adds the reference's log-probabilities to a dataset, given the trainer and the size of its batches.
    """

    class Precomputed(trainer):  # type: ignore[misc]  # trl is untyped
        def _prepare_dataset(self, dataset: "Dataset", *_: object) -> "Dataset":
            return dataset

        def _precompute_ref_logps(self, dataset: "Dataset", _name: str, batch_size: int) -> "Dataset":
            use_completion_head(model)
            return add(self, dataset, batch_size)

    return Precomputed
