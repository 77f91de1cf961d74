"""Adapters in a model: put in before training, read while it trains, and afterwards merged or taken off.

peft makes and merges them. PiSSA takes its first adapter out of the base weights, so the model without adapters is not
the one that came in: that is the model with the first adapter, which is kept under the name `start`.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness._soft_prompt import check_soft_prompt
from harness.errors import UserError
from methods._peft import PeftParams

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["adapted", "as_it_came", "leave", "merged_weights", "with_adapters"]

Task = Literal["CAUSAL_LM", "SEQ_CLS"]

_START = "start"
_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "ffn", "feed_forward", "feedforward", "fc1", "fc2")
_KEYS_AND_VALUES = frozenset({"k_proj", "v_proj", "key", "value", "k", "v"})
_DOWN = frozenset({"down_proj", "fc2", "dense_4h_to_h", "fc_out", "w2"})

_PISSA = "pissa_niter_16"
"""The paper's fast decomposition: seconds for a model whose full one takes a minute. Whatever it finds, what is left of
the weights is made by subtracting it, so the model starts where it was."""


def with_adapters(model: "PreTrainedModel", params: PeftParams, seed: int, task: Task = "CAUSAL_LM") -> dict[str, Any]:
    """What a trainer of TRL's is given: `model`, and `peft_config` where the trainer is to put the adapters in.

    Raises:
        UserError: the model has no layers of the kind that the adapters are for, or too small ones.
    """
    if params.adapter == "pissa" and task == "CAUSAL_LM":
        return {"model": adapted(model, params, seed)}
    # The trainer sets the seed before it makes them.
    return {"model": model, "peft_config": _config(model, params, task)}


def adapted(model: "PreTrainedModel", params: PeftParams, seed: int) -> Any:  # noqa: ANN401  # peft is untyped
    """The policy with its adapters, drawn by the seed, in peft's wrapper; the model itself where every weight learns.

    Raises:
        UserError: see `with_adapters`.
    """
    config = _config(model, params, "CAUSAL_LM")
    if config is None:
        return model
    import peft
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = peft.get_peft_model(model, config)
    if params.adapter == "pissa":
        _keep_start(found)
    return found


def _config(model: "PreTrainedModel", params: PeftParams, task: Task) -> "PeftConfig | None":
    # The head of a reward model is trained in full beside its adapters.
    if not params.adapts:
        return None
    import peft

    saved = ["score"] if task == "SEQ_CLS" else None
    if params.adapter == "prompt_tuning":
        check_soft_prompt(model)
        # The paper found vectors of the vocabulary a better start than random ones.
        return peft.PromptTuningConfig(
            num_virtual_tokens=params.prompt_tokens, prompt_tuning_init="SAMPLE_VOCAB", task_type=task
        )
    if params.adapter == "ia3":
        inner, down = _ia3_layers(model, params)
        return peft.IA3Config(
            target_modules=[*inner, *down], feedforward_modules=down, modules_to_save=saved, task_type=task
        )
    targets: str | list[str] = "all-linear"
    if params.adapter_targets != "all":
        targets = _linear_layers(model, _ATTENTION if params.adapter_targets == "attention" else _MLP)
        if not targets:
            raise _none_of(model, params.adapter_targets)
    if params.adapter == "pissa":
        _check_rank(model, params.lora_rank, targets)
    return peft.LoraConfig(
        r=params.lora_rank,
        lora_alpha=params.lora_alpha,
        lora_dropout=0.0,
        target_modules=targets,
        use_dora=params.adapter == "dora",
        use_rslora=params.adapter == "rslora",
        init_lora_weights=_PISSA if params.adapter == "pissa" else True,
        modules_to_save=saved,
        task_type=task,
    )


def _none_of(model: "PreTrainedModel", part: str) -> UserError:
    known = sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(model, ("",))})
    return UserError(
        f"adapter_targets {part}: no linear layer of {type(model).__name__} has a name by which its {part} is known; "
        f"its layers are {', '.join(known[:12]) or 'not linear'}; use adapter_targets: all"
    )


def _linear_layers(model: "PreTrainedModel", marks: tuple[str, ...]) -> list[str]:
    """Full names of the linear layers, output layers left out, with one of these marks in a part of the name."""
    import torch
    from transformers.pytorch_utils import Conv1D

    heads = {model.get_output_embeddings(), getattr(model, "score", None)}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and module not in heads
        and any(mark in part.lower() for part in name.split(".") for mark in marks)
    ]


def _ia3_layers(model: "PreTrainedModel", params: PeftParams) -> tuple[list[str], list[str]]:
    """The layers whose outputs, and those whose inputs, are scaled."""
    inner = [n for n in _linear_layers(model, _ATTENTION) if n.rsplit(".", 1)[-1] in _KEYS_AND_VALUES]
    down = [n for n in _linear_layers(model, _MLP) if n.rsplit(".", 1)[-1] in _DOWN]
    if params.adapter_targets == "mlp":
        inner = []
    if params.adapter_targets == "attention":
        down = []
    if (not inner and params.adapter_targets != "mlp") or (not down and params.adapter_targets != "attention"):
        raise UserError(
            f"adapter ia3 scales keys, values and what goes into the last feed-forward layers; {type(model).__name__} "
            "has no layers of its own for them that are known by name; use a kind of LoRA"
        )
    return inner, down


def _check_rank(model: "PreTrainedModel", rank: int, targets: str | list[str]) -> None:
    names = _linear_layers(model, ("",)) if isinstance(targets, str) else targets
    least = min((min(model.get_submodule(name).weight.shape) for name in names), default=rank)
    if rank > least:
        raise UserError(
            f"adapter pissa takes its {rank} largest singular vectors from each matrix, and a matrix of this model has "
            f"only {least}; lower lora_rank"
        )


def _keep_start(model: Any) -> None:  # noqa: ANN401  # peft is untyped
    """Keep the first adapter under a name of its own, frozen."""
    config = model.peft_config["default"]
    # Or the decomposition would be made again, of what is left, by whoever adds or loads an adapter.
    config.init_lora_weights = True
    model.add_adapter(_START, config)
    for name, weight in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", f".{_START}.")).data.copy_(weight.data)


def as_it_came(model: Any) -> "contextlib.AbstractContextManager[None]":  # noqa: ANN401  # peft is untyped
    """In it, a model that `adapted` made computes as it did before any training, up to rounding."""
    from trl.trainer.utils import use_adapter

    found: contextlib.AbstractContextManager[None] = use_adapter(model, _START if _START in model.peft_config else None)
    return found


def merged_weights(layer: Any) -> "dict[str, Tensor]":  # noqa: ANN401  # a layer of torch's or of peft's
    """The weights of a layer by name, an adapter in it merged; the layer itself stays as it is."""
    import torch

    base = layer.get_base_layer() if hasattr(layer, "base_layer") else layer
    if base is layer:
        return dict(layer.named_parameters(recurse=False))
    with _restored(base), torch.no_grad():
        layer.merge(adapter_names=["default"])
        layer.merged_adapters.clear()
        return {name: weight.data for name, weight in base.named_parameters(recurse=False)}


@contextlib.contextmanager
def _restored(layer: "nn.Module") -> Iterator[None]:
    before = {name: weight.data for name, weight in layer.named_parameters(recurse=False)}
    for name, value in before.items():
        # Some kinds are merged in place.
        layer.get_parameter(name).data = value.clone()
    try:
        yield
    finally:
        for name, value in before.items():
            layer.get_parameter(name).data = value


def leave(peft_model: Any, kept: Path | None) -> "PreTrainedModel":  # noqa: ANN401  # peft is untyped
    """The policy without peft's modules: adapters merged, or (with a folder) written there and taken off.

    What is left then is the policy as it came in; the adapter of PiSSA is written as the LoRA of twice the rank that
    it is to that policy.
    """
    if kept is None:
        model = peft_model.merge_and_unload(adapter_names=["default"])
    else:
        _write(peft_model, kept)
        if peft_model.active_peft_config.is_prompt_learning:
            model = peft_model.get_base_model()
        elif _START in peft_model.peft_config:
            model = peft_model.merge_and_unload(adapter_names=[_START])
        else:
            model = peft_model.unload()
    # What peft leaves on the model makes save_pretrained write adapters again.
    for name in ("peft_config", "_hf_peft_config_loaded"):
        vars(model).pop(name, None)
    found: PreTrainedModel = model
    return found


def _write(peft_model: Any, kept: Path) -> None:  # noqa: ANN401  # peft is untyped
    extra: dict[str, str] = {}
    first = kept / "first"
    if _START in peft_model.peft_config:
        peft_model.save_pretrained(kept, selected_adapters=[_START])
        # peft loads it by the folder's name, and takes that adapter off again.
        (kept / _START).rename(first)
        extra["path_initial_model_for_weight_conversion"] = str(first)
    peft_model.save_pretrained(kept, safe_serialization=True, selected_adapters=["default"], **extra)
    shutil.rmtree(first, ignore_errors=True)
    written = kept / "adapter_config.json"
    # It names a folder of this machine; the base lies beside the adapter.
    named = {**json.loads(written.read_text()), "base_model_name_or_path": None}
    written.write_text(json.dumps(named, indent=2, sort_keys=True) + "\n")
    # A model card generated for the hub.
    (kept / "README.md").unlink(missing_ok=True)
