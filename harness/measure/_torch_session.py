"""A session on torch: eager, or compiled by inductor or TensorRT with a static cache of keys and values."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.errors import UserError
from harness.measure._placement import gpus, input_device, load_host, place
from harness.measure._weights import resident_bytes
from harness.targets import Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from harness.method import LoadedModel

__all__ = ["TorchSession", "compile_settings"]


def compile_settings(target: Target, *, static: bool) -> dict[str, Any]:
    """The arguments of `torch.compile` for a target's backend; `static` says whether the cache has a fixed size."""
    if target.backend == "inductor":
        return {"dynamic": False if static else None}
    return {
        "backend": "torch_tensorrt",
        "dynamic": False,
        "options": {
            # Engines compute in the types of the model, not in one that the builder finds faster.
            "use_explicit_typing": True,
            # Token ids are int64, of which TensorRT knows the lower half.
            "truncate_double": True,
            # A part that cannot be built would otherwise run in torch and be measured as TensorRT.
            "pass_through_build_failures": True,
        },
    }


class TorchSession:
    """A loaded model and how one forward pass of it is called on the target: a `harness.measure._backends.Session`."""

    def __init__(
        self, loaded: "LoadedModel", target: Target, prompt_tokens: int, new_tokens: int, weight_bytes: int = 0
    ) -> None:
        """`loaded` lies where the target wants it; `weight_bytes` is what its weights took when it was loaded."""
        self._loaded, self._target, self._length = loaded, target, prompt_tokens + new_tokens
        self._weight_bytes = weight_bytes
        self._gpus = gpus(target)
        model = loaded.model
        self._extra: dict[str, Any] = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
        )
        self.static = target.backend in ("inductor", "tensorrt") and bool(
            getattr(model, "_can_compile_fullgraph", False)
        )
        if target.backend == "tensorrt" and not self.static:
            raise UserError(
                f"{loaded.folder}: backend tensorrt needs a model that transformers can compile as one graph; "
                f"{type(model).__name__} is none"
            )
        self._cache: Any = None
        self._forward: Callable[..., Any] = model

    @classmethod
    def load(cls, folder: Path, target: Target, prompt_tokens: int, new_tokens: int) -> Self:
        """Load a model folder where the target wants it.

        Raises:
            UserError: it cannot be loaded, or not for this backend.
            InfeasibleError: it does not fit in memory.
        """
        loaded = load_host(folder, target)
        # Before the hooks of accelerate take the weights out of the model.
        weight_bytes = resident_bytes(loaded.model)
        place(loaded.model, target)
        session = cls(loaded, target, prompt_tokens, new_tokens, weight_bytes)
        session._synchronise()
        return session

    @property
    def compiles(self) -> bool:
        """Whether the first request after `prepare` compiles; flex attention does so whatever the backend."""
        return self._target.backend != "eager" or self._target.attention == "flex"

    def ordinary_tokens(self) -> Sequence[int]:
        """The ids that are no special or added tokens and have an embedding."""
        tokenizer, model = self._loaded.tokenizer, self._loaded.model
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        size = min(len(tokenizer), model.get_input_embeddings().weight.shape[0])
        return [i for i in range(size) if i not in special]

    def weight_bytes(self) -> int:
        """Bytes of parameters and buffers, wherever they lie."""
        return self._weight_bytes

    def prepare(self) -> None:
        """Ready for another batch size: nothing compiled for the one before is kept."""
        import torch

        self._cache = None
        if self.compiles:
            # Each batch size is two shapes. Past dynamo's limit of recompilations it would run eagerly and not say so.
            torch.compiler.reset()
        if self._target.backend != "eager":
            self._forward = torch.compile(self._loaded.model, **compile_settings(self._target, static=self.static))
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)

    def begin(self, prompt: "NDArray[np.int64]") -> "Tensor":
        """An empty cache, and the prompt as a tensor [B, T] in the host's memory."""
        import torch
        from transformers import DynamicCache, StaticCache

        model = self._loaded.model
        with torch.inference_mode():
            tokens = torch.from_numpy(prompt)
            if not self.static:
                self._cache = DynamicCache(config=model.config)
            elif self._cache is None:
                self._cache = StaticCache(config=model.config, max_cache_len=self._length)
                # A cache makes its tensors in its first pass. In a compiled one that would be a graph of its own, and
                # the second request, which finds them made, would compile again.
                first = tokens[:, :1].to(input_device(self._target))
                model(input_ids=first, past_key_values=self._cache, use_cache=True, **self._extra)
            if self.static:
                self._cache.reset()
        self._synchronise()
        return tokens

    def step(self, tokens: "Tensor") -> "Tensor":
        """One forward pass over tokens [B, T] and the greedy choice [B, 1]; every device has finished."""
        import torch

        with torch.inference_mode():
            ids = tokens.to(input_device(self._target))
            output = self._forward(input_ids=ids, past_key_values=self._cache, use_cache=True, **self._extra)
            chosen: Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
            self._synchronise()
        return chosen

    def device_peaks(self) -> Mapping[str, int]:
        """The most bytes allocated and reserved since `prepare`, added up over the GPUs used."""
        if not self._gpus:
            return {}
        import torch

        return {
            "peak_cuda": sum(torch.cuda.max_memory_allocated(gpu) for gpu in self._gpus),
            "peak_cuda_reserved": sum(torch.cuda.max_memory_reserved(gpu) for gpu in self._gpus),
        }

    def _synchronise(self) -> None:
        if self._gpus:
            import torch

            for gpu in self._gpus:
                torch.cuda.synchronize(gpu)
