"""What a profile asks of a loaded model, whichever backend runs it, and the one place where a request is timed."""

import importlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.runtimes import import_runtime
from harness.runtimes import open_session as open_runtime_session
from harness.targets import RUNTIMES, Target

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Session", "import_libraries", "make_prompt", "open_session", "request"]


class Session(Protocol):
    """A model loaded on its target, answering one batch at a time.

    `open_session` makes one; its time is the load time. Exported models: `harness.runtimes.open_session`, with the
    arguments of this module's, returns one too.
    """

    @property
    def compiles(self) -> bool:
        """Whether the first request after `prepare` compiles."""

    def ordinary_tokens(self) -> Sequence[int]:
        """The ids of the vocabulary that are no special or added tokens."""

    def weight_bytes(self) -> int | None:
        """Bytes of memory that the weights hold, wherever they lie; None where the runtime does not tell."""

    def prepare(self) -> None:
        """Ready for another batch size: nothing that was compiled or cached for the one before is kept."""

    def begin(self, prompt: "NDArray[np.int64]") -> Any:  # noqa: ANN401  # whatever `step` takes
        """An empty cache, and the prompt [B, T] in the host's memory as `step` takes it. Not timed."""

    def step(self, tokens: Any) -> Any:  # noqa: ANN401  # the same
        """One forward pass over tokens [B, T] after what the cache holds, and the greedy choice [B, 1] from it.

        Returns when every device has finished.
        """

    def device_peaks(self) -> Mapping[str, int]:
        """Metric (`peak_cuda`, `peak_cuda_reserved`) → most bytes since `prepare`; empty without an accelerator."""


def import_libraries(target: Target) -> None:
    """Import what loading on the target will need: a server does it once, so the load time is to be without it."""
    if target.backend in RUNTIMES:
        import_runtime(target.backend)
        importlib.import_module(f"harness.runtimes._{target.backend}")
        return
    import torch

    torch.set_num_threads(target.threads)
    import transformers  # noqa: F401  # for its side effect

    if target.backend == "tensorrt":
        # Its import registers the backend with torch.compile.
        importlib.import_module("torch_tensorrt")


def open_session(folder: Path, target: Target, prompt_tokens: int, new_tokens: int) -> Session:
    """Load the model of a folder on a target, ready for requests of these lengths.

    Raises:
        UserError: it cannot be loaded, or not for this backend.
        InfeasibleError: it does not fit in memory.
    """
    if target.backend in RUNTIMES:
        return open_runtime_session(folder, target, prompt_tokens, new_tokens)
    from harness.measure._torch_session import TorchSession

    return TorchSession.load(folder, target, prompt_tokens, new_tokens)


def make_prompt(ordinary: Sequence[int], batch: int, tokens: int) -> "NDArray[np.int64]":
    """Random ordinary tokens [batch, tokens], always the same: their count decides the time, not their meaning."""
    import numpy as np

    return np.asarray(ordinary, dtype=np.int64)[np.random.default_rng(0).integers(len(ordinary), size=(batch, tokens))]


def request(session: Session, prompt: "NDArray[np.int64]", new_tokens: int) -> list[float]:
    """Seconds from the start of one request, prompt [B, T], to each of its tokens [new_tokens].

    `new_tokens` are generated whatever they are: the end of a sequence ends nothing.
    """
    tokens = session.begin(prompt)
    times = []
    start = time.perf_counter()
    for _ in range(new_tokens):
        tokens = session.step(tokens)
        times.append(time.perf_counter() - start)
    return times
