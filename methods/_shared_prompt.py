"""Training rows that begin alike, computed as one tree of tokens: what they share is computed once, exactly.

A pair's chosen and rejected answers have one prompt, and all prompts of a batch often begin with one system message.
Under causal attention the states of shared tokens are the same in every row. So the whole batch is laid out without
repetition or padding: first what all rows begin with, then for each group of rows their common part and, behind it,
what each row has for itself. Every layer but attention sees one long row. Attention sees the groups side by side, each
behind the common beginning, with a mask that hides one answer from the other. Gradients add up over what is shared.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from methods._head import has_plain_head
from methods._ppo_attention import PLAIN_LIMIT, plain_attention, quick_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["NAME", "Tree", "can_share", "grow", "shared_attention", "sharing", "states_at", "states_before"]

NAME = "harness_shared_prompt"
"""The name under which transformers knows this attention implementation."""

_CLOSE = 1e-3
"""By what a trial may differ from the plain forward pass, in fp32: nats, or scores. A wrong mask is off by far more."""


@dataclass(frozen=True)
class Tree:
    """A batch of R rows of at most L tokens as N tokens: S that all begin with, then G groups of at most T."""

    ids: Tensor
    """[1, N]."""
    positions: Tensor
    """[1, N]: of each token in its row."""
    places: Tensor
    """[R, L]: where the rows' tokens are among the N; padding is at 0."""
    root: int
    """S, which may be 0."""
    hidden: Tensor
    """[G, T, S + T], bool: what each token of a group may not attend to, the first S and then the group's own."""
    slots: Tensor
    """[N - S]: where among G * T the tokens behind the first S are."""


def grow(rows: Sequence[Sequence[int]], prompts: Sequence[int], device: torch.device) -> Tree:
    """The tree of these rows; those with the same prompt are a group.

    Args:
        rows: their tokens.
        prompts: how many of them are the prompt's.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (row, size) in enumerate(zip(rows, prompts, strict=True)):
        groups.setdefault(tuple(row[:size]), []).append(number)
    root = _common(list(groups)) if len(groups) > 1 else 0
    ids = list(next(iter(groups))[:root])
    positions = list(range(root))
    places = [[0] * max(map(len, rows)) for _ in rows]
    spans: list[tuple[int, int, list[tuple[int, int]]]] = []
    for members in groups.values():
        start = len(ids)
        shared = max(root, _common([rows[m] for m in members]))
        ids += rows[members[0]][root:shared]
        positions += range(root, shared)
        tails = []
        for m in members:
            tail = len(ids)
            ids += rows[m][shared:]
            positions += range(shared, len(rows[m]))
            tails.append((tail, len(ids)))
            own = [*range(root), *range(start, start + shared - root), *range(tail, len(ids))]
            places[m][: len(own)] = own
        spans.append((start, len(ids), tails))
    return _laid_out(ids, positions, places, root, spans, device)


def _laid_out(
    ids: list[int],
    positions: list[int],
    places: list[list[int]],
    root: int,
    spans: list[tuple[int, int, list[tuple[int, int]]]],
    device: torch.device,
) -> Tree:
    # `spans`: each group's first and last token, and those of the parts that its rows have for themselves.
    longest = max(end - start for start, end, _ in spans)
    hidden = torch.ones(longest, root + longest, dtype=torch.bool).triu(root + 1).repeat(len(spans), 1, 1)
    slots = []
    for g, (start, end, tails) in enumerate(spans):
        slots.append(torch.arange(g * longest, g * longest + end - start))
        for low, high in tails:
            # The tails before its own; those behind it are ahead, and hidden already.
            hidden[g, low - start : high - start, root + tails[0][0] - start : root + low - start] = True
    return Tree(
        ids=torch.tensor([ids], device=device),
        positions=torch.tensor([positions], device=device),
        places=torch.tensor(places, device=device),
        root=root,
        hidden=hidden.to(device),
        slots=torch.cat(slots).to(device),
    )


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them begin with."""
    # All others lie between these two.
    low, high = min(map(tuple, rows)), max(map(tuple, rows))
    size = min(len(low), len(high))
    return next((i for i in range(size) if low[i] != high[i]), size)


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """[B, H, T, D], [B, K, M, D], [B, K, M, D], [B, T, M] → [B, T, H, D]; without `hidden` causal, M = T."""
    heads, length = query.shape[1:3]
    kv_heads, size = key.shape[1:3]
    if query.device.type != "cpu" or size > PLAIN_LIMIT:
        mask = None if hidden is None else ~hidden[:, None]
        found = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=hidden is None, scale=scale, enable_gqa=heads != kv_heads
        )
        return found.transpose(1, 2)
    if hidden is None:
        hidden = torch.ones(1, length, size, dtype=torch.bool).triu(1)
    return plain_attention(query, key, value, hidden, scale)


