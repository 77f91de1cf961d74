"""Which way a figure is better."""

from typing import Literal

__all__ = ["Direction", "direction"]

Direction = Literal["higher", "lower", "none"]

_LOWER = frozenset(
    {"kl", "loss", "nll", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
    | {"brier", "brier_score", "ece", "mse", "mae", "ter", "wer", "over_refusal"}
)
_NO_ORDER = frozenset({"length"})


def direction(metric: str) -> Direction:
    """Which way a metric is better; `none` where it only describes."""
    return "none" if metric in _NO_ORDER else "lower" if metric in _LOWER else "higher"
