"""A soft prompt (prompt tuning, Lester et al. 2021, arXiv:2104.08691) in front of everything that a model reads.

What a causal model makes of its first vectors does not depend on what follows. So their keys and values are computed
once, and every attention layer attends to them beside the keys and values of its input: no caller, cache, mask or
position knows of them. Rotary positions count differences only, so the vectors stand at the positions below 0.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["attach_soft_prompt", "check_soft_prompt", "soft_prompt"]

_NAME = "harness_soft_prompt"
"""Under this name, and the kind, transformers knows the attention implementations."""
_KINDS = ("sdpa", "eager")

_KEYS, _VALUES, _LAYERS = "soft_prompt_keys", "soft_prompt_values", "soft_prompt_layers"
_TRIAL = 12
_TOLERANCE = 1e-3


def check_soft_prompt(model: "PreTrainedModel") -> None:
    """Refuse a model of which a soft prompt could not be made part exactly.

    Raises:
        UserError: it has other attention than full, or other positions than rotary ones, or an attention of its own.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    rope = getattr(config, "rope_parameters", None)
    reason = None
    if kinds != {"full_attention"}:
        reason = f"it has layers of kind {', '.join(sorted(kinds - {'full_attention'}))}"
    elif not getattr(model, "_supports_attention_backend", False):
        reason = "its attention cannot be replaced"
    elif not isinstance(rope, dict) or rope.get("rope_type", "default") in {"dynamic", "longrope"}:
        reason = "its positions are not rotary, or depend on the length of the input"
    elif len(_layers(model)) != config.num_hidden_layers:
        reason = "its attention layers are not known"
    if reason:
        raise UserError(
            f"adapter prompt_tuning: vectors before the input of {type(model).__name__} cannot be measured exactly, "
            f"since {reason}; use another adapter"
        )


def _layers(model: "PreTrainedModel") -> "list[torch.nn.Module]":
    """The attention modules, by their layers."""
    found = [m for m in model.modules() if hasattr(m, "layer_idx") and hasattr(m, "is_causal")]
    return sorted(found, key=lambda m: int(m.layer_idx))


def attach_soft_prompt(model: "PreTrainedModel", adapter: Path) -> None:
    """Let the model attend to a trained soft prompt (a folder as peft writes it), in the type of its weights.

    The model's window becomes as much smaller as the prompt is long.

    Raises:
        UserError: see `check_soft_prompt`; the file holds no prompt of this model's width; the model's attention is
            neither sdpa nor eager.
    """
    import safetensors.torch
    import torch
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

    check_soft_prompt(model)
    config = model.config.get_text_config()
    kind = model.config._attn_implementation
    if kind not in _KINDS:
        raise UserError(
            f"{adapter}: a soft prompt is attended to by sdpa or eager attention, not by {kind}: leave the target's "
            "attention out, or leave this model to another target"
        )
    prompt = safetensors.torch.load_file(adapter / "adapter_model.safetensors").get("prompt_embeddings")
    width = model.get_input_embeddings().weight.shape[1]
    if prompt is None or prompt.dim() != 2 or prompt.shape[1] != width:
        raise UserError(f"{adapter} holds no soft prompt for a model of width {width}; train it again")
    vectors = prompt.to(model.device, model.dtype)
    layers = _layers(model)
    for layer, (keys, values) in zip(layers, _first_keys(model, vectors), strict=True):
        layer.register_buffer(_KEYS, keys, persistent=False)
        layer.register_buffer(_VALUES, values, persistent=False)
    name = f"{_NAME}_{kind}"
    AttentionInterface.register(name, _sdpa if kind == "sdpa" else _eager)
    AttentionMaskInterface.register(name, sdpa_mask if kind == "sdpa" else eager_mask)
    ids = (torch.arange(_TRIAL, device=model.device) * 7 + 3)[None] % config.vocab_size
    with torch.inference_mode():
        before = torch.cat([vectors, model.get_input_embeddings()(ids[0])])[None]
        right = model(inputs_embeds=before, use_cache=False).logits[0, -_TRIAL:].float().log_softmax(-1)
        model.set_attn_implementation(name)
        found = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    worst = float((found - right).abs().max())
    if model.dtype == torch.float32 and not worst <= _TOLERANCE:
        raise UserError(
            f"{adapter}: a trial of the soft prompt differs from its plain forward pass by {worst:.2g} nats, so "
            f"{type(model).__name__} cannot be measured with it; use another adapter"
        )
    setattr(model, _LAYERS, layers)
    config.max_position_embeddings -= len(prompt)


def soft_prompt(model: "PreTrainedModel") -> "list[tuple[Tensor, Tensor]] | None":
    """Keys and values [1, KV heads, tokens, width] of the soft prompt, layer by layer; None where there is none."""
    layers = getattr(model, _LAYERS, None)
    return None if layers is None else [(getattr(layer, _KEYS), getattr(layer, _VALUES)) for layer in layers]


def _first_keys(model: "PreTrainedModel", vectors: "Tensor") -> "list[tuple[Tensor, Tensor]]":
    """Keys and values [1, KV heads, tokens, width] of the vectors, layer by layer."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    positions = torch.arange(-len(vectors), 0, device=vectors.device)[None]
    with torch.no_grad():
        model.base_model(inputs_embeds=vectors[None], position_ids=positions, past_key_values=cache, use_cache=True)
    return [(layer.keys.clone(), layer.values.clone()) for layer in cache.layers]


def _sdpa(
    module: Any,  # noqa: ANN401  # transformers is untyped
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: "Tensor | None",
    **kwargs: Any,  # noqa: ANN401  # the interface's own keyword arguments, handed on untouched
) -> "tuple[Tensor, Tensor | None]":
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    key, value, mask = _with_prompt(module, query, key, value, attention_mask)
    kwargs["is_causal"] = False
    found: tuple[Tensor, Tensor | None] = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    return found


def _eager(
    module: Any,  # noqa: ANN401  # transformers is untyped
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: "Tensor | None",
    **kwargs: Any,  # noqa: ANN401  # the interface's own keyword arguments, handed on untouched
) -> "tuple[Tensor, Tensor | None]":
    # Every architecture writes its own, in the module of its layers.
    plain = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    key, value, mask = _with_prompt(module, query, key, value, attention_mask)
    found: tuple[Tensor, Tensor | None] = plain(module, query, key, value, mask, **kwargs)
    return found


def _with_prompt(
    module: Any,  # noqa: ANN401  # transformers is untyped
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    mask: "Tensor | None",
) -> "tuple[Tensor, Tensor, Tensor | None]":
    """Keys, values and mask, the prompt's before them."""
    import torch

    first_keys, first_values = getattr(module, _KEYS), getattr(module, _VALUES)
    size, length, seen = first_keys.shape[2], query.shape[2], key.shape[2]
    key = torch.cat([first_keys.to(key.dtype).expand(len(key), -1, -1, -1), key], 2)
    value = torch.cat([first_values.to(value.dtype).expand(len(value), -1, -1, -1), value], 2)
    if mask is not None:
        # Whether true or 0, it means that a place is seen.
        mask = torch.cat([mask.new_full((*mask.shape[:3], size), mask.dtype == torch.bool), mask], 3)
    elif length > 1:
        # sdpa is given none where a causal one would do.
        whole = torch.ones(length, size + seen, dtype=torch.bool, device=query.device)
        mask = whole.tril(size + seen - length)[None, None]
    return key, value, mask
