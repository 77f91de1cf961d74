"""llama.cpp through the ctypes interface of llama-cpp-python, on the CPU, keys and values in float32.

llama.cpp keeps keys and values to itself, by sequence and position. A cache here is the tokens so far; what its memory
holds of a sequence already is not computed again.
"""

import ctypes
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from harness.errors import InfeasibleError, UserError
from harness.runtimes._protocol import Cache

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["LlamaCppRuntime", "load"]

_BATCH = 512
"""Tokens of one call of `llama_decode`."""

_SEQUENCES = 64
"""Sequences that llama.cpp holds at the same time; a larger batch is computed in parts."""

_FEWEST_CELLS = 512

_ERROR = 4
"""ggml's log level of errors."""

_messages: list[str] = []


def _log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    if level == _ERROR:
        _messages.append(text.decode(errors="replace").strip())


_log_callback = llama_cpp.llama_log_callback(_log)
"""Kept here: llama.cpp calls it for as long as the process lives."""


def load(file: Path, threads: int) -> "LlamaCppRuntime":
    """Open `model.gguf` on this many threads.

    Raises:
        UserError: llama.cpp cannot load it.
    """
    llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0
    # Mapped weights would be in memory only as far as they have been used.
    settings.use_mmap = False
    _messages.clear()
    model = llama_cpp.llama_model_load_from_file(str(file).encode(), settings)
    if not model:
        raise UserError(f"llama.cpp cannot load {file}: {'; '.join(_messages) or 'no reason given'}")
    return LlamaCppRuntime(model, threads)


