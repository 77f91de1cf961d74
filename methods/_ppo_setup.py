"""What a run of PPO works with, made and checked before its first iteration: token ids, and models in their roles."""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from harness.errors import UserError
from harness.method import Context, Inputs, LoadedModel
from methods._peft_model import adapted, as_it_came
from methods._ppo_models import Batch, Policy, Sampler, Scores, TokenScorer, cast_linears, check_model, closing_tokens
from methods._shared_prompt import can_share

if TYPE_CHECKING:
    from methods.ppo import PPOParams

__all__ = ["Models", "Texts", "frozen_reference", "load_pair", "make_models", "make_texts"]


@dataclass(frozen=True)
class Texts:
    """Prompts as token ids, and the tokens that end a text."""

    prompts: list[list[int]]
    rows: list[Mapping[str, Any]]
    """The dataset's row of each."""
    left_out: int
    """Prompts that were empty or too long."""
    eos: int
    pad: int
    closing: list[int]
    """What the chat template writes after an answer's end token."""


@dataclass(frozen=True)
class Models:
    """The models of a run by their roles, some of which share weights."""

    trained: Any
    """The causal model that learns; adapters are inside its layers."""
    peft: Any
    """The adapters' wrapper around it, None without."""
    sampler: Sampler
    policy: Policy
    """What learns: the trained model with the value head, where there is one."""
    sampling_policy: Policy
    """The same as it was when it sampled."""
    reference: Policy
    reward: TokenScorer | None
    """None where something else scores."""
    value_model: TokenScorer | None
    attending: list[Any]
    """Every model that is run."""

    def values(self, batch: Batch, scores: Scores) -> Tensor:
        """Values [rows, response length]: of the head, which `scores` has, or of the value model."""
        if self.value_model is None:
            if scores.values is None:
                raise ValueError("the policy has no value head and there is no value model")
            return scores.values
        return batch.spread(self.value_model.at(batch))

    def adapter_off(self) -> "AbstractContextManager[object]":
        """In it, the trained model is as it was before any training."""
        return nullcontext() if self.peft is None else as_it_came(self.peft)


def load_pair(inputs: Inputs, params: "PPOParams") -> tuple[LoadedModel, LoadedModel | None]:
    """The policy, and the reward model where it is what scores.

    Raises:
        UserError: their tokenizers differ, or the policy is of a kind that PPO here does not know.
    """
    policy = inputs.load("policy")
    check_model(policy.model)
    if params.reward != "model":
        return policy, None
    reward = inputs.load("reward")
    if policy.tokenizer.get_vocab() != reward.tokenizer.get_vocab():
        raise UserError(
            f"ppo: the reward model in {reward.folder} has another tokenizer than the policy in {policy.folder}; "
            "train the reward model from the same base model"
        )
    return policy, reward


class TextParams(Protocol):
    """The settings that prompts and responses have to fit."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longer prompts are left out."""

    @property
    def max_new_tokens(self) -> int:
        """The length limit of a response."""


def make_texts(name: str, inputs: Inputs, policy: LoadedModel, params: TextParams) -> Texts:
    """The prompts, tokenized as the policy reads them; `name` is the method's.

    Raises:
        UserError: there are none of a length that fits, or the tokenizer has no chat template or end token.
    """
    tokenizer = policy.tokenizer
    if inputs.dataset is None:
        raise UserError(f"{name} needs a dataset of prompts; set its `dataset`")
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise UserError(
            f"{name}: the tokenizer in {policy.folder} has no chat template or no end token (eos_token), which "
            "sampling answers needs; start from an instruct model"
        )
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    closing = closing_tokens(tokenizer)
    prompts, rows = [], []
    for row in inputs.dataset:
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if 0 < len(ids) <= params.max_prompt_tokens:
            prompts.append(ids)
            rows.append(row)
    count, most = len(inputs.dataset), params.max_prompt_tokens
    if not prompts:
        raise UserError(f"{name}: none of the {count} prompts has 1 to {most} tokens; raise max_prompt_tokens")
    limit = policy.model.config.get_text_config().max_position_embeddings
    longest = max(map(len, prompts)) + params.max_new_tokens + len(closing) + 1
    if longest > limit:
        raise UserError(
            f"{name}: prompt and response may reach {longest} tokens, the model holds {limit}; "
            "lower max_new_tokens or max_prompt_tokens"
        )
    return Texts(prompts, rows, count - len(prompts), int(eos), int(eos if pad is None else pad), closing)


def make_models(inputs: Inputs, model: Any, reward: Any, params: "PPOParams", context: Context) -> Models:  # noqa: ANN401 -- transformers is untyped
    """The models in their roles, from the loaded policy and reward model, which are changed.

    Raises:
        UserError: the reward model gives no score, or policy and reference are one model in memory.
    """
    precision = context.precision
    shared = can_share(model.eval())
    value_model = scorer = None
    if reward is not None:
        value_model = copy.deepcopy(reward).eval().requires_grad_(True) if params.value == "model" else None
        scorer = TokenScorer.frozen(reward, precision)
    sampler = Sampler(model, precision, separate=precision == "bfloat16" or params.adapts)
    if params.adapts:
        peft, reference = adapted(model, params, context.seed).eval(), model
    else:
        peft, reference = None, frozen_reference("ppo", inputs, model.requires_grad_(True), precision)
    head = _value_head(model) if value_model is None else None
    # The sampler's ready-cast copy gives, bit for bit, what the policy gives under autocast, without casting 135M
    # weights for each minibatch. Not with adapters: merged weights round otherwise than base and adapter.
    scoring = model if params.adapts else sampler.model
    running = [model, sampler.model, reward, reference, value_model]
    return Models(
        trained=model,
        peft=peft,
        sampler=sampler,
        policy=Policy(model, precision, params.temperature, head, params.value_gradient, share=shared),
        sampling_policy=Policy(scoring, precision, params.temperature, head, share=shared),
        reference=Policy(reference, precision, params.temperature, share=shared),
        reward=scorer,
        value_model=TokenScorer(value_model, precision, share=can_share(value_model))
        if value_model is not None
        else None,
        attending=[m for m in running if m is not None],
    )


def frozen_reference(name: str, inputs: Inputs, model: Any, precision: str) -> Any:  # noqa: ANN401 -- transformers is untyped
    """The policy as it came in, a second model in memory; `name` is the method's.

    Raises:
        UserError: it is the policy itself.
    """
    reference = inputs.load("reference").model.eval().requires_grad_(False)
    if reference is model:
        raise UserError(f"{name}: the reference must be a second model in memory, not the policy itself")
    if precision == "bfloat16":
        cast_linears(reference)
    return reference


def _value_head(model: Any) -> nn.Linear:  # noqa: ANN401 -- transformers is untyped
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, device=model.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
