"""Export of the policy for a runtime outside torch: ONNX Runtime, OpenVINO, or llama.cpp."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from harness.errors import InfeasibleError, UserError
from harness.method import Context, Inputs, LoadedModel, Method, Params, Trained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Export", "ExportParams"]

_RUNS_ON: Mapping[str, str] = {"onnx": "onnxruntime", "openvino": "openvino", "gguf": "llamacpp"}

_WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "float16", "int8"),
    "gguf": ("float32", "float16", "q8_0", "q4_0"),
}

_TOLERANCE: Mapping[str, float] = {
    "float32": 1e-3,
    "float16": 0.02,
    "int8": 0.4,
    "q8_0": 0.4,
    "q4_0": 0.8,
}
"""Weights → the largest `relative_logit_error` of a working export. A wrong one, such as rotated the wrong way, is
beyond 0.5; what 8 or 4 bits do to a model is measured afterwards, and not judged here."""

_STEPS = 3


class ExportParams(Params):
    """Settings of an export."""

    format: Literal["onnx", "openvino", "gguf"] = Field(
        description="onnx: for ONNX Runtime; openvino: for OpenVINO; gguf: for llama.cpp (Llama architecture only)"
    )
    weights: Literal["float32", "float16", "int8", "q8_0", "q4_0"] = Field(
        "float32",
        description="how weights are stored. onnx: float32, int8 (a scale for 32 weights); openvino: float32, float16, "
        "int8 (a scale for a row); gguf: float32, float16, q8_0, q4_0 (a scale for 32 weights)",
    )

    @model_validator(mode="after")
    def _known(self) -> "ExportParams":
        if self.weights not in _WEIGHTS[self.format]:
            known = ", ".join(_WEIGHTS[self.format])
            raise ValueError(f"format {self.format} has weights {known}; got {self.weights}")
        return self


class Export(Method[ExportParams]):
    """Writes the policy in another runtime's format and checks it there; targets of that runtime then measure it."""

    name = "export"
    summary = "export for ONNX Runtime, OpenVINO or llama.cpp"
    paper = "no paper: torch.export (pytorch.org/docs/stable/export), ONNX (onnx.ai), GGUF (github.com/ggml-org/ggml)"
    version = 1
    params = ExportParams
    needs = frozenset({"policy"})
    dataset_kind = None
    fixed = frozenset({"format"})

    @classmethod
    def deploys(cls, settings: Mapping[str, object]) -> bool:
        """Always: no other method reads these files."""
        return True

    @classmethod
    def runs_on(cls, settings: Mapping[str, object]) -> frozenset[str]:
        """The runtime of the format."""
        return frozenset({_RUNS_ON[str(settings["format"])]})

    def run(self, inputs: Inputs, params: ExportParams, context: Context) -> Trained:
        """Export, and compare the logits of a few seeded sequences with torch's.

        The metrics: `max_logit_error`; `relative_logit_error`, root mean square over that of the logits' distances from
        their mean; `greedy_agreement`, the share of places with the same most likely token; `file_mb`, 2**20 bytes.

        Raises:
            UserError: the policy cannot be exported, or the runtime is not installed.
            InfeasibleError: the export's logits differ by more than its weights explain.
        """
        policy = inputs.load("policy")
        _check_policy(policy)
        folder = context.scratch / "export"
        folder.mkdir()
        _write(policy, params, folder, context)
        context.check()
        context.log(1, _STEPS, {})
        policy.model.config.save_pretrained(folder)
        if policy.model.generation_config is not None:
            policy.model.generation_config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        context.log(2, _STEPS, {})
        metrics = _checked(policy.model, params, folder, context.seed)
        context.log(_STEPS, _STEPS, metrics)
        return Trained(policy.model, policy.tokenizer, metrics, write=lambda target: _move(folder, target))


def _check_policy(policy: LoadedModel) -> None:
    import torch

    model = policy.model
    who = type(model).__name__
    if getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None) is not None:
        raise UserError("export: the policy is quantised already; export the model before, in the weights wanted")
    if getattr(model, "peft_config", None):
        raise UserError("export: the policy has an adapter beside its weights; merge it first")
    odd = sorted(
        {str(p.dtype) for p in model.parameters() if type(p.data) is not torch.Tensor or p.dtype != torch.float32}
    )
    if odd:
        raise UserError(f"export: expected plain float32 weights, got {', '.join(odd)} in {who}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(f"export: {who} is an encoder-decoder; only causal language models are exported")
    if not getattr(policy.tokenizer, "is_fast", False):
        raise UserError(
            "export: the tokenizer has no tokenizer.json, which runtimes read: use one of the tokenizers library"
        )


def _write(policy: LoadedModel, params: ExportParams, folder: Path, context: Context) -> None:
    if params.format == "onnx":
        from methods._export_onnx import write_onnx

        write_onnx(policy.model, params.weights, folder, context.scratch)  # type: ignore[arg-type]  # validated
    elif params.format == "openvino":
        from methods._export_openvino import write_openvino

        write_openvino(policy.model, params.weights, folder)  # type: ignore[arg-type]  # validated
    else:
        from methods._export_gguf import write_gguf

        write_gguf(policy.model, policy.tokenizer, params.weights, folder)


def _checked(model: "PreTrainedModel", params: ExportParams, folder: Path, seed: int) -> dict[str, float]:
    from methods._export_check import agreement

    found = agreement(model, folder, _RUNS_ON[params.format], seed)
    limit = _TOLERANCE[params.weights]
    if found.relative > limit:
        raise InfeasibleError(
            f"export: the {params.format} model's logits differ from torch's by {found.relative:.3g} of their spread "
            f"(at most by {found.largest:.3g}); weights {params.weights} explain {limit:g}"
        )
    files = sum(p.stat().st_size for p in folder.iterdir() if p.name.startswith(("model.", "openvino_model.")))
    return {
        "max_logit_error": found.largest,
        "relative_logit_error": found.relative,
        "greedy_agreement": found.greedy,
        "file_mb": files / 2**20,
    }


def _move(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        shutil.move(file, target / file.name)
