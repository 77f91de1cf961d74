"""GGUF files of a model."""

from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["write_gguf"]


def write_gguf(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", weights: str, folder: Path) -> None:
    """Write `model.gguf`."""
    raise UserError("export: this version writes no GGUF files")
