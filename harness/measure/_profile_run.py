"""The measuring side of a profile: one model, one target, in the process that `harness.measure.profile` starts."""

import inspect
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from harness.targets import Target, peak_rss_mb

if TYPE_CHECKING:
    from torch import Tensor

    from harness.method import LoadedModel

__all__ = ["MB", "ProfileRow", "is_out_of_memory", "profile_rows"]

MB = 2**20
"""Bytes of every figure in `_mb`."""

_LOAD_WATCHED_S = 0.3

ProfileRow = dict[str, object]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python failed for want of memory, on the CPU or an accelerator."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


@dataclass
class _Session:
    """A loaded model and how one forward pass of it is called on the target."""

    loaded: "LoadedModel"
    target: Target
    prompt_tokens: int
    new_tokens: int

    def __post_init__(self) -> None:
        model = self.loaded.model
        accepts = inspect.signature(model.forward).parameters
        self.extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
        self.static = self.target.backend == "inductor" and bool(getattr(model, "_can_compile_fullgraph", False))
        self.cache: Any = None
        self.step: Callable[..., Any] = model

    def synchronise(self) -> None:
        if self.target.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize(self.target.device)

    def prepare(self) -> None:
        """Ready for another batch size: nothing compiled for the one before is kept."""
        import torch

        self.cache = None
        if self.target.backend == "inductor":
            # Each batch size is two shapes. Past dynamo's limit of recompilations it would run eagerly and not say so.
            torch.compiler.reset()
            self.step = torch.compile(self.loaded.model, dynamic=False if self.static else None)

    def _fresh_cache(self) -> object:
        from transformers import DynamicCache, StaticCache

        config = self.loaded.model.config
        if not self.static:
            return DynamicCache(config=config)
        if self.cache is None:
            self.cache = StaticCache(config=config, max_cache_len=self.prompt_tokens + self.new_tokens)
        self.cache.reset()
        return self.cache

    def request(self, prompt: "Tensor") -> list[float]:
        """Seconds from the start of one request, prompt [B, T] on the host, to each of its tokens [new_tokens]."""
        import torch

        times = []
        with torch.inference_mode():
            cache = self._fresh_cache()
            self.synchronise()
            start = time.perf_counter()
            ids = prompt.to(self.target.device)
            for _ in range(self.new_tokens):
                output = self.step(input_ids=ids, past_key_values=cache, use_cache=True, **self.extra)
                ids = output.logits[:, -1].argmax(-1, keepdim=True)
                self.synchronise()
                times.append(time.perf_counter() - start)
        return times


def _prompt(loaded: "LoadedModel", batch: int, tokens: int) -> "Tensor":
    import torch

    special = {*loaded.tokenizer.all_special_ids, *loaded.tokenizer.added_tokens_decoder}
    size = min(len(loaded.tokenizer), loaded.model.get_input_embeddings().weight.shape[0])
    plain = torch.tensor([i for i in range(size) if i not in special])
    generator = torch.Generator().manual_seed(0)
    return plain[torch.randint(len(plain), (batch, tokens), generator=generator)]


def _resident_bytes(loaded: "LoadedModel") -> int:
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    # Tied weights are one block of memory.
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _disk_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def _row(metric: str, setting: str, value: float, repeat: int = 0) -> ProfileRow:
    return {"metric": metric, "setting": setting, "repeat": repeat, "value": float(value)}


def profile_rows(
    folder: Path,
    target: Target,
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch_sizes: list[int],
    repeats: int,
    warmup: int,
) -> Iterator[ProfileRow]:
    """Measure in this process; see `harness.measure.profile`. torch must not have been used before."""
    import torch

    torch.set_num_threads(target.threads)
    # Imported before the clock starts: a server does it once, whatever it loads.
    import transformers  # noqa: F401  (for its side effect)

    from harness.models import load_model

    yield _row("other_load", "load", psutil.cpu_percent(_LOAD_WATCHED_S))
    start = time.perf_counter()
    loaded = load_model(folder, dtype=target.dtype, device=target.device, attention=target.attention)
    session = _Session(loaded, target, prompt_tokens, new_tokens)
    session.synchronise()
    yield _row("load_ms", "load", (time.perf_counter() - start) * 1e3)
    yield _row("weight_mb", "load", _resident_bytes(loaded) / MB)
    if disk := _disk_bytes(folder):
        yield _row("weight_disk_mb", "load", disk / MB)
    yield _row("peak_rss_mb", "load", peak_rss_mb())
    # From small to large, so that a high-water mark is that of its own batch size.
    for batch in sorted(batch_sizes):
        yield from _batch_rows(session, batch, repeats, warmup)


def _batch_rows(session: _Session, batch: int, repeats: int, warmup: int) -> Iterator[ProfileRow]:
    import torch

    setting = f"batch={batch}"
    prompt = _prompt(session.loaded, batch, session.prompt_tokens)
    session.prepare()
    if session.target.backend == "inductor":
        yield _row("compile_ms", setting, session.request(prompt)[-1] * 1e3)
    for _ in range(warmup):
        session.request(prompt)
    yield _row("other_load", setting, psutil.cpu_percent(_LOAD_WATCHED_S))
    for repeat in range(repeats):
        times = session.request(prompt)
        first, last = times[0], times[-1]
        yield _row("ttft_ms", setting, first * 1e3, repeat)
        if session.new_tokens > 1:
            yield _row("tpot_ms", setting, (last - first) / (session.new_tokens - 1) * 1e3, repeat)
        yield _row("e2e_ms", setting, last * 1e3, repeat)
        yield _row("tokens_per_s", setting, batch * session.new_tokens / last, repeat)
        yield _row("prefill_tokens_per_s", setting, batch * session.prompt_tokens / first, repeat)
    yield _row("peak_rss_mb", setting, peak_rss_mb())
    if session.target.device.startswith("cuda"):
        yield _row("peak_cuda_mb", setting, torch.cuda.max_memory_allocated(session.target.device) / MB)
