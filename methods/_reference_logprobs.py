"""What the reference of DPO and KTO says of the answers: log-probabilities of the policy as it comes in.

They depend on the policy, the rows and how these stand in batches, and on nothing that is usually searched. So they are
an artifact of their own, computed once for all trials of a cell; a method that is run without it computes them itself.
The batches are those of training, so that policy and reference round alike and the first margins are exactly 0.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.method import Context, Inputs, Made, Method, Params
from methods._rows import preference_rows, single_answers, training_order
from methods._trl import need_dataset

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["PREPARATION", "ReferenceLogprobs", "ReferenceParams", "reference_of_answers", "reference_of_pairs"]

PREPARATION = "methods._reference_logprobs:ReferenceLogprobs"
"""Its name for `Method.prepares`."""

Said = Mapping[str, object]


class ReferenceParams(Params):
    """What decides the numbers: the rows, and which of them stand in a batch together."""

    dataset: str = Field(description="set of kind preferences (prompt, chosen, rejected)")
    max_length: int = Field(ge=8, description="tokens of prompt and completion; longer rows are left out")
    batch_size: int = Field(ge=1, description="rows of one forward pass")
    rows: int = Field(ge=1, description="rows that the training sees, counted with repetition")
    of: Literal["pairs", "answers", "neighbours"] = Field(
        description="pairs; single answers; or single answers and, under the same prompts, their neighbours' in a batch"
    )


class ReferenceLogprobs(Method[ReferenceParams]):
    """The artifact: no dataset to train on, but what a training on one is given besides."""

    name = "reference_logprobs"
    summary = "log-probabilities of a preference set's answers under the incoming policy"
    paper = "Rafailov et al. 2023, arXiv:2305.18290"
    version = 1
    params = ReferenceParams
    needs = frozenset({"policy"})
    dataset_kind = "preferences"
    produces = "dataset"

    def run(self, inputs: Inputs, params: ReferenceParams, context: Context) -> Made:
        """Compute them.

        Raises:
            UserError: no dataset, no usable pair, no chat template.
            PrunedError: past the deadline.
        """
        from methods._shared_prompt import shared_attention

        policy = inputs.load("policy")
        pairs = preference_rows(need_dataset(inputs, self.name), policy.tokenizer, params.max_length)
        with shared_attention(policy.model) as shared:
            if params.of == "pairs":
                order = training_order(len(pairs), params.rows, context.seed)
                found = reference_of_pairs(policy.model, pairs, order, params.batch_size, context)
            else:
                batch = params.batch_size if params.of == "neighbours" else None
                answers = single_answers(pairs, params.rows, context.seed, batch)
                found = reference_of_answers(policy.model, answers, params.batch_size, context)
        return Made(found, metrics={"rows": float(len(found)), "shared_prompt": float(shared)})


def reference_of_pairs(
    model: "PreTrainedModel",
    pairs: Sequence[Mapping[str, list[int]]],
    order: Sequence[int],
    size: int,
    context: Context,
) -> list[Said]:
    """The log-probabilities `ref_chosen_logps`, `ref_rejected_logps` (nats, summed) of each pair `row` that is seen.

    What is seen again in a later epoch is not computed again.

    Args:
        order: the pairs that the training sees, in order; `size` of them at a time.
    """
    found: dict[int, Said] = {}
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        if all(row in found for row in batch):
            continue
        context.check()
        rows = [
            (pairs[row]["prompt_ids"], pairs[row][side]) for side in ("chosen_ids", "rejected_ids") for row in batch
        ]
        values = _log_probs(model, rows, context)
        for row, good, bad in zip(batch, values[: len(batch)], values[len(batch) :], strict=True):
            found.setdefault(row, {"row": row, "ref_chosen_logps": good, "ref_rejected_logps": bad})
    return list(found.values())


def reference_of_answers(
    model: "PreTrainedModel", answers: Sequence[Mapping[str, Any]], size: int, context: Context
) -> list[Said]:
    """The log-probability `ref_logps` (nats, summed) of each answer in order, and `ref_KL_logps` of its neighbour's."""
    names = {"ref_logps": "completion_ids", "ref_KL_logps": "KL_completion_ids"}
    found: list[Said] = []
    for start in range(0, len(answers), size):
        context.check()
        batch = answers[start : start + size]
        values = {
            name: _log_probs(model, [(answer["prompt_ids"], answer[ids]) for answer in batch], context)
            for name, ids in names.items()
            if ids in batch[0]
        }
        found += [{name: own[i] for name, own in values.items()} for i in range(len(batch))]
    return found


def _log_probs(model: "PreTrainedModel", rows: Sequence[tuple[list[int], list[int]]], context: Context) -> list[float]:
    """Of the second of each row's two parts, the prompt and the answer; as the trainers compute them of a batch."""
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from methods._head import use_completion_head
    from methods._ppo_models import autocast

    if "forward" not in vars(model) and not use_completion_head(model):
        add_fused_lm_head(model)
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor([*prompt, *answer])
        mask[i, :end] = 1
        labels[i, len(prompt) : end] = ids[i, len(prompt) : end]
    ids, mask, labels = (t.to(model.device) for t in (ids, mask, labels))
    with torch.no_grad(), autocast(model.device, context.precision):
        found = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, fused_lm_head=True)
    values: list[float] = found.log_probs.float().sum(1).tolist()
    return values