_HARMLESS = {"position_ids", "output_attentions", "use_cache", "cache_position", "return_dict", "is_causal"}


class _UnsupportedError(Exception):
    pass


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree: Tree | None = None,
    **kwargs: Any,  # noqa: ANN401  # the interface's own keyword arguments
) -> tuple[Tensor, None]:
    odd = {k for k, v in kwargs.items() if k not in _HARMLESS and v is not None and v is not False}
    if odd or dropout or kwargs.get("is_causal", getattr(module, "is_causal", True)) is False:
        raise _UnsupportedError(f"attention with {sorted(odd)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if tree is None:
        # Rows padded on the right, such as those behind virtual tokens: no token that counts can see padding.
        return _attend(query, key, value, None, scale), None
    root = tree.root
    own_query, own_key, own_value = (_grouped(x, tree) for x in (query, key, value))
    groups = _attend(own_query, _behind(key, own_key, root), _behind(value, own_value, root), tree.hidden, scale)
    found = groups.flatten(0, 1).index_select(0, tree.slots)[None]
    if root:
        first = _attend(query[:, :, :root], key[:, :, :root], value[:, :, :root], None, scale)
        found = torch.cat([first, found], 1)
    return found, None


def _grouped(states: Tensor, tree: Tree) -> Tensor:
    """[1, H, N, D] → [G, H, T, D], zeros where a group is shorter."""
    _, heads, _, width = states.shape
    groups, longest = tree.hidden.shape[:2]
    empty = states.new_zeros(heads, groups * longest, width)
    filled = empty.index_copy(1, tree.slots, states[0, :, tree.root :])
    return filled.view(heads, groups, longest, width).transpose(0, 1)


def _behind(states: Tensor, own: Tensor, root: int) -> Tensor:
    """[1, H, N, D], [G, H, T, D] → [G, H, S + T, D]."""
    return torch.cat([states[:, :, :root].expand(len(own), -1, -1, -1), own], 2)


def states_before(
    wanted: Tensor,
    model: "PreTrainedModel",
    input_ids: Tensor,
    attention_mask: Tensor,
    kwargs: Mapping[str, object],
) -> Tensor:
    """Hidden states [P, width] of rows [R, L] padded on the right, within `shared_attention`.

    Args:
        wanted: [R, L - 1], the P positions whose following tokens are to be predicted: the answers' and no others.
        kwargs: what the model's trunk takes besides.
    """
    sizes, prompts = attention_mask.sum(1).tolist(), (wanted.int().argmax(1) + 1).tolist()
    rows = [ids[:size] for ids, size in zip(input_ids.tolist(), sizes, strict=True)]
    return states_at(model, rows, prompts, wanted.nonzero(as_tuple=True), kwargs)


def states_at(
    model: "PreTrainedModel",
    rows: Sequence[Sequence[int]],
    prompts: Sequence[int],
    wanted: tuple[Tensor, ...],
    kwargs: Mapping[str, object],
) -> Tensor:
    """Hidden states [P, width] of a model that `can_share`, whatever it attends by elsewhere.

    Args:
        rows: their tokens.
        prompts: how many of them are the prompt's.
        wanted: [P], [P]: the rows and columns of the states.
        kwargs: what the model's trunk takes besides.
    """
    tree = grow(rows, prompts, model.device)
    with sharing(model):
        states = model.base_model(**kwargs, input_ids=tree.ids, position_ids=tree.positions, tree=tree)
    found: Tensor = states.last_hidden_state[0][tree.places[wanted]]
    return found


@contextlib.contextmanager
def shared_attention(model: "PreTrainedModel", *, wanted: bool = True) -> Iterator[bool]:
    """Within the block the completion head computes what rows share once, where the architecture allows it.

    That is said by its configuration, and then by a trial. Where it does not, or is not wanted, every row is computed.

    Yields:
        Whether what is shared is computed once.
    """
    from trl.trainer.utils import disable_dropout_in_model

    # As the trainers do, and no attention with dropout could be shared.
    disable_dropout_in_model(model)
    if not (wanted and can_share(model)):
        with quick_attention(model):
            yield False
        return
    with sharing(model):
        yield True


def can_share(model: "PreTrainedModel") -> bool:
    """Whether trees are exact for this model, by its configuration and a trial; to be asked outside other attention.

    The model is a causal one, or scores texts by a linear layer `score`.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, lambda *_args, **_kwargs: None)
    return _may_share(model) and _trial(model)


@contextlib.contextmanager
def sharing(*models: "PreTrainedModel") -> Iterator[None]:
    """Within the block models that `can_share` take trees, and nothing else; then they attend as before.

    Layers that are recomputed run in the backward pass, which must then lie in the block, too.
    """
    before = [model.config._attn_implementation for model in models]
    for model in models:
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        for model, name in zip(models, before, strict=True):
            model.set_attn_implementation(name)


def _may_share(model: "PreTrainedModel") -> bool:
    if not has_plain_head(model) or not getattr(model, "_supports_attention_backend", False):
        return False
    if model.config._attn_implementation != "sdpa":
        return False
    if model.get_output_embeddings() is None and not isinstance(getattr(model, "score", None), torch.nn.Linear):
        return False
    if set(getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    taken = inspect.signature(model.base_model.forward).parameters
    return "position_ids" in taken and any(p.kind is p.VAR_KEYWORD for p in taken.values())


@torch.no_grad()
def _trial(model: "PreTrainedModel") -> bool:
    # Positions, windows or masks that are not what the configuration says show here.
    vocabulary = model.config.get_text_config().vocab_size
    ids = [(7 * i * i + 3 * i) % vocabulary for i in range(40)]
    rows = [ids[:20], [*ids[:12], *ids[20:24]], [*ids[:6], *ids[24:40]], [*ids[:6], *ids[24:30], *ids[6:9]]]
    tree = grow(rows, [12, 12, 12, 12], model.device)
    training = model.training
    model.train()
    try:
        right = [model.base_model(input_ids=tree.ids.new_tensor([r]), use_cache=False).last_hidden_state for r in rows]
        with sharing(model):
            states = model.base_model(input_ids=tree.ids, position_ids=tree.positions, use_cache=False, tree=tree)
    except _UnsupportedError:
        return False
    finally:
        model.train(training)
    found = _said(model, states.last_hidden_state[0])
    return all(
        bool((found[at[: len(row)]] - _said(model, by_itself[0])).abs().max() <= _CLOSE)
        for row, at, by_itself in zip(rows, tree.places, right, strict=True)
    )


def _said(model: Any, states: Tensor) -> Tensor:  # noqa: ANN401  # transformers is untyped here
    # What the model makes of its last hidden states: log-probabilities, or scores.
    head = model.get_output_embeddings()
    found: Tensor = model.score(states).float() if head is None else head(states).float().log_softmax(-1)
    return found
