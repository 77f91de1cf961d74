"""What a run of a method that learns from its own answers keeps count of, and what it leaves."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from harness.method import Context, Trained
from methods._adapters import beside
from methods._checkpoint import Checkpoints
from methods._peft_model import leave
from methods._ppo_math import finite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from methods._rollout_method import RolloutParams

__all__ = ["RolloutRun"]

_FINAL = ("reward", "kl", "entropy", "length", "eos_fraction")


class RolloutRun:
    """The base of such runs."""

    def __init__(
        self, params: "RolloutParams", context: Context, tokenizer: "PreTrainedTokenizerBase", device: str
    ) -> None:
        """`device` is the type of the policy's."""
        self.params, self.context, self.tokenizer = params, context, tokenizer
        self.checkpoints = Checkpoints(context, device)
        self.seconds = {"sampling": 0.0, "scoring": 0.0, "training": 0.0}
        self.tokens = 0
        """That were sampled."""

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the seconds of the block as this part's."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def counted(self) -> dict[str, float]:
        """The last iteration's figures, seconds by part, iterations and sampled tokens."""
        last = {name: self.checkpoints.logged(name)[-1:] for name in _FINAL}
        return {
            **{f"final_{name}": value for name, found in last.items() for value in found},
            **{f"{part}_seconds": spent for part, spent in self.seconds.items()},
            "iterations": float(self.params.iterations),
            "sampled_tokens": float(self.tokens),
        }

    def left(self, model: Any, peft: Any, figures: dict[str, float]) -> Trained:  # noqa: ANN401  # transformers and peft are untyped
        """The trained policy: adapters (`peft`, None without) merged, or beside the untrained weights.

        Raises:
            InfeasibleError: a weight is not finite.
        """
        for weight in model.parameters():
            finite(float(weight.detach().sum()), "a weight")
        kept = None if self.params.lora_merge else self.context.scratch / "adapter"
        if peft is not None:
            model = leave(peft, kept)
        model.requires_grad_(True)
        return Trained(model, self.tokenizer, figures) if kept is None else beside(model, self.tokenizer, kept, figures)
