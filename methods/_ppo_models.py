"""The models PPO works with: packing of sampled rows, log-probabilities and values of one forward pass, frozen copies.

Rows are padded on the right, so a causal pass needs no mask; the output layer is applied at response positions only.
Frozen models keep bfloat16 copies of what autocast would cast at every call and run under the same autocast: what
they give is, bit for bit, that of the fp32 model under autocast. So an untrained policy has a KL of exactly 0.
"""

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from harness.errors import UserError
from methods._peft_model import merged_weights
from methods._shared_prompt import can_share, states_at

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "Batch",
    "Policy",
    "Sampler",
    "Scores",
    "TokenScorer",
    "autocast",
    "cast_linears",
    "check_model",
    "closing_tokens",
    "pack",
]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision; off for float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@dataclass(frozen=True)
class Batch:
    """Prompt and response of several rows, padded on the right to the longest.

    `rows` and `columns` [tokens] say where in `ids` each response token is predicted (one place before it stands), in
    the row-major order of `mask` [rows, response length]; `targets` [tokens] are the response tokens.
    """

    ids: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor
    mask: Tensor

    def texts(self) -> tuple[list[list[int]], list[int]]:
        """The rows without padding, and how many tokens of each are the prompt's."""
        counts = self.mask.sum(1)
        prompts = self.columns[counts.cumsum(0) - counts] + 1
        sizes = (prompts + counts).tolist()
        return [ids[:size] for ids, size in zip(self.ids.tolist(), sizes, strict=True)], prompts.tolist()

    def spread(self, flat: Tensor) -> Tensor:
        """Values [tokens] → [rows, response length], 0 in the padding; gradients pass."""
        return torch.zeros(self.mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(self.mask, flat)


def pack(prompts: Sequence[Sequence[int]], responses: Tensor, mask: Tensor, pad: int) -> Batch:
    """Put rows together: prompts as token ids, responses and mask [rows, tokens]. The mask's width is kept."""
    device = responses.device
    starts = torch.tensor([len(p) for p in prompts], device=device)
    counts = mask.sum(1)
    ids = torch.full((len(prompts), int((starts + counts).max())), pad, device=device)
    for row, prompt in enumerate(prompts):
        start, count = len(prompt), int(counts[row])
        ids[row, :start] = torch.tensor(prompt, device=device)
        ids[row, start : start + count] = responses[row, :count]
    rows, offsets = mask.nonzero(as_tuple=True)
    return Batch(ids, rows, starts[rows] - 1 + offsets, responses[mask], mask)


@dataclass(frozen=True)
class Scores:
    """Per response token, [rows, response length], float32, 0 in the padding."""

    logprobs: Tensor
    values: Tensor | None
    entropy: Tensor | None


def _states(model: "PreTrainedModel", batch: Batch, *, share: bool) -> Tensor:
    # [tokens, width], from which response tokens are predicted; to be called under autocast.
    wanted = batch.rows, batch.columns
    if share:
        return states_at(model, *batch.texts(), wanted, {"use_cache": False})
    hidden: Tensor = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return hidden[wanted]


class TokenScorer:
    """A one-label sequence classifier read at any position. The trunk runs under autocast, the score in float32."""

    def __init__(self, model: "PreTrainedModel", precision: str, *, share: bool = False) -> None:
        """`share`: compute what rows of a batch begin with once (see `methods._shared_prompt`).

        Raises:
            UserError: the model has no such score.
        """
        head = getattr(model, "score", None)
        if not isinstance(head, nn.Linear) or head.out_features != 1:
            raise UserError(
                f"a reward model needs a linear layer `score` of one label; {type(model).__name__} has none"
            )
        self.model, self.head, self.precision, self.share = model, head, precision, share

    @classmethod
    def frozen(cls, model: "PreTrainedModel", precision: str) -> "TokenScorer":
        """A reward model that only scores; it is changed."""
        model.eval().requires_grad_(False)
        scorer = cls(model, precision, share=can_share(model))
        if precision == "bfloat16":
            cast_linears(model.base_model)
        return scorer

    def at(self, batch: Batch) -> Tensor:
        """The scores before each response token: [tokens], float32."""
        with autocast(batch.ids.device, self.precision):
            hidden = _states(self.model, batch, share=self.share)
        return self._scored(hidden)

    def last(self, sequences: Sequence[Sequence[int]], prompts: Sequence[int], pad: int) -> Tensor:
        """The score of whole sequences of token ids, of which so many are the prompt's: [sequences], float32."""
        device = self.head.weight.device
        rows = torch.arange(len(sequences), device=device)
        ends = torch.tensor([len(s) - 1 for s in sequences], device=device)
        with autocast(device, self.precision):
            if self.share:
                hidden = states_at(self.model, sequences, prompts, (rows, ends), {"use_cache": False})
            else:
                ids = torch.full((len(sequences), int(ends.max()) + 1), pad, device=device)
                for row, sequence in enumerate(sequences):
                    ids[row, : len(sequence)] = torch.tensor(sequence, device=device)
                hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[rows, ends]
        return self._scored(hidden)

    def _scored(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), self.head.weight.float())[:, 0]


