"""Forward passes over a token tree: packed, within a token budget, logits only where they are asked for."""

import contextlib
import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import Tensor

from harness._packed import PackedLinear
from harness._soft_prompt import soft_prompt
from harness.measure.scoring._attention import (
    NAME,
    AttentionPlan,
    KeyValues,
    UnsupportedAttentionError,
    tree_attention,
)
from harness.measure.scoring._logits import logits_buffer, written_into
from harness.measure.scoring._plan import TreePlan
from harness.measure.scoring._products import fast_products
from harness.measure.scoring._tree import TokenTree, build_tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Budget", "Pass", "forward", "kv_bytes", "passes", "run_passes", "unsupported"]

log = logging.getLogger(__name__)


_LEAST_TOKENS = 64


@dataclass(frozen=True)
class Budget:
    """What one forward pass and one decoding batch may hold. `cache_bytes` bounds the keys and values of a batch."""

    tokens: int
    logit_bytes: int
    cache_bytes: int

    @staticmethod
    def of(device: torch.device, tokens: int | None = None) -> "Budget":
        """Defaults for a device: a larger pass gains nothing on a CPU, and a GPU has room for it."""
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            return Budget(tokens or 8192, 1 << 30, free // 3)
        return Budget(tokens or 2048, 1 << 28, min(1 << 30, psutil.virtual_memory().available // 4))

    def halved(self) -> "Budget | None":
        """For a device that had no room for this one; None where less would not help."""
        if self.tokens < 2 * _LEAST_TOKENS:
            return None
        return Budget(self.tokens // 2, self.logit_bytes // 2, self.cache_bytes // 2)


@dataclass(frozen=True)
class Pass:
    """Segments computed together, in the order of the tree; rows are (segment, offset)."""

    segments: list[int]
    rows: list[tuple[int, int]]


def unsupported(model: "PreTrainedModel") -> str | None:
    """Why this model cannot be run over a tree of segments, or None: by its configuration, then by a trial."""
    if isinstance(model, torch._dynamo.OptimizedModule) or hasattr(model.forward, "_torchdynamo_orig_callable"):
        # Attention that reads a plan would be traced again for every pass.
        return "it is compiled"
    if backend := getattr(model, "runtime_backend", None):
        return f"{backend} runs it, outside torch"
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"it has layers of kind {', '.join(sorted(kinds - {'full_attention'}))}"
    if not {"position_ids", "logits_to_keep"} <= set(_forward_arguments(model)):
        return "its forward pass takes no position_ids or no logits_to_keep"
    rope = getattr(config, "rope_parameters", None) or {}
    if isinstance(rope, Mapping) and rope.get("rope_type", "default") in {"dynamic", "longrope"}:
        return "its rotary embedding depends on the length of the input"
    return _trial(model)


def _forward_arguments(model: "PreTrainedModel") -> list[str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return list(inspect.signature(inner.forward).parameters)


def _trial(model: "PreTrainedModel") -> str | None:
    # A model whose positions, masks or attention are not what the interface promises shows it here.
    vocabulary = model.config.get_text_config().vocab_size
    ids = [(7 * i * i + 3 * i) % vocabulary for i in range(40)]
    sequences = [ids[:36], [*ids[:20], *ids[25:32]], [*ids[:20], *ids[31:33]]]
    tree = build_tree(sequences, min_saved=1)
    wanted = {tree.locate(i, [len(s) - 1])[0]: i for i, s in enumerate(sequences)}
    found: dict[int, Tensor] = {}
    try:
        budget = Budget(tokens=24, logit_bytes=1 << 30, cache_bytes=1 << 30)
        for rows, logits in run_passes(model, tree, list(wanted), budget):
            found.update({wanted[r]: x.clone() for r, x in zip(rows, logits, strict=True)})
    except UnsupportedAttentionError as error:
        return f"it uses {error}"
    worst = 0.0
    for i, sequence in enumerate(sequences):
        with torch.inference_mode():
            right = model(torch.tensor([sequence], device=model.device), use_cache=False).logits[0, -1].float()
        difference = (torch.log_softmax(found[i].float(), -1) - torch.log_softmax(right, -1)).abs()
        # In 16 bits the worst of 50,000 tokens differs by half a nat between two right ways of computing it, and a
        # threshold there would send some models of a comparison down another path: the mean tells a wrong mask from it.
        worst = max(worst, float(difference.max() if model.dtype == torch.float32 else difference.mean()))
    limit = 1e-3 if model.dtype == torch.float32 else 0.5
    if worst <= limit:
        return None
    if any(isinstance(m, PackedLinear) and m.activations for m in model.modules()):
        # Sums in another order move an input to the next step, and the layers above make more of it.
        return f"it rounds its activations, which magnifies the last bit of a sum to {worst:.2g} nats"
    return f"a trial differs from its plain forward pass by {worst:.2g} nats"


def kv_bytes(model: "PreTrainedModel") -> int:
    """Bytes of keys and values per token, over all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * torch.finfo(model.dtype).bits // 8)


def passes(
    tree: TokenTree,
    rows: Sequence[tuple[int, int]],
    tokens: int,
    row_limit: int,
    *,
    only: Iterable[int] | None = None,
) -> Iterator[Pass]:
    """Cut the tree, or `only` these segments in ascending order, into passes of at most `tokens` tokens and `row_limit`
    logit rows."""
    per_segment: dict[int, list[tuple[int, int]]] = {}
    for row in sorted(set(rows)):
        per_segment.setdefault(row[0], []).append(row)
    current: list[int] = []
    size = count = 0

    def close() -> Pass:
        return Pass(current, [r for s in current for r in per_segment.get(s, [])])

    for s in range(len(tree.segments)) if only is None else only:
        segment = tree.segments[s]
        own = len(per_segment.get(s, []))
        if current and (size + len(segment.tokens) > tokens or count + own > row_limit):
            yield close()
            current, size, count = [], 0, 0
        current.append(s)
        size += len(segment.tokens)
        count += own
    if current:
        yield close()


@contextlib.contextmanager
def _replaced_attention(model: "PreTrainedModel") -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}.values()
    before = [c._attn_implementation for c in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def forward(
    model: "PreTrainedModel",
    plan: AttentionPlan,
    tokens: Tensor,
    positions: Tensor,
    rows: Tensor,
    buffer: Tensor | None = None,
) -> Tensor:
    """One packed pass: tokens and positions [N] → logits [len(rows), vocabulary] at these packed places."""
    arguments: dict[str, Any] = {"use_cache": False, "logits_to_keep": rows}
    with (
        torch.inference_mode(),
        _replaced_attention(model),
        # The head before the other matrices: what has been replaced stays as it is.
        written_into(model, buffer),
        fast_products(model),
        plan.active(),
    ):
        logits: Tensor = model(input_ids=tokens[None], position_ids=positions[None], **arguments).logits[0]
    layers = model.config.get_text_config().num_hidden_layers
    if plan.layer != layers:
        raise UnsupportedAttentionError(f"attention in {plan.layer} of {layers} layers")
    return logits


def run_passes(
    model: "PreTrainedModel",
    tree: TokenTree,
    rows: Sequence[tuple[int, int]],
    budget: Budget,
    *,
    keep: dict[int, KeyValues] | None = None,
    only: Iterable[int] | None = None,
) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
    """Compute the tree; yields the rows of each pass with their logits [rows, vocabulary], in the model's type.

    The logits hold until the next pass, which may write its own in their place.
    Keys and values of segments with descendants in later passes are held until the last of these. Where `keep` is
    given, every segment's stay in it, and the caller drops them; then `only` some segments may be computed, whose
    ancestors are among them or in `keep`.
    """
    item = torch.finfo(model.dtype).bits // 8
    vocabulary = model.config.get_text_config().vocab_size
    limit = max(1, budget.logit_bytes // (vocabulary * item))
    plan_of = list(passes(tree, rows, budget.tokens, limit, only=only))
    last_use: dict[int, int] = {}
    for index, one in enumerate(plan_of):
        for s in one.segments:
            for ancestor in tree.path(s):
                last_use[ancestor] = index
    stored: dict[int, KeyValues] = {} if keep is None else keep
    buffer = logits_buffer(model, max((len(one.rows) for one in plan_of), default=0))
    for index, one in enumerate(plan_of):
        plan, starts = _tree_plan(model, tree, one, stored)
        plan.keep = {
            s: (starts[s], starts[s] + len(tree.segments[s].tokens))
            for s in one.segments
            if keep is not None or last_use[s] > index
        }
        tokens = torch.cat([torch.from_numpy(tree.segments[s].tokens) for s in one.segments])
        positions = torch.cat([torch.arange(tree.segments[s].start, tree.segments[s].end) for s in one.segments])
        places = torch.tensor([starts[s] + offset for s, offset in one.rows], dtype=torch.long)
        # Without a row the model would be asked for no logits at all, which not every model allows.
        asked = places if len(places) else torch.zeros(1, dtype=torch.long)
        at = model.device
        logits = forward(model, plan, tokens.to(at), positions.to(at), asked.to(at), buffer)
        stored.update(plan.kept)
        if keep is None:
            for s in [s for s in stored if last_use[s] <= index]:
                del stored[s]
        yield one.rows, logits[: len(places)]


def _tree_plan(
    model: "PreTrainedModel", tree: TokenTree, one: Pass, stored: Mapping[int, KeyValues]
) -> tuple[TreePlan, dict[int, int]]:
    starts: dict[int, int] = {}
    at = 0
    for s in one.segments:
        starts[s] = at
        at += len(tree.segments[s].tokens)
    plan = TreePlan([len(tree.segments[s].tokens) for s in one.segments], model.device, model.dtype)
    # In depth-first order the descendants of a segment are neighbours.
    below: dict[int, list[int]] = {}
    for s in one.segments:
        for ancestor in tree.path(tree.segments[s].parent):
            below.setdefault(ancestor, [starts[s], 0])[1] = starts[s] + len(tree.segments[s].tokens)
    ranges: dict[tuple[int, int], list[tuple[int, int] | KeyValues]] = {}
    for ancestor, (low, high) in below.items():
        length = len(tree.segments[ancestor].tokens)
        part = (starts[ancestor], starts[ancestor] + length) if ancestor in starts else stored[ancestor]
        ranges.setdefault((low, high), []).append(part)
    for (low, high), parts in ranges.items():
        plan.share(low, high, parts)
    if (before := soft_prompt(model)) is not None:
        plan.share(0, at, [before])
    plan.gather()
    return plan, starts
