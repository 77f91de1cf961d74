"""Export of the policy for a runtime outside torch: ONNX Runtime, OpenVINO, or llama.cpp."""

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from harness.errors import InfeasibleError, UserError
from harness.method import Context, Inputs, LoadedModel, Method, Params, Trained

if TYPE_CHECKING:
    from methods._export_check import Reference

__all__ = ["Export", "ExportParams"]

_RUNS_ON: Mapping[str, str] = {"onnx": "onnxruntime", "openvino": "openvino", "gguf": "llamacpp"}

_MODULES: Mapping[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "gguf": (),
}

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
    "q4_0": 2**0.5,
}
"""Weights → the largest `relative_logit_error` that they explain. Whether the exporter is right shows in float32, where
it is some millionths; 4 bits can leave nothing of a small model. The square root of 2: logits that have nothing to do
with each other."""

_STEPS = 2


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
    libraries = ("gguf", "onnx", "onnxscript", "onnxruntime", "openvino")

    @classmethod
    def imports(cls, settings: Mapping[str, object]) -> Mapping[str, str]:
        """The exporter and the runtime of the format; a GGUF file can be written without llama.cpp."""
        return dict.fromkeys(_MODULES[str(settings["format"])], "export")

    @classmethod
    def deploys(cls, settings: Mapping[str, object]) -> bool:
        """Always: no other method reads these files."""
        return True

    @classmethod
    def runs_on(cls, settings: Mapping[str, object]) -> frozenset[str]:
        """The runtime of the format."""
        return frozenset({_RUNS_ON[str(settings["format"])]})

    def run(self, inputs: Inputs, params: ExportParams, context: Context) -> Trained:
        """Export, and compare the logits of a few seeded sequences with torch's: in float32, then in these weights.

        The metrics, of the weights asked for: `max_logit_error`; `relative_logit_error`, root mean square over that of
        the logits' distances from their mean; `greedy_agreement`, the share of places with the same most likely token;
        `file_mb`, 2**20 bytes; `checked_in_runtime`, 0 for GGUF where llama-cpp-python is not installed: the file is
        then read back by transformers. `float32_logit_error`: the largest before weights were made smaller.

        Raises:
            UserError: the policy cannot be exported, or the runtime is not installed.
            InfeasibleError: the export's logits differ by more than its weights explain.
        """
        policy = inputs.load("policy")
        _check_policy(policy)
        from methods._export_check import Reference

        reference = Reference(policy.model, context.seed)
        folder = _new(context.scratch / "float32")
        _write(policy, params.format, folder)
        dense = metrics = _checked(reference, params.format, "float32", folder)
        context.check()
        context.log(1, _STEPS, metrics)
        if params.weights != "float32":
            small = _new(context.scratch / params.weights)
            _shrink(policy, params, folder, small)
            metrics, folder = _checked(reference, params.format, params.weights, small), small
        metrics["float32_logit_error"] = dense["max_logit_error"]
        policy.model.config.save_pretrained(folder)
        if policy.model.generation_config is not None:
            policy.model.generation_config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        context.log(_STEPS, _STEPS, metrics)
        return Trained(policy.model, policy.tokenizer, metrics, write=lambda target: _move(folder, target))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


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


def _write(policy: LoadedModel, format_: str, folder: Path) -> None:
    """The policy in float32."""
    if format_ == "onnx":
        from methods._export_onnx import write_onnx

        write_onnx(policy.model, folder)
    elif format_ == "openvino":
        from methods._export_openvino import write_openvino

        write_openvino(policy.model, folder)
    else:
        from methods._export_gguf import write_gguf

        write_gguf(policy.model, policy.tokenizer, "float32", folder)


def _shrink(policy: LoadedModel, params: ExportParams, dense: Path, folder: Path) -> None:
    """What lies in the folder `dense`, in smaller weights."""
    if params.format == "onnx":
        from methods._export_onnx_int8 import quantise_onnx

        quantise_onnx(dense, folder)
    elif params.format == "openvino":
        from methods._export_openvino import shrink_openvino

        shrink_openvino(dense, params.weights, folder)  # type: ignore[arg-type]  # validated
    else:
        from methods._export_gguf import write_gguf

        write_gguf(policy.model, policy.tokenizer, params.weights, folder)


def _checked(reference: "Reference", format_: str, weights: str, folder: Path) -> dict[str, float]:
    from harness.runtimes import FILES

    backend = _RUNS_ON[format_]
    # llama-cpp-python is built where it is installed, and a GGUF file may be for another machine.
    there = format_ != "gguf" or importlib.util.find_spec("llama_cpp") is not None
    found = reference.agreement(folder, backend) if there else reference.agreement_read_back(folder, FILES[backend])
    if not found.relative <= _TOLERANCE[weights]:
        raise InfeasibleError(
            f"export: the {format_} model's logits differ from torch's by {found.relative:.3g} of their spread (at "
            f"most by {found.largest:.3g}); weights {weights} explain {_TOLERANCE[weights]:.3g}"
        )
    files = sum(p.stat().st_size for p in folder.iterdir() if p.name.startswith(("model.", "openvino_model.")))
    return {
        "max_logit_error": found.largest,
        "relative_logit_error": found.relative,
        "greedy_agreement": found.greedy,
        "file_mb": files / 2**20,
        "checked_in_runtime": float(there),
    }


def _move(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        shutil.move(file, target / file.name)