class Policy:
    """A causal model seen as trunk and output layer, with an optional value head on the trunk's last hidden state."""

    def __init__(
        self,
        model: "PreTrainedModel",
        precision: str,
        temperature: float,
        value_head: nn.Linear | None = None,
        value_gradient: float = 1.0,
        *,
        share: bool = False,
    ) -> None:
        """`share`: compute what rows of a batch begin with once (see `methods._shared_prompt`)."""
        self.model, self.precision, self.temperature = model, precision, temperature
        self.share = share
        self.value_head, self.value_gradient = value_head, value_gradient

    def evaluate(self, batch: Batch, *, entropy: Literal["none", "figure", "learned"] = "none") -> Scores:
        """Log-probabilities at the sampling temperature, values and, if wanted, entropies: one forward pass.

        Only what is `learned` has a gradient: that of a figure would keep probabilities of every token in memory.
        """
        with autocast(batch.ids.device, self.precision):
            states = _states(self.model, batch, share=self.share)
            logits = self.model.get_output_embeddings()(states)
        log_softmax = torch.log_softmax(logits.float() / self.temperature, dim=-1)
        logprobs = -nn.functional.nll_loss(log_softmax, batch.targets, reduction="none")
        values = None
        if self.value_head is not None:
            share = self.value_gradient
            seen = states.float()
            seen = seen if share == 1.0 else share * seen + (1.0 - share) * seen.detach()
            values = batch.spread(self.value_head(seen)[:, 0])
        if entropy == "none":
            return Scores(batch.spread(logprobs), values, None)
        taken = log_softmax if entropy == "learned" else log_softmax.detach()
        return Scores(batch.spread(logprobs), values, batch.spread(-(taken.exp() * taken).sum(-1)))


def cast_linears(module: nn.Module) -> None:
    """Replace the weights of linear layers by frozen bfloat16 copies; embeddings and norms stay float32.

    That is what autocast computes with. A weight tied to the embedding becomes a copy of its own.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            for name, parameter in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False))


class Sampler:
    """What generates: the policy itself, or (bfloat16, adapters) a copy with ready-cast, merged weights.

    Casting 135M weights at every decoding step would cost more than the step itself.
    """

    def __init__(self, model: "PreTrainedModel", precision: str, *, separate: bool) -> None:
        self.source, self.precision = model, precision
        self.model = model
        if separate:
            self.model = copy.deepcopy(model).requires_grad_(False)
            if precision == "bfloat16":
                cast_linears(self.model)

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the policy's present weights, adapters merged."""
        if self.model is self.source:
            return
        for name, module in self.model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if not own:
                continue
            found = merged_weights(self.source.get_submodule(name))
            for key, parameter in own.items():
                parameter.copy_(found[key])

    def context(self) -> "contextlib.AbstractContextManager[object]":
        """To sample in."""
        return autocast(self.model.device, self.precision)


@torch.no_grad()
def check_model(model: "PreTrainedModel") -> None:
    """Refuse what the sampler and the sliced output layer would get wrong.

    Raises:
        UserError: other attention than full, or logits that are not the output layer of the last hidden state.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise UserError(f"answers are sampled with a full-attention cache; this model's layers are {sorted(kinds)}")
    ids = torch.arange(8, device=model.device)[None] % config.vocab_size
    sliced = model.get_output_embeddings()(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(sliced, model(input_ids=ids, use_cache=False).logits, atol=1e-4, rtol=1e-4):
        raise UserError(
            "sampling needs logits that are a linear layer of the last hidden state; "
            f"{type(model).__name__} changes them further"
        )


def closing_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """What the chat template writes after an answer's end token: a reward model was trained on texts that have it."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    _, found, closing = text.rpartition(tokenizer.eos_token)
    ids: list[int] = tokenizer(closing, add_special_tokens=False)["input_ids"] if found and closing else []
    return ids
