"""A profile's session on an exported model; torch is not imported for it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.runtimes._protocol import Cache, Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["RuntimeSession"]

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


class RuntimeSession:
    """A loaded export that answers one batch at a time: a `harness.measure._backends.Session`."""

    compiles = False

    def __init__(self, runtime: Runtime, folder: Path) -> None:
        self._runtime, self._folder = runtime, folder
        self._cache: Cache = []
        self._past = 0

    def ordinary_tokens(self) -> Sequence[int]:
        """The ids that are no special or added tokens and have an embedding, as torch's session finds them."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
        settings = json.loads((self._folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config = json.loads((self._folder / "config.json").read_text(encoding="utf-8"))
        special = set(tokenizer.get_added_tokens_decoder())
        named = [tokenizer.token_to_id(str(settings[name])) for name in _SPECIAL if settings.get(name)]
        special.update(i for i in named if i is not None)
        rows = config.get("vocab_size") or config["text_config"]["vocab_size"]
        return [i for i in range(min(tokenizer.get_vocab_size(), rows)) if i not in special]

    def weight_bytes(self) -> int | None:
        """Bytes of memory that the weights hold; None where the runtime does not tell."""
        return self._runtime.weight_bytes()

    def prepare(self) -> None:
        """Forget the batch size before this one."""
        self._cache = []

    def begin(self, prompt: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """An empty cache, and the prompt [B, T] as it is."""
        self._cache = self._runtime.empty(len(prompt))
        self._past = 0
        return prompt

    def step(self, tokens: "NDArray[np.int64]") -> "NDArray[np.int64]":
        """One forward pass over tokens [B, T] and the greedy choice [B, 1]."""
        import numpy as np

        batch, length = tokens.shape
        past = self._past
        self._past += length
        logits, self._cache = self._runtime.forward(
            tokens,
            np.ones((batch, self._past), np.int64),
            np.repeat(np.arange(past, self._past, dtype=np.int64)[None], batch, axis=0),
            np.array([length - 1], dtype=np.int64),
            self._cache,
        )
        chosen: NDArray[np.int64] = logits[:, -1].argmax(-1)[:, None].astype(np.int64)
        return chosen

    def device_peaks(self) -> Mapping[str, int]:
        """None: exported models run on the CPU."""
        return {}