class LlamaCppRuntime:
    """A loaded GGUF model: a `harness.runtimes.Runtime` whose cache are the tokens [B, P], padding included."""

    def __init__(self, model: Any, threads: int) -> None:  # noqa: ANN401  # a pointer
        self._model, self._threads = model, threads
        self._vocabulary = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)))
        self._context: Any = None
        self._cells = 0
        self._held: list[list[int]] = []
        """Tokens in llama.cpp's memory, by sequence."""
        self._free_context: weakref.finalize[..., Any] | None = None
        self._free_model = weakref.finalize(self, llama_cpp.llama_model_free, model)

    def empty(self, batch: int) -> Cache:
        """No tokens. What llama.cpp holds is forgotten, so that an equal prompt is computed again."""
        if self._context is not None:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        self._held = [[] for _ in range(_SEQUENCES)]
        return [np.zeros((batch, 0), np.int64)]

    def forward(
        self,
        tokens: "NDArray[np.int64]",
        mask: "NDArray[np.int64]",
        positions: "NDArray[np.int64]",
        rows: "NDArray[np.int64]",
        cache: Cache,
    ) -> "tuple[NDArray[np.float32], Cache]":
        """See `Runtime.forward`. Logits of padding are 0.

        Raises:
            ValueError: positions are not counted over what the mask leaves; llama.cpp knows no others.
        """
        past = cache[0].shape[1]
        whole = np.concatenate([cache[0], tokens], axis=1)
        counted = mask.cumsum(axis=1) - 1
        own = mask[:, past:] == 1
        if (positions[own] != counted[:, past:][own]).any():
            raise ValueError("llama.cpp counts positions over the tokens that are no padding; expected these")
        logits = np.zeros((len(tokens), len(rows), self._vocabulary), np.float32)
        for low in range(0, len(tokens), _SEQUENCES):
            part = slice(low, low + _SEQUENCES)
            self._part(whole[part], mask[part] == 1, counted[part], past + rows, logits[part])
        return logits, [whole]

    def _part(
        self,
        whole: "NDArray[np.int64]",
        real: "NDArray[np.bool_]",
        counted: "NDArray[np.int64]",
        places: "NDArray[np.int64]",
        logits: "NDArray[np.float32]",
    ) -> None:
        """Compute what llama.cpp does not hold of these sequences, and fill in the logits at these places."""
        histories = [tokens[kept].tolist() for tokens, kept in zip(whole, real, strict=True)]
        self._reserve(sum(map(len, histories)))
        memory = llama_cpp.llama_get_memory(self._context)
        for sequence in range(len(histories), _SEQUENCES):
            if self._held[sequence]:
                llama_cpp.llama_memory_seq_rm(memory, sequence, -1, -1)
                self._held[sequence] = []
        todo: list[tuple[int, int, int]] = []
        wanted: dict[tuple[int, int], list[int]] = {}
        for sequence, history in enumerate(histories):
            for k, place in enumerate(places):
                if real[sequence, place]:
                    wanted.setdefault((sequence, int(counted[sequence, place])), []).append(k)
            first = min((at for owner, at in wanted if owner == sequence), default=len(history))
            start = min(_common(self._held[sequence], history), first)
            if start < len(self._held[sequence]):
                llama_cpp.llama_memory_seq_rm(memory, sequence, start, -1)
            self._held[sequence] = history
            todo += [(sequence, at, history[at]) for at in range(start, len(history))]
        for low in range(0, len(todo), _BATCH):
            for (sequence, at), found in self._decode(todo[low : low + _BATCH], wanted):
                for k in wanted[sequence, at]:
                    logits[sequence, k] = found

    def _decode(
        self, todo: list[tuple[int, int, int]], wanted: dict[tuple[int, int], list[int]]
    ) -> "Iterator[tuple[tuple[int, int], NDArray[np.float32]]]":
        """One pass over (sequence, position, token); yields the logits of the wanted ones."""
        batch = llama_cpp.llama_batch_init(len(todo), 0, 1)
        try:
            batch.n_tokens = len(todo)
            for i, (sequence, at, token) in enumerate(todo):
                batch.token[i], batch.pos[i] = token, at
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
                batch.logits[i] = (sequence, at) in wanted
            _messages.clear()
            if status := llama_cpp.llama_decode(self._context, batch):
                self._held = [[] for _ in range(_SEQUENCES)]
                raise RuntimeError(f"llama.cpp cannot compute (status {status}): {'; '.join(_messages)}")
            for i, (sequence, at, _) in enumerate(todo):
                if (sequence, at) in wanted:
                    found = llama_cpp.llama_get_logits_ith(self._context, i)
                    yield (sequence, at), np.ctypeslib.as_array(found, (self._vocabulary,))
        finally:
            llama_cpp.llama_batch_free(batch)

    def _reserve(self, cells: int) -> None:
        """Make room for this many tokens of all sequences together; a larger room forgets what was held."""
        if self._context is not None and cells <= self._cells:
            return
        if self._free_context is not None:
            self._free_context()
        # To the next power of two: a sequence that grows by a token makes few new rooms.
        self._cells = max(_FEWEST_CELLS, 1 << (cells - 1).bit_length())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = self._cells
        settings.n_batch = settings.n_ubatch = _BATCH
        settings.n_seq_max = _SEQUENCES
        settings.kv_unified = True
        settings.n_threads = settings.n_threads_batch = self._threads
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.no_perf = True
        _messages.clear()
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise InfeasibleError(f"llama.cpp has no room for {self._cells} tokens: {'; '.join(_messages)}")
        self._free_context = weakref.finalize(self, llama_cpp.llama_free, self._context)
        self._held = [[] for _ in range(_SEQUENCES)]

    def select(self, cache: Cache, rows: "NDArray[np.int64]") -> Cache:
        """See `Runtime.select`."""
        return [cache[0][rows]]

    def weight_bytes(self) -> int:
        """Bytes of the model's tensors."""
        return int(llama_cpp.llama_model_size(self._model))


def _common(held: list[int], wanted: list[int]) -> int:
    for i, (a, b) in enumerate(zip(held, wanted, strict=False)):
        if a != b:
            return i
    return min(len(held), len(wanted))
