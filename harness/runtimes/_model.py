"""An exported model in transformers' clothes, so that whatever scores or samples from a model takes it as it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from harness.errors import UserError
from harness.method import LoadedModel
from harness.models import remote_code_allowed
from harness.runtimes._protocol import Cache as Past

if TYPE_CHECKING:
    from harness.runtimes._protocol import Runtime

__all__ = ["RuntimeModel", "wrap"]


class _RuntimeCache(Cache):  # type: ignore[misc]  # transformers' types are not read
    """A runtime's cache between two forward passes; transformers asks for its length and its rows."""

    is_compileable = False

    def __init__(self, runtime: "Runtime", past: Past, length: int = 0) -> None:
        super().__init__(layers=[])
        self.runtime, self.past, self.length = runtime, past, length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens held, padding included; the same for every layer."""
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows of the beams [B] that go on."""
        self.past = self.runtime.select(self.past, beam_idx.numpy())

    def batch_select_indices(self, indices: Tensor) -> None:
        """The same for any rows."""
        self.reorder_cache(indices)


class RuntimeModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # transformers' types are not read
    """A causal language model without parameters: its forward pass is that of an exported model, on the CPU.

    Args:
        config: that of the model which was exported.
        runtime: the loaded export.
        backend: the runtime's name in targets and notes.
    """

    _supports_attention_backend = False

    def __init__(self, config: Any, runtime: "Runtime", backend: str) -> None:  # noqa: ANN401  # transformers' configuration
        super().__init__(config)
        self.runtime, self.runtime_backend = runtime, backend

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # The first forward pass makes the cache: torch tensors would be copied into and out of the runtime each step.
        return False

    @property
    def device(self) -> torch.device:
        """Where tokens are expected."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the logits."""
        return torch.float32

    def tie_weights(self, *args: object, **kwargs: object) -> None:
        """Nothing to tie: lm-eval asks for it."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: _RuntimeCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """Tokens [B, T] behind P past ones → logits [B, K, vocabulary] in float32, and the cache.

        Args:
            input_ids: tokens [B, T].
            attention_mask: [B, P + T], 0 for padding, on whichever side.
            position_ids: [B, T]; counted over what the mask leaves unless given.
            past_key_values: what an earlier forward pass of this model returned.
            use_cache: false returns no cache.
            logits_to_keep: the last so many places of each row (0: all), or places among the T [K].
            kwargs: arguments of transformers that change no number (`return_dict`, …).
        """
        if past_key_values is not None and not isinstance(past_key_values, _RuntimeCache):
            kind = type(past_key_values).__name__
            raise ValueError(f"past_key_values: expected what a forward pass of this model returned, got {kind}")
        batch, length = input_ids.shape
        past = past_key_values.length if past_key_values is not None else 0
        held = past_key_values.past if past_key_values is not None else self.runtime.empty(batch)
        if attention_mask is None:
            attention_mask = torch.ones(batch, past + length, dtype=torch.long)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        if isinstance(logits_to_keep, int):
            rows = torch.arange(length - logits_to_keep if logits_to_keep else 0, length)
        else:
            rows = logits_to_keep
        logits, present = self.runtime.forward(
            input_ids.numpy(),
            attention_mask.long().numpy(),
            position_ids.expand(batch, -1).contiguous().numpy(),
            rows.numpy(),
            held,
        )
        cache = None if use_cache is False else _RuntimeCache(self.runtime, present, past + length)
        return CausalLMOutputWithPast(logits=torch.from_numpy(logits), past_key_values=cache)


def wrap(runtime: "Runtime", folder: Path, backend: str) -> LoadedModel:
    """The exported model of a folder with its tokenizer, which pads on the left as `harness.models.load_model`'s does.

    Raises:
        UserError: its configuration or tokenizer cannot be read.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=remote_code_allowed())
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote_code_allowed())
        model = RuntimeModel(config, runtime, backend)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot load the exported model {folder}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    model.config.pad_token_id = tokenizer.pad_token_id
    return LoadedModel(model=model.eval(), tokenizer=tokenizer, folder=folder)
