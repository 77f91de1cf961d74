"""Adapters once they are trained: merged into the weights, or kept beside them as a choice of deployment."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from pydantic import Field, model_validator

from harness.method import Context, Method, Params, Trained
from methods._trl import TrainingParams, finish

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

__all__ = ["AdapterMethod", "AdapterParams", "beside", "finished", "lora_merge_field"]

P = TypeVar("P", bound=Params)


def lora_merge_field() -> Any:  # noqa: ANN401  # what pydantic's Field returns
    """The setting `lora_merge`; its default is left out of a stage's stored settings, so that keys stay."""
    return Field(
        True,
        description="true: adapters are added into the weights when trained. false: they stay beside the weights, as "
        "servers of many adapters keep them: a few MB for each task, slower; no step may follow",
        exclude_if=bool,
    )


class AdapterParams(TrainingParams):
    """Settings of what trains a policy, in full or by adapters."""

    soft_prompts: ClassVar[bool] = True

    lora_merge: bool = lora_merge_field()

    @model_validator(mode="after")
    def _has_adapters(self) -> Self:
        if not self.lora_merge and not self.adapts:
            raise ValueError("lora_merge: false needs adapters: set lora_rank")
        if self.lora_merge and self.adapter == "prompt_tuning":
            raise ValueError(
                "adapter prompt_tuning learns no weights that others could be merged with: set lora_merge: false"
            )
        return self


class AdapterMethod(Method[P]):
    """A method whose adapters may stay unmerged."""

    fixed: ClassVar[frozenset[str]] = frozenset({"lora_merge"})

    @classmethod
    def deploys(cls, settings: Mapping[str, object]) -> bool:
        """Unmerged adapters are for running: what follows would train the merged model, or adapters on adapters."""
        return settings.get("lora_merge") is False


def finished(
    trainer: "Trainer",
    tokenizer: "PreTrainedTokenizerBase",
    params: AdapterParams,
    metrics: Mapping[str, float],
    context: Context,
) -> Trained:
    """What a Trainer leaves: the trained model, or (unmerged) its untrained weights and the adapter beside them."""
    kept = None if params.lora_merge else context.scratch / "adapter"
    model = finish(trainer, kept)
    return Trained(model, tokenizer, metrics) if kept is None else beside(model, tokenizer, kept, metrics)


def beside(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", kept: Path, metrics: Mapping[str, float]
) -> Trained:
    """An artifact of the untrained weights and, in its folder `adapter`, what was trained."""
    from harness.models import save_model

    size = sum(p.stat().st_size for p in kept.glob("*.safetensors"))

    def write(folder: Path) -> None:
        save_model(model, tokenizer, folder)
        shutil.copytree(kept, folder / "adapter")

    return Trained(model=model, tokenizer=tokenizer, metrics={**metrics, "adapter_mb": size / 2**20}, write=write)
