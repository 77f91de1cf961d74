"""Token rows for training: chat rows to token ids, and the order in which a run sees them."""

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

__all__ = ["encode", "instruction_rows", "preference_rows", "single_answers", "training_order"]

Turns = Sequence[Mapping[str, str]]
Row = dict[str, list[int]]


def encode(tokenizer: "PreTrainedTokenizerBase", prompt: Turns, completion: Turns) -> tuple[list[int], list[int]]:
    """Token ids of a prompt with its generation header, and of the completion.

    The two are tokenized apart, so training sees the very tokens that generation starts from and produces. The
    completion ends with the end-of-sequence token, where generation stops: what a chat template writes after it
    (often a line break) is never generated, so it is neither trained on nor scored.

    Raises:
        UserError: the tokenizer has no chat template, or one that rewrites the prompt once an answer follows.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the model's tokenizer has no chat template, which these methods need to write a dialogue; start from an "
            "instruct model, or add a chat_template.jinja to the model's folder"
        )
    if tokenizer.eos_token_id is None:
        raise UserError("the model's tokenizer has no end-of-sequence token; set eos_token in its configuration")
    before = tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
    if not whole.startswith(before):
        raise UserError(
            "the model's chat template writes a prompt differently once an answer follows it, so prompt and "
            f"completion cannot be told apart; the prompt alone ends with {before[-60:]!r}"
        )
    prompt_ids = list(tokenizer(before, add_special_tokens=False)["input_ids"])
    ids = list(tokenizer(whole[len(before) :], add_special_tokens=False)["input_ids"])
    end = tokenizer.eos_token_id
    completion_ids = ids[: ids.index(end) + 1] if end in ids else [*ids, end]
    return prompt_ids, completion_ids


def instruction_rows(dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[Row]:
    """Rows of `input_ids` and `labels`, where the labels of prompt tokens are -100 (no loss).

    Rows longer than `max_length` tokens are left out: cut, they would teach answers without an end.

    Raises:
        UserError: no row is short enough.
    """
    rows: list[Row] = []
    for row in dataset:
        prompt, completion = encode(tokenizer, row["prompt"], row["completion"])
        if len(prompt) + len(completion) <= max_length:
            rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return _not_empty(rows, len(dataset), max_length)


def preference_rows(dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[Row]:
    """Rows of `prompt_ids`, `chosen_ids`, `rejected_ids`; pairs with a side over `max_length` tokens are left out.

    Raises:
        UserError: no pair is short enough.
    """
    rows: list[Row] = []
    for row in dataset:
        prompt, chosen = encode(tokenizer, row["prompt"], row["chosen"])
        _, rejected = encode(tokenizer, row["prompt"], row["rejected"])
        if len(prompt) + max(len(chosen), len(rejected)) <= max_length:
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return _not_empty(rows, len(dataset), max_length)


def _not_empty(rows: list[Row], given: int, max_length: int) -> list[Row]:
    if not rows:
        raise UserError(f"none of the {given} rows has at most max_length={max_length} tokens; raise max_length")
    return rows


def training_order(rows: int, wanted: int, seed: int) -> list[int]:
    """Indices of the rows a run sees, in order: shuffled epochs, one after the other, `wanted` indices long.

    Every epoch holds each row once, and a prefix does not depend on `wanted`: a longer run begins as a shorter one.
    """
    order: list[int] = []
    generator = random.Random(seed)
    while len(order) < wanted:
        epoch = list(range(rows))
        generator.shuffle(epoch)
        order += epoch
    return order[:wanted]


def single_answers(pairs: Sequence[Row], wanted: int, seed: int, batch_size: int | None) -> list[dict[str, Any]]:
    """The answers of pairs by themselves, each with its `label`, in the order in which a run of `wanted` sees them.

    Args:
        batch_size: where given, each answer also has as `KL_completion_ids` its neighbour's in the batch.
    """
    single = [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[side], "label": side == "chosen_ids"}
        for pair in pairs
        for side in ("chosen_ids", "rejected_ids")
    ]
    order = [single[i] for i in training_order(len(single), wanted, seed)]
    if batch_size is None:
        return order
    found = []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        found += [
            {**answer, "KL_completion_ids": before["completion_ids"]}
            for before, answer in zip([batch[-1], *batch[:-1]], batch, strict=True)
        ]
    return found
